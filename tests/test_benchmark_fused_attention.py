"""The benchmark of the fused attention; XLA's attention takes the kernel's place on a CPU."""

import importlib.util
import math
import pathlib

import jax.numpy as jnp
import pytest

from synth2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "fused_attention.py"
    spec = importlib.util.spec_from_file_location("benchmarks_fused_attention", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(benchmark, monkeypatch):
    monkeypatch.setattr(
        benchmark,
        "CASES",
        {"to itself": (8, 8), "to a caption": (8, 4), "text to text, causal": (6, 6)},
    )
    return benchmark


def test_masks_have_queries_and_rows_that_see_nothing(small):
    assert small.mask_of("to itself", 3) is None
    caption = small.mask_of("to a caption", 5)
    assert caption[:, 0, 0].tolist()[:2] == [[False] * 4, [True] + [False] * 3]
    assert small.mask_of("text to text, causal", 2).sum(axis=-1).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_kernel_that_is_ours_is_timed(small):
    for case in small.CASES:
        found = small.measure(case, 5, 2, 8, rounds=1, implementation="xla")
        assert 0 < found["fused_error"] < 0.05 and 0 < found["ours_error"] < 0.05
        figures = small.figures_of(case, "5 x 2 heads of 8", found)
        assert len(figures) == 2 and all(figure.value > 0 for figure in figures)


@pytest.mark.parametrize("wrong", ["shifted", "nan"])
def test_a_kernel_that_is_not_ours_is_named(small, monkeypatch, wrong):
    def kernel(q, k, v, mask, implementation):
        out = small.dot_product_attention(q, k, v, mask=mask)
        return jnp.roll(out, 1, axis=1) if wrong == "shifted" else out * math.nan

    monkeypatch.setattr(small, "fused_attention", kernel)
    with pytest.raises(UserError, match="to a caption: the fused attention is .* from float32's"):
        small.measure("to a caption", 5, 2, 8, rounds=1)


def test_a_device_without_it_is_told(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark.sys, "argv", ["fused_attention.py"])
    with pytest.raises(UserError, match=r"cpu, head dim 64: has no fused attention"):
        benchmark.main()
