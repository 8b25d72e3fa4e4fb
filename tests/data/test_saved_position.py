"""Tests of saved positions: training resumes exactly, and a position of other data is refused."""

import dataclasses
import io
import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from synth2_jax.data import pipeline, saved_position
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import ChangedError, DamagedError, UserError
from synth2_jax.sharding import DataLayout
from synth2_jax.testing.batches import assert_same, layouts, take
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.vocabulary import train_vocabulary, vocabulary_path

pytestmark = pytest.mark.usefixtures("clean_registry")


@pytest.mark.parametrize("before", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)), 23])
def test_a_restored_position_goes_on_exactly(both, before):
    straight = pipeline.train_iterator(both, "vlm")
    take(straight, before)
    state, counts = straight.get_state(), straight.source_counts
    expected = take(straight, 20)  # beyond an epoch of either task

    resumed = pipeline.train_iterator(both, "vlm")
    take(resumed, 3)  # whatever it read before is forgotten
    resumed.set_state(state)
    assert resumed.source_counts == counts
    assert_same(take(resumed, 20), expected)
    assert resumed.source_counts == straight.source_counts


@pytest.mark.parametrize("count, missing", [(1, ("deal", "schedule", "vocabulary")), (2, ())])
def test_a_position_of_an_older_version_opens(both, caplog, count, missing):
    """From before there was a choice, and from when numbers of processes decided who reads what."""
    layout = layouts(count)[-1]
    iterator = pipeline.train_iterator(both, "vlm", layout=layout)
    take(iterator, 3)
    old = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(iterator.get_state())) as now, zipfile.ZipFile(old, "w") as to:
        for name in now.namelist():
            contents = now.read(name)
            if name == "position.json":
                header = json.loads(contents)
                for key in ("reads", *missing):
                    del header["identity"][key]
                header["identity"]["processes"] = [count - 1, count]
                del header["skipped"], header["source_tokens"]
                contents = json.dumps(header)
            to.writestr(name, contents)
    resumed = pipeline.train_iterator(both, "vlm", layout=layout)
    with caplog.at_level("WARNING", logger="absl"):
        resumed.set_state(old.getvalue())
    assert "skipping" not in caplog.text  # it is of the same rows
    assert_same(take(resumed, 5), take(iterator, 5))


