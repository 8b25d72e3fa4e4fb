"""The comparison of tensor groups shows its runs side by side, and how far they are apart."""

import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).resolve().parent.parent / "benchmarks" / "tensor_groups.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmarks_tensor_groups", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_stand_side_by_side(benchmark):
    one = [{"loss": 8.0, "grad_norm": 0.5}]
    other = [{"loss": 8.0, "grad_norm": 0.5005}]
    lines, largest = benchmark.table({(1, 1): one, (1, 2): one, (2, 1): other})
    assert [line.split() for line in lines[1:]] == [
        ["step", "1", "loss", "8.000000", "8.000000", "8.000000"],
        ["step", "1", "grad_norm", "0.500000", "0.500000", "0.500500"],
    ]
    assert lines[0].split("  ")[-1].strip() == "2 x 1, tensor=2"
    assert largest == pytest.approx(1e-3) and largest > benchmark.LIMIT
