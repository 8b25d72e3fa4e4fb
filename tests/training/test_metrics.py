"""Tests of merging and writing metrics."""

import io
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.training import metrics
from synth2_jax.training.metrics import JsonlWriter, ProgressWriter, TensorBoardWriter


def pair(total, count):
    return jnp.float32(total), jnp.float32(count)


def test_means_are_of_all_that_was_counted_not_of_means():
    merged = metrics.merge({"loss": pair(9, 9)}, {"loss": pair(3, 1)})
    assert metrics.to_scalars(merged) == {"loss": pytest.approx(1.2)}
    assert metrics.to_scalars({"bucket": pair(0, 0), "loss": pair(1, 2)}) == {"loss": 0.5}
    assert float(metrics.mean(pair(0, 0))) == 0.0
    assert float(metrics.mean(pair(1, 0.5))) == 2.0


def test_lines_are_json_appended_and_the_later_one_of_a_step_holds(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    for loss in (1.0, 0.5):
        writer = JsonlWriter(path)
        writer.write(2, {"loss": loss})
        assert json.loads(path.read_text().splitlines()[-1])["loss"] == loss  # flushed
        writer.write(1, {"loss": np.float32(3.0), "bad": float("nan")})
        writer.close()
    assert len(path.read_text().splitlines()) == 4
    assert '"bad": null' in path.read_text()
    lines = metrics.read_metrics(path)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3.0), (2, 0.5)]


def test_a_line_torn_by_a_kill_spoils_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    writer = JsonlWriter(path)
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [line["loss"] for line in metrics.read_metrics(path)] == [2.0, 1.0]


@pytest.mark.parametrize(
    "line", ["[1]", "3", '{"loss": 1.0}', '{"step": "1"}', '{"step": 1, "loss": "x"}']
)
def test_a_line_of_something_else_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": null}\n\xff\n' + f"{line}\n".encode())
    with pytest.raises(UserError, match=r"metrics.jsonl: line 3 is .*expected a step"):
        metrics.read_metrics(path)


def test_tensorboard_files_are_written_though_a_clock_is_set_back(tmp_path, monkeypatch):
    """tensorboardX's own writer waits for its thread, which died of it."""
    writer = TensorBoardWriter(tmp_path)
    now = metrics.time.time()
    for step in range(1, 30):  # more than its queue held
        monkeypatch.setattr("time.time", lambda step=step: now - 30 * 86400 * (step > 2))
        writer.write(step, {"train_loss": float(step)})
    writer.close()
    (events,) = tmp_path.glob("events.*")
    assert events.read_bytes().count(b"train_loss") == 29


def test_sums_are_brought_back_bit_by_bit():
    third = {"loss": pair(1 / 3, 7)}
    again = metrics.from_sums(json.loads(json.dumps(metrics.to_sums(third))))
    assert again["loss"][0].tobytes() == np.float32(1 / 3).tobytes()
    merged = metrics.merge(again, third)
    np.testing.assert_array_equal(merged["loss"], metrics.merge(third, third)["loss"])


def test_the_import_of_metrics_brings_no_pytorch():
    """tensorboardX imports it where it is installed, and everything imports metrics."""
    code = (
        "import sys, synth2_jax.training.metrics;"
        "assert not {'torch', 'tensorboardX'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Stream(io.StringIO):
    """A pipe, or a terminal."""

    def __init__(self, is_terminal=False):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.fixture
def shown(monkeypatch):
    """What ProgressWriter(total_steps) shows at steps 100 and 200, 50 seconds apart."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])

    def show(total_steps, is_terminal=False):
        stream = Stream(is_terminal)
        writer = ProgressWriter(total_steps, "train", stream)
        writer.write(100, {"loss": 2.0, "grad_norm": 1.0})
        now[0] += 50
        writer.write(200, {"loss": 1.0, "grad_norm": 1.0})
        writer.close()
        return stream.getvalue()

    return show


def test_progress_has_rate_and_time_left(shown):
    assert shown(400).splitlines() == [
        "train 100/400  loss 2",
        "train 200/400  loss 1  2 steps/s  1:40 left",
    ]
    assert "2:46:40 left" in shown(20_200)
    bar = shown(400, is_terminal=True)
    assert bar.count("\n") == 1 and bar.endswith("\n")
    assert "\r[##########..........] train 200/400  loss 1  2 steps/s  1:40 left" in bar


def test_a_closed_terminal_is_as_a_closed_pipe():
    stream = Stream(is_terminal=True)
    stream.flush = lambda: os.read(-1, 1)  # an OSError, as of a terminal that is gone
    writer = ProgressWriter(400, "train", stream)
    with pytest.raises(BrokenPipeError):
        writer.write(100, {"loss": 2.0})
    writer.close()


def test_a_full_disk_is_an_error_of_the_write_itself(tmp_path, monkeypatch):
    """tensorboardX's own writer met it in a thread, whose traceback nothing caught."""
    with pytest.raises(OSError, match="No space left on device"):
        JsonlWriter("/dev/full").write(1, {"loss": 2.0})
    writer = TensorBoardWriter(tmp_path)
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(writer._writer._py_recordio_writer, "_writer", full)
        with pytest.raises(OSError, match="No space left on device"):
            writer.write(1, {"loss": 2.0})