_RUN = """
import itertools, os, pathlib, pickle, sys
from synth2_jax.data import pipeline, saved_position
config, workdir, kill_at = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
iterator = pipeline.train_iterator(config, "vlm")
if (workdir / "state").exists():
    iterator.set_state((workdir / "state").read_bytes())
for step in itertools.count():
    if step == kill_at:
        os.kill(os.getpid(), 9)
    if step == 5 and kill_at:
        (workdir / "state").write_bytes(iterator.get_state())
    if step == 10:
        break
    with open(workdir / "log", "ab") as file:
        pickle.dump(next(iterator), file)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_exactly_in_another_with_its_folders_moved(both, tmp_path):
    def run(config, kill_at):
        arguments = tmp_path / "arguments"
        arguments.write_bytes(pickle.dumps((config, tmp_path, kill_at)))
        command = [sys.executable, "-c", _RUN, str(arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    straight = take(pipeline.train_iterator(both, "vlm"), 15)
    assert run(both, kill_at=8).returncode == -9
    moved = {
        name: shutil.move(folder, tmp_path / f"moved-{name}")
        for name, folder in both.folders.items()
    }
    done = run(dataclasses.replace(both, folders=moved), kill_at=None)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "log", "rb") as file:
        log = [pickle.load(file) for _ in range(8 + 10)]
    assert_same(log[:8], straight[:8])
    assert_same(log[8:], straight[5:15])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 16}, "batch_size 8, this run has 16"),
        ({"seed": 5}, "seed 0, this run has 5"),
        ({"rates": {"real": 1.0, "synthetic": 1.0}}, "rates"),
        ({"text_length": 30}, "text_length 24, this run has 30"),
        ({"folders": None}, "folders"),
    ],
)
def test_a_position_of_other_data_is_refused(both, write_folder, change, message):
    state = pipeline.train_iterator(both, "vlm").get_state()
    if "folders" in change:
        change = {"folders": {**both.folders, "real": write_folder("real", 31, name="more")}}
    other = pipeline.train_iterator(dataclasses.replace(both, **change), "vlm")
    with user_error(f"saved with {message}"):
        other.set_state(state)
    with pytest.raises(DamagedError, match="these bytes are not one"):
        other.set_state(b"12")


def test_a_damaged_position_leaves_an_iterator_that_takes_a_good_one(both):
    iterator = pipeline.train_iterator(both, "vlm")
    next(iterator)
    early = iterator.get_state()
    expected = next(iterator)
    late = bytearray(iterator.get_state())
    late[len(late) // 2] ^= 4  # inside TensorFlow's part
    resumed = pipeline.train_iterator(both, "vlm")
    with pytest.raises(Exception) as error:
        resumed.set_state(bytes(late))
    assert not isinstance(error.value, UserError)  # which would mean other data
    resumed.set_state(early)
    np.testing.assert_equal(next(resumed), expected)


def test_a_position_is_small(write_folder):
    """The examples that wait to be shuffled are nearly all of it."""
    shape = {"num_image_tokens": 256, "codebook_size": 8192}
    folder = write_folder("real", 1500, **shape)
    config = DataConfig(folders={"real": folder}, batch_size=64, shuffle_buffer=1000)
    iterator = pipeline.train_iterator(config, "vlm")
    take(iterator, 3)
    assert len(iterator.get_state()) < 4e6


def test_a_position_knows_the_vocabulary_whatever_its_path(both, tmp_path):
    state = pipeline.train_iterator(both, "vlm").get_state()
    (tmp_path / "moved.model").write_bytes(pathlib.Path(vocabulary_path("scenes")).read_bytes())
    (tmp_path / "other.model").write_bytes(train_vocabulary(["a red circle", "blue"] * 9, 290))
    moved, other = (
        pipeline.train_iterator(dataclasses.replace(both, vocabulary=str(path)), "vlm")
        for path in (tmp_path / "moved.model", tmp_path / "other.model")
    )
    moved.set_state(state)
    with user_error("saved with vocabulary '.{16}', this run has"):
        other.set_state(state)


@pytest.mark.slow
def test_other_rows_of_the_same_number_of_shards_go_on_exactly(both, caplog):
    """Two processes with two parts of the batch each, which then lie between each other's."""
    straight = take(pipeline.train_iterator(both, "vlm"), 6)
    halves = [DataLayout((0, 1), 4, 0, 2), DataLayout((0, 2), 4, 0, 2)]
    first = pipeline.train_iterator(both, "vlm", layout=halves[0])
    assert_same(take(first, 3), [{k: v[:4] for k, v in batch.items()} for batch in straight[:3]])
    again = pipeline.train_iterator(both, "vlm", layout=halves[1])
    with caplog.at_level("WARNING", logger="absl"):
        again.set_state(first.get_state())
    assert "resuming the data exactly: skipping 24 examples" in caplog.text
    expected = [{k: v[[0, 1, 4, 5]] for k, v in batch.items()} for batch in straight[3:]]
    assert_same(take(again, 3), expected)


def test_a_position_of_an_edited_pipeline_is_not_taken_for_a_damaged_one():
    """A damaged one would make the training set its checkpoint aside."""
    numbers = tf.data.Dataset.range(9)
    saved = iter(numbers.shuffle(3, seed=0).batch(2))
    next(saved)
    state = saved_position.pack(saved, {}, {})
    saved_position.restore(state, iter(numbers.shuffle(3, seed=0).batch(2)))
    with pytest.raises(ChangedError, match="--config.data: the steps that make the examples are"):
        saved_position.restore(state, iter(numbers.map(lambda x: x + 1).batch(2)))
