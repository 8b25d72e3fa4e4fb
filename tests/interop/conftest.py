"""Checkpoints of full size that take no disk, and the configs that know them."""

import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from synth2_jax.config import build
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig

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
