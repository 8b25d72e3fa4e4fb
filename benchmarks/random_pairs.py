"""Folders of pairs to read: random tokens with captions of Scenes."""

import pathlib

import numpy as np

from synth2_jax.data import pair_writer, records
from synth2_jax.domains.scenes import dataset


def write_pairs(
    folder: pathlib.Path,
    source: str,
    *,
    num_pairs: int,
    num_tokens: int,
    num_codes: int,
    num_shards: int,
) -> None:
    """Pairs of a `source` of `records.SOURCES`; what is there already is left alone."""
    captions = [caption for _, caption in dataset.texts(5000)]
    provenance = records.Provenance("benchmark", num_tokens, num_codes)
    rng = np.random.default_rng(len(source))
    writer = pair_writer.PairWriter(folder, provenance, num_shards=num_shards)
    for shard in writer.missing():
        numbers = range(num_pairs * shard // num_shards, num_pairs * (shard + 1) // num_shards)
        writer.write_shard(
            shard,
            (
                records.Pair(
                    f"{source}-{number:09d}-0",
                    rng.integers(0, num_codes, num_tokens),
                    captions[number % len(captions)],
                    source,
                )
                for number in numbers
            ),
        )
    writer.finish()
