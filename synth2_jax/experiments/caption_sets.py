"""Caption sets that the arms of a study get pictures for, and how balanced each is."""

import fractions
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from synth2_jax.caption_writing.folder import CAPTIONS, MANIFEST
from synth2_jax.errors import UserError
from synth2_jax.evaluation.caption_sets import spellings
from synth2_jax.files import JsonLinesFile, write_json, write_json_lines
from synth2_jax.scoring.class_coverage import class_coverage
from synth2_jax.scoring.diversity import balance
from synth2_jax.scoring.n_grams import tokenize

_SAMPLE, _CLUSTERS = 1000, 20  # captions of each set, and what they are clustered into


def natural_quotas(captions: Sequence[str], classes: Sequence[str], total: int) -> dict[str, int]:
    """Shares `total` captions out over classes as often as `captions` name them.

    Classes that get none are left out; UserError when no caption names a class.
    """
    counted = class_coverage(tokenize(captions), [*map(spellings, classes)])
    counts = dict(zip(classes, counted.tolist(), strict=True))
    if not (all_named := sum(counts.values())):
        raise UserError(f"captions: no real caption names a class, such as {classes[0]!r}")
    shares = {name: fractions.Fraction(total * n, all_named) for name, n in counts.items()}
    quotas = {name: int(share) for name, share in shares.items()}
    by_rest = sorted(classes, key=lambda name: quotas[name] - shares[name])
    for name in by_rest[: total - sum(quotas.values())]:  # the largest remainders
        quotas[name] += 1
    return {name: quota for name, quota in quotas.items() if quota}


def sample(captions: Sequence[str], number: int, seed: int) -> list[str]:
    """Draws `number` captions at random, each of them as often as any other, give or take one."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(len(captions)) for _ in range(-(-number // len(captions)))]
    return [captions[i] for i in np.concatenate(rounds)[:number]]


def write_captions(folder: str, captions: Sequence[str], source: str) -> None:
    """Writes captions as `synth2 captions` leaves them, for `synth2 synthesize` to read."""
    path = pathlib.Path(folder)
    write_json_lines(path / CAPTIONS, ({"caption": caption} for caption in captions))
    written = JsonLinesFile(path / CAPTIONS)
    manifest = {"source": source, "num_captions": written.num_rows, "sha256": written.sha256}
    write_json(path / MANIFEST, manifest)


def balance_of(sets: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """{set: {"captions", "top5_share", "entropy", "self_similarity"}}, in shared clusters."""
    sample = min(_SAMPLE, *map(len, sets.values()))
    found = balance(sets, sample_size=sample, num_clusters=min(_CLUSTERS, sample), seed=0)
    return {
        name: {
            "top5_share": found[name].top_share,
            "entropy": found[name].entropy,
            "self_similarity": found[name].self_similarity,
            "captions": len(captions),
        }
        for name, captions in sets.items()
    }
