"""Compares how varied caption sets are: the figures of `synth2 report --captions`.

A set is a captions.jsonl, a folder that holds one, a folder of pairs, or a text file of one caption
a line.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synth2_jax.caption_writing.classes import load_classes
from synth2_jax.caption_writing.filters import forms
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError
from synth2_jax.files import read_json_lines
from synth2_jax.progress import Progress
from synth2_jax.scoring.caption_embedding import embed_captions, sentence_transformer
from synth2_jax.scoring.class_coverage import class_coverage
from synth2_jax.scoring.diversity import SetBalance, balance, entropy
from synth2_jax.scoring.n_grams import TokenizedCaptions, n_gram_statistics, tokenize

CAPTIONS = "captions.jsonl"
BUILT_IN = {"scenes": dataset.CLASSES}  # class lists by name
LONGEST_CAPTION = 10_000  # characters; more is another kind of file
NUM_CLUSTERS = 20
SAMPLE_SIZE = 100_000  # captions of each set that are clustered, or fewer
LARGEST, EXAMPLES = 5, 10  # clusters shown, captions shown of each
SEED = 0


def compare(
    captions: str,
    *,
    classes: str | None = None,
    embedding: str | None = None,
    clusters: int | None = None,
) -> dict[str, Any]:
    """Compares the sets of "NAME=PATH,NAME=PATH"; returns the contents of captions.json.

    `classes` is as `load_classes` takes them, `embedding` the name or folder of a
    Sentence-Transformers model (the built-in n-grams if None), `clusters` their number.

    Raises:
      UserError: a file, name or number that is not what it should be.
    """
    paths: dict[str, pathlib.Path] = {}
    for part in captions.split(","):
        name, equals, path = part.partition("=")
        if not (equals and name and path):
            raise UserError(f"--captions: found {part!r}, expected NAME=PATH,NAME=PATH")
        if name in paths:
            raise UserError(f"--captions: the name {name!r} is there twice")
        paths[name] = pathlib.Path(path)
    class_names = None if classes is None else load_classes(classes, BUILT_IN)
    embed = embed_captions if embedding is None else sentence_transformer(embedding)
    sets = {name: read_captions(path) for name, path in paths.items()}
    sample_size = min(SAMPLE_SIZE, *(len(captions) for captions in sets.values()))
    if clusters and clusters > sample_size:
        raise UserError(
            f"--clusters={clusters}: found {sample_size} captions in the smallest set, "
            "expected at least one a cluster"
        )
    num_clusters = clusters or min(NUM_CLUSTERS, sample_size)
    with Progress("report", 1 + len(sets), "steps") as progress:
        balanced = balance(
            sets, num_clusters=num_clusters, sample_size=sample_size, seed=SEED, embed=embed
        )
        progress.add(1)
        figures_of = {}
        for name, path in paths.items():
            figures = _figures(sets[name], balanced[name], class_names)
            figures_of[name] = {"path": str(path), **figures}
            progress.add(1)
    return {
        "sets": figures_of,
        "largest_clusters": _largest_clusters(balanced),
        "num_classes": class_names and len(class_names),
        "settings": {
            "embedding": embedding or "hashed n-grams",
            "clusters": num_clusters,
            "sample_size": sample_size,
            "seed": SEED,
        },
    }


def read_captions(path: pathlib.Path) -> list[str]:
    """The captions of a set, in order.

    Raises:
      UserError: nothing there, nothing in it, or something other than captions.
    """
    if path.is_dir() and _holds_pairs(path):
        from synth2_jax.data.records import read_pairs

        captions = [pair.caption for pair in read_pairs(path)]
    elif path.is_dir():
        if not (path / CAPTIONS).is_file():
            raise UserError(f"{path}: expected {CAPTIONS} or finished pairs in this folder")
        return read_captions(path / CAPTIONS)
    elif path.suffix == ".jsonl":
        rows = read_json_lines(path, surrogates=True)  # the page shows them as escapes
        captions = [row.get("caption") for row in rows]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}, expected text") from error
        captions = [stripped for line in text.split("\n") if (stripped := line.strip())]
    for number, caption in enumerate(captions, start=1):
        if not isinstance(caption, str):
            raise UserError(f'{path}: row {number} has no text under "caption"')
        if len(caption) > LONGEST_CAPTION:
            raise UserError(
                f"{path}: caption {number} has {len(caption)} characters, expected at most "
                f"{LONGEST_CAPTION}: is this one caption a line?"
            )
    if not captions:
        raise UserError(f"{path}: no captions in it")
    return captions


def _holds_pairs(folder: pathlib.Path) -> bool:
    from synth2_jax.data import records

    try:
        manifest = json.loads((folder / records.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == records.FORMAT


def _figures(
    captions: Sequence[str], balanced: SetBalance, class_names: Sequence[str] | None
) -> dict[str, Any]:
    """Returns a set's entry in captions.json. Clusters and n-grams are those of its sample."""
    words, sample = tokenize(captions), tokenize(balanced.sample)
    statistics, counts = n_gram_statistics(sample), np.bincount(words.lengths_N)
    return {
        "captions": len(captions),
        "unique": len(set(captions)) / len(captions),
        "words": {
            "mean": float(words.lengths_N.mean()),
            "median": float(np.median(words.lengths_N)),
            "histogram": [[length, int(count)] for length, count in enumerate(counts) if count],
        },
        "vocabulary": len(sample.vocabulary),
        "distinct": {str(order): share for order, share in statistics.distinct.items()},
        "most_frequent": {
            str(order): [list(row) for row in rows]
            for order, rows in statistics.most_frequent.items()
        },
        "top5_share": balanced.top_share,
        "entropy": balanced.entropy,
        "cluster_sizes": balanced.cluster_sizes.tolist(),
        "classes": class_names and _classes(words, class_names),
    }


def _classes(words: TokenizedCaptions, class_names: Sequence[str]) -> dict[str, Any]:
    """Counts the captions that name each class, with a summary of all classes."""
    captions_C = class_coverage(words, [*map(spellings, class_names)])
    return {
        "named": float(np.mean(captions_C > 0)),
        "fewest": int(captions_C.min()),
        "median": float(np.median(captions_C)),
        "entropy": entropy(captions_C) if captions_C.any() else 0.0,
        "captions": dict(zip(class_names, captions_C.tolist(), strict=True)),
    }


def spellings(class_name: str) -> list[str]:
    """Returns the names of a class and their plurals; commas divide synonyms, as in ImageNet."""
    synonyms = filter(None, map(str.strip, class_name.split(",")))
    return [f"{form}{end}" for one in synonyms for form in forms(one) for end in ("", "s", "es")]


def _largest_clusters(sets: Mapping[str, SetBalance]) -> list[dict[str, Any]]:
    """Clusters that hold most of all samples, each with captions drawn from it at random."""
    sizes_K = sum(one.cluster_sizes for one in sets.values())
    clusters = []
    for cluster in np.argsort(-sizes_K, kind="stable")[:LARGEST]:
        members = list(
            dict.fromkeys(
                (name, one.sample[row])
                for name, one in sets.items()
                for row in np.flatnonzero(one.labels == cluster)
            )
        )
        rows = np.random.default_rng(SEED).permutation(len(members))[:EXAMPLES]
        share = {
            name: float(one.cluster_sizes[cluster] / len(one.sample)) for name, one in sets.items()
        }
        examples = [list(members[row]) for row in np.sort(rows)]
        clusters.append({"share": share, "examples": examples})
    return clusters
