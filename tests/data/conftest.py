import numpy as np
import pytest

from synth2_jax.data import pair_writer, records

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


@pytest.fixture
def write_folder(tmp_path):
    """write_folder("real", 12) -> the path of a folder of 12 pairs, in `num_shards` shards."""

    def write(source, count, *, name=None, num_shards=2, tokenizer="tok-a", **provenance):
        folder = tmp_path / (name or source)
        shape = {"num_image_tokens": 4, "codebook_size": 512, **provenance}
        pairs = make_pairs(count, source, shape["num_image_tokens"], shape["codebook_size"])
        pair_writer.write_pairs(
            folder, pairs, records.Provenance(tokenizer, **shape), num_shards=num_shards
        )
        return str(folder)

    return write


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
