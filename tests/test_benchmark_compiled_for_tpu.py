"""benchmarks/compiled_for_tpu.py: figures of literal plans, and small steps by the compiler."""

import importlib.util
import pathlib
import sys

import pytest

from synth2_jax import sharding
from synth2_jax.config import load_config
from synth2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "compiled_for_tpu.py"
    spec = importlib.util.spec_from_file_location("benchmarks_compiled_for_tpu", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for its annotations
    spec.loader.exec_module(module)
    return module


def test_figures_of_a_step(benchmark):
    case = benchmark.Case("vlm", "v5e:4x4", "data=4,fsdp=4", 64)
    plan = {
        "flops_ratio": 1.02,
        "collective_bytes_per_chip": 4e6,
        "gathered_bytes_per_chip": {"activations": 2e6, "ids": 5e3},
        "overlapped_share": 0.75,
    }
    assert [str(figure) for figure in benchmark.step_figures(case, plan)] == [
        "compiled / model FLOPs, vlm, v5e:4x4, data 4 fsdp 4: 1.02 x; asked: <= 1.05",
        "gathers of activations, vlm, v5e:4x4, data 4 fsdp 4: 2 MB; of 4 MB a chip sends, "
        "0.005 MB for ids of tokens; asked: 0",
        "collectives beside matrix products, vlm, v5e:4x4, data 4 fsdp 4: 75 %; of 4 MB a chip "
        "sends",
    ]


def test_a_sampler_that_is_no_loop_shows(benchmark):
    looped = [
        {"num_steps": 8, "loops": [24, 8], "instructions": 1000},
        {"num_steps": 24, "loops": [24, 24], "instructions": 1000},
    ]
    figure = benchmark.sampler_figure("v5e:2x2", looped)
    assert str(figure) == (
        "sampler's program, 24 over 8 steps, v5e:2x2: 1 x; 1000 instructions; "
        "rounds of loops: 8 -> 24"
    )
    unrolled = [
        {"num_steps": 8, "loops": [24], "instructions": 1000},
        {"num_steps": 24, "loops": [24], "instructions": 3000},
    ]
    figure = benchmark.sampler_figure("v5e:2x2", unrolled)
    assert figure.value == 3 and figure.note.endswith("rounds of loops: none change")


def test_the_papers_layouts_are_there(benchmark):
    layouts = {
        (case.name, tuple(part.split("=")[0] for part in case.mesh.split(",")))
        for case in benchmark.CASES
    }
    axes = (("data",), ("fsdp",), ("data", "fsdp"))
    assert layouts == {(name, layout) for name in ("vlm", "generator") for layout in axes}


def test_an_unknown_name_is_told(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compiled_for_tpu.py", "--only=vml"])
    with pytest.raises(UserError) as error:
        benchmark.main()
    expected = "--only: unknown 'vml'; did you mean 'vlm'? one of: generator, sampler, vlm"
    assert str(error.value) == expected


# --- with the TPU compiler ---


@pytest.mark.slow
def test_a_small_step(benchmark):
    config = load_config("configs/scenes/vlm.py:tiny")
    found = benchmark.measure(config, "v5e:2x2", "data=2,fsdp=2", 64)
    (ratio, activations, overlap) = benchmark.step_figures(
        benchmark.Case("vlm", "v5e:2x2", "data=2,fsdp=2", 64), found
    )
    assert 0.98 < ratio.value < 1.1
    assert 0 <= activations.value < found["collective_bytes_per_chip"] / 1e6
    assert 0 <= overlap.value <= 100


@pytest.mark.slow
def test_a_small_sampler_is_one_loop_over_its_steps(benchmark):
    found = benchmark.measure_sampler(
        load_config("configs/scenes/generator.py:tiny"),
        load_config("configs/scenes/synthesize.py"),
        "v5e:2x2",
        sharding.MeshConfig(),
        64,
        (5, 7),
    )
    assert [row["loops"].count(row["num_steps"]) for row in found] == [1, 1]
    assert found[0]["instructions"] == found[1]["instructions"]
