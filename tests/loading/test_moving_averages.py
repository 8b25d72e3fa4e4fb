"""What is loaded of a run with a moving average, and how to ask for its parameters themselves."""

import jax
import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.loading.derived import part_config
from synth2_jax.loading.trained import load_tokenizer, load_trained
from synth2_jax.testing.untrained_runs import STEP, write_untrained_run


def assert_params(trained, expected):
    jax.tree.map(np.testing.assert_array_equal, trained.params, expected)


@pytest.fixture
def run(tmp_path):
    """A run with an average, and what its parameters are without it."""
    write_untrained_run(tmp_path / "plain", "vlm")
    write_untrained_run(tmp_path / "run", "vlm", with_average=True)
    return tmp_path / "run", load_trained(tmp_path / "plain", "vlm").params


def averaged(params):
    """Half of what is trained: the tokenizer and the language model are frozen."""
    halves = jax.tree.map(lambda leaf: leaf / 2, params["vlm"])
    frozen = params["vlm"]["language_model"]
    return {"tokenizer": params["tokenizer"], "vlm": halves | {"language_model": frozen}}


def test_a_path_gives_the_average_or_what_it_asks_for(run):
    path, params = run
    step = path / "checkpoints" / str(STEP)
    for given in (path, step, step / "average"):
        assert_params(load_trained(given, "vlm"), averaged(params))
    assert_params(load_trained(step / "params", "vlm"), params)


@pytest.mark.slow
def test_an_export_is_of_what_was_asked_for_and_inspect_says_what_there_is(run, tmp_path, capsys):
    path, params = run
    step = path / "checkpoints" / str(STEP)
    for given, name, expected in (
        (path, "averaged", averaged(params)),
        (step / "params", "raw", params),
    ):
        assert main.main(["synth2", "export", str(given), f"--output={tmp_path / name}"]) == 0
        assert_params(load_trained(tmp_path / name, "vlm"), expected)
        capsys.readouterr()
        assert main.main(["synth2", "inspect", str(given), "--fingerprints"]) == 0
        text = capsys.readouterr().out
        assert load_trained(tmp_path / name, "vlm").fingerprint("vlm") in text
        (line,) = [line for line in text.splitlines() if line.startswith("moving average ")]
        assert " arrays " in line


def test_a_part_of_a_checkpoints_item_is_known_by_its_path(tmp_path):
    write_untrained_run(tmp_path, "tokenizer", with_average=True)
    step = tmp_path / "checkpoints" / str(STEP)
    assert part_config("tokenizer", str(step / "params"), {})["codebook_size"] == 64
    fingerprints = {
        load_tokenizer(path).fingerprint("tokenizer") for path in (tmp_path, step / "params")
    }
    assert len(fingerprints) == 2


def test_an_average_that_is_not_there_is_one_line_that_names_the_key(tmp_path, capfd):
    write_untrained_run(tmp_path, "vlm")
    step = tmp_path / "checkpoints" / str(STEP)
    config, key = "--config=configs/scenes/evaluate.py", f"--config.vlm={step}/average"
    assert main.main(["synth2", "evaluate", config, f"--workdir={tmp_path / 'out'}", key]) == 2
    assert capfd.readouterr().err == (
        f"synth2: {key}: found a checkpoint without a moving average, expected one of a run with "
        f"--config.train.ema_decay. Give {step} for the parameters themselves\n"
    )
