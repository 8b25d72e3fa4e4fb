import dataclasses
import pathlib

import ml_dtypes
import numpy as np
import pytest

from synth2_jax.data import pair_writer, records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.text.vocabulary import load_vocabulary, vocabulary_path

CAPTIONS = (
    "a red circle",
    "two blue squares",
    "a small green ring on the left",
    "a large yellow triangle",
    "a red square above a blue circle",
)


def make_pairs(count, source="real", num_tokens=4, codebook_size=512):
    rng = np.random.default_rng(len(source))  # other pictures for other sources
    return [
        records.Pair(
            key=f"{source}-{i:03d}",
            image_tokens=rng.integers(0, codebook_size, num_tokens),
            caption=CAPTIONS[i % len(CAPTIONS)],
            source=source,
        )
        for i in range(count)
    ]


def encode(pair, width):
    """The pair with features bf16[t, E] that its caption alone determines."""
    num_tokens = len(load_vocabulary("scenes").encode(pair.caption)) + 1
    rng = np.random.default_rng(len(pair.caption))
    features = rng.normal(size=(num_tokens, width)).astype(ml_dtypes.bfloat16)
    return dataclasses.replace(pair, text_features=features)


@pytest.fixture
def text_encoder():
    """text_encoder(fingerprint="enc-b") -> what a manifest says of such a text encoder."""

    def describe(**changes):
        return {
            "fingerprint": "enc-a",
            "width": 3,
            "text_length": 24,
            "vocabulary": records.sha256_of(pathlib.Path(vocabulary_path("scenes"))),
            "pairs": "pairs-a",
            **changes,
        }

    return describe


@pytest.fixture
def write_folder(tmp_path):
    """write_folder("real", 12) -> the path of a folder of 12 pairs, in `num_shards` shards.

    With `text_encoder` their captions are encoded.
    """

    def write(source, count, *, name=None, num_shards=2, tokenizer="tok-a", **provenance):
        folder = tmp_path / (name or source)
        shape = {"num_image_tokens": 4, "codebook_size": 512, **provenance}
        pairs = make_pairs(count, source, shape["num_image_tokens"], shape["codebook_size"])
        if encoder := shape.get("text_encoder"):
            pairs = [encode(pair, encoder["width"]) for pair in pairs]
        pair_writer.write_pairs(
            folder, pairs, records.Provenance(tokenizer, **shape), num_shards=num_shards
        )
        return str(folder)

    return write


@pytest.fixture
def both(write_folder):
    """Three synthetic pairs to one real one."""
    return DataConfig(
        mixture="both",
        folders={"real": write_folder("real", 30), "synthetic": write_folder("synthetic", 50)},
        rates={"real": 1.0, "synthetic": 3.0},
        batch_size=8,
        text_length=24,
        shuffle_buffer=16,
    )


@pytest.fixture
def clean_registry():
    """Leaves SeqIO's registries as they were found."""
    import seqio

    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [dict(registry._REGISTRY) for registry in registries]
    for registry in registries:
        registry.reset()
    yield
    for registry, providers in zip(registries, before, strict=True):
        registry._REGISTRY = providers
