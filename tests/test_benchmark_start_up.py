"""The start of a process in parts that add up, and each cache the process that it belongs to."""

import importlib.util
import json
import pathlib
import subprocess
import time

import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ["import", "build", "open", "initialize", "compile", "first step"]

# A generator, a VLM and a language model, as small as they get.
SMALL = """
from configs.scenes import generator, language_model, vlm

WIDTH = {"embed_dim": 8, "num_heads": 1, "head_dim": 8, "mlp_dim": 8}


def get_config(arg):
    known = {"generator": generator, "vlm": vlm, "language_model": language_model}
    config = known[arg].get_config("tiny")
    if arg == "generator":
        config.model.generator.text_encoder.update(num_layers=1, **WIDTH)
        config.model.generator.maskgit.update(num_layers=1, **WIDTH)
    elif arg == "vlm":
        config.model.vlm.language_model.update(num_layers=1, **WIDTH)
        config.model.vlm.resampler.update(num_latents=2, **WIDTH)
        config.model.tokenizer.update(filters=8, num_res_blocks=0)
    else:
        config.model.language_model.update(num_layers=1, **WIDTH)
    return config
"""


@pytest.fixture(scope="module")
def start_up():
    path = ROOT / "benchmarks" / "start_up.py"
    spec = importlib.util.spec_from_file_location("benchmarks_start_up", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    return str(tmp_path / "small.py")


def test_the_parts_are_all_of_the_time_up_to_the_first_step(start_up, small, monkeypatch):
    monkeypatch.setattr(start_up, "make_writers", lambda *arguments: [])  # may import PyTorch
    started = time.time() - 100.0
    found = start_up.parts(config_lib.load_config(f"{small}:language_model"), 4, started)
    assert list(found) == [*PARTS, "in all"] and min(found.values()) > 0
    assert found["in all"] == pytest.approx(sum(found[part] for part in PARTS))
    assert 100 < found["in all"] <= time.time() - started
    assert found["import"] == pytest.approx(100, abs=1)


def test_the_second_process_of_a_pair_finds_what_the_first_has_compiled(start_up, monkeypatch):
    seen = []

    def in_a_process(config, batch_size, cache):
        cache = pathlib.Path(cache)
        seen.append((config, batch_size, sorted(file.name for file in cache.iterdir())))
        (cache / "program").touch()
        return {"compile": float(len(seen))}

    monkeypatch.setattr(start_up, "in_a_process", in_a_process)
    found = start_up.measure("a.py", 2, repeats=3)
    assert seen == [("a.py", 2, []), ("a.py", 2, ["program"])] * 3
    assert found == {"empty": {"compile": 3.0}, "warm": {"compile": 4.0}}


def test_a_process_that_fails_says_why(start_up, monkeypatch):
    def run(command, **kwargs):
        return subprocess.CompletedProcess(
            command, 3, "", "trace\nValueError: out of memory\n  hint\n"
        )

    monkeypatch.setattr(start_up.subprocess, "run", run)
    with pytest.raises(
        UserError, match=r"--config=a\.py: its process ended with 3: ValueError: out of memory"
    ):
        start_up.in_a_process("a.py", 2, "cache")


def test_a_process_is_told_its_cache_and_when_it_started(start_up, monkeypatch):
    given = {}

    def run(command, env, **kwargs):
        given.update(command=command, cache=env["JAX_COMPILATION_CACHE_DIR"])
        return subprocess.CompletedProcess(command, 0, 'a line before\n{"compile": 1.5}\n', "")

    monkeypatch.setattr(start_up.subprocess, "run", run)
    before = time.time()
    assert start_up.in_a_process("a.py", 2, "cache") == {"compile": 1.5}
    assert given["cache"] == "cache" and "--batch=2" in given["command"]
    started = float(given["command"][-1].removeprefix("--started="))
    assert before <= started <= time.time()


def test_figures_say_where_the_time_goes(start_up):
    seconds = {
        "empty": {"import": 2.0, "compile": 3.0, "in all": 5.0, "sampler": 4.0},
        "warm": {"import": 2.0, "compile": 1.0, "in all": 3.0, "sampler": 0.5},
    }
    empty, warm, sampler = start_up.figures_of(seconds, "scenes vlm")
    assert (empty.value, empty.unit, empty.note) == (5.0, "s", "import 2, compile 3")
    assert (warm.value, warm.note) == (3.0, "import 2, compile 1")
    assert (sampler.value, sampler.note) == (4.0, "with a warm cache 0.5 s")
    for found in seconds.values():
        del found["sampler"]  # of a model that has none
    assert len(start_up.figures_of(seconds, "scenes tokenizer")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["generator", "vlm"])
def test_a_process_of_its_own_compiles_a_sampler_too(start_up, small, tmp_path, model):
    found = start_up.in_a_process(f"{small}:{model}", 2, str(tmp_path / "cache"))
    assert list(found) == [*PARTS, "in all", "sampler"] and found["sampler"] > 0
    assert json.dumps(found)
