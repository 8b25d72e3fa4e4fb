"""Checkpoints of full size that take no disk, their configs, and what tokenizers compute."""

import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from synth2_jax.config import build
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def published(monkeypatch) -> Callable[..., VQTokenizerConfig]:
    """`(name, *arguments)`: the config of a public tokenizer in configs/imagenet/models.py."""
    monkeypatch.syspath_prepend(str(ROOT))
    models = importlib.import_module("configs.imagenet.models")
    return lambda name, *given: build(VQTokenizerConfig, getattr(models, name)(*given))


@pytest.fixture
def sparse_safetensors() -> Callable[[Path, Mapping[str, tuple[int, ...]]], Path]:
    """`(path, shapes by name)`: writes a .safetensors file of float32 zeros that is all a hole."""

    def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return path

    return write


@pytest.fixture(scope="session")
def check_parameters() -> Callable[..., None]:
    """`(found, ours)`: compares a tree with arrays by path, of which layers are stacked."""

    def check(found, ours):
        found = traverse_util.flatten_dict(found, sep="/")
        assert {re.sub(r"/layers_\d+/", "/layers/", name) for name in found} == ours.keys()
        for name, array in found.items():
            layer = re.search(r"/layers_(\d+)/", name)
            wanted = ours[re.sub(r"/layers_\d+/", "/layers/", name)]
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, wanted[int(layer[1])] if layer else wanted, name)

    return check


@pytest.fixture(scope="session")
def encode_decode() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`(config, params, image)`: ids i32[B,N] of f32[B,H,W,3] in [-1, 1], and pixels of the ids."""

    def run(config, params, image):
        @jax.jit
        def apply(params, image):
            tokenizer, variables = VQTokenizer(config), {"params": params}
            ids = tokenizer.apply(variables, image, method="encode")
            return ids, tokenizer.apply(variables, ids, method="decode")

        found = apply(jax.tree.map(np.asarray, params), np.asarray(image))
        return tuple(map(np.asarray, found))

    return run


@pytest.fixture
def same_pictures(encode_decode, parity) -> Callable[..., None]:
    """Compares ids and pixels with those of a tokenizer's own code, pixels as that decodes them."""

    def check(what, against, config, params, image, ids, pixels, limit=1e-3, least=10):
        found_ids, found = encode_decode(config, params, image)
        low, high = config.pixel_range
        assert len(np.unique(ids)) >= least
        different = np.sum(found_ids != ids)
        parity(what, against, f"code ids that differ, of {found_ids.size}", different, 0)
        worst = np.abs((found + 1) * (high - low) / 2 + low - pixels).max()
        parity(what, against, "pixels, max abs difference", worst, limit)

    return check
