"""The benchmark of the tokenizer: what it counts, on a tiny one."""

import importlib.util
import pathlib

import pytest

from synth2_jax import config as config_lib
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes
from synth2_jax.planning import model_flops

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = 2


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("benchmarks_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config():
    config = config_lib.load_config(str(ROOT / "configs" / "scenes" / "tokenizer.py:tiny"))
    with config.unlocked():
        config.model.tokenizer.update(filters=8, num_res_blocks=1, codebook_size=32)
    return config


def test_both_ways_are_timed_and_their_flops_are_the_formulas(benchmark, config):
    found = benchmark.measure(config, ROWS, repeats=1)
    tokenizer = config_lib.build(VQTokenizerConfig, config.model.tokenizer, "tokenizer")
    assert found["encode"]["flops"] == model_flops.encode_images(tokenizer, ROWS).total
    assert found["decode"]["flops"] == model_flops.decode_images(tokenizer, ROWS).total
    sizes = {path: leaf.size for path, leaf in parameter_shapes(tokenizer).items()}
    for way, other in (("encode", "decoder/"), ("decode", "encoder/")):
        row = found[way]
        assert row["images_per_second"] * row["seconds"] == pytest.approx(ROWS)
        assert row["flops_per_second"] * row["seconds"] == pytest.approx(row["flops"])
        weights = sum(size for path, size in sizes.items() if not path.startswith(other))
        assert row["bytes"] == 4 * weights + ROWS * (32 * 32 * 3 + 4 * 16)
