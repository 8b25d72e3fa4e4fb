"""Tests of saving, of what is found damaged, and of reading elsewhere."""

import dataclasses
import json
import os
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.sharding import DataLayout
from synth2_jax.testing.toy_objective import ToyObjective, toy_state
from synth2_jax.testing.untrained_runs import STEP, write_untrained_run
from synth2_jax.training import checkpoint_reader, checksums, train_state
from synth2_jax.training import checkpoints as checkpoints_lib
from synth2_jax.training.checkpoint_reader import (
    latest_step,
    read_arrays,
    read_description,
    restore_params,
)
from synth2_jax.training.checkpoints import Checkpoints

CONFIG = {"model": {"depth": 2}, "sizes": [1, 2]}
BUILT_ON = {"tokenizer": "0123456789abcdef"}


def save(checkpoints, state, batches=None, *metrics):
    batches = batches or FakeBatches(ToyObjective().batch_spec(2))
    checkpoints.save(state, batches, CONFIG, BUILT_ON, *metrics)


def at_step(state, step):
    return state.replace(step=jnp.int32(step))


def save_steps(workdir, state, steps, keep=5):
    """Saves parameters that are larger by the step."""
    batches = FakeBatches(ToyObjective().batch_spec(2))
    with Checkpoints(workdir, keep) as checkpoints:
        for step in steps:
            next(batches)
            params = jax.tree.map(lambda x, s=step: x + s, state.params)
            save(checkpoints, at_step(state, step).replace(params=params), batches)


def restore(workdir, layout, *accept):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(layout, *accept)


def names_in(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def damage(folder, pattern="d/*"):
    """Truncates every file of arrays in a step folder."""
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_what_is_restored_is_what_was_saved(tmp_path, optimizer):
    layout, state = toy_state(optimizer=optimizer)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(layout) is None and checkpoints.latest_step() is None
    save_steps(tmp_path, state, [0])
    restored = restore(tmp_path, layout)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    places = jax.tree.map(lambda leaf: leaf.sharding, restored.state)
    assert places == train_state.shardings(layout)
    assert (restored.iterator, restored.num_shards) == (b"1", 1)
    assert restored.config == CONFIG and restored.built_on == BUILT_ON


def test_the_last_ones_are_kept(tmp_path):
    save_steps(tmp_path, toy_state()[1], [1, 2, 3], keep=2)
    assert names_in(tmp_path) == ["2", "3"]


def test_the_best_are_kept_beside_the_newest(tmp_path):
    _, state = toy_state()
    with Checkpoints(tmp_path, keep=1, keep_best=2, best_metric="score") as checkpoints:
        for step, score in {1: 0.5, 2: 0.9, 3: 0.1, 4: None, 5: 0.2}.items():
            metrics = None if score is None else {"score": score, "other": -score}
            save(checkpoints, at_step(state, step), None, metrics)
        with pytest.raises(UserError, match="'score' is not measured; .*one of: scores"):
            save(checkpoints, at_step(state, 6), None, {"scores": 1.0})
    assert [name for name in names_in(tmp_path) if name.isdecimal()] == ["1", "2", "5"]


def test_a_truncated_checkpoint_is_named_and_set_aside_and_the_one_before_is_used(tmp_path, caplog):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1])
    for _ in range(3):  # its step can be saved again, and be damaged again
        save_steps(tmp_path, state, [2])
        assert int(restore(tmp_path, layout).state.step) == 2
        damage(tmp_path / "checkpoints" / "2")
        with caplog.at_level("WARNING", logger="absl"):
            restored = restore(tmp_path, layout)
        assert int(restored.state.step) == 1 and restored.iterator == b"1"
    assert caplog.text.count(f"{tmp_path / 'checkpoints' / '2'} cannot be read") == 3
    assert names_in(tmp_path) == ["1", "unreadable-2", "unreadable-2-2", "unreadable-2-3"]


def test_only_damaged_checkpoints_are_an_error_and_left_alone(tmp_path):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1])
    damage(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match=r"cannot read any of the steps \[1\]"):
        restore(tmp_path, layout)
    assert names_in(tmp_path) == ["1"]


def test_a_step_of_damaged_metadata_is_set_aside(tmp_path):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1, 2])
    path = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": "x"}))
    assert int(restore(tmp_path, layout).state.step) == 1
    assert names_in(tmp_path) == ["1", "unreadable-2"]


def test_what_cannot_be_gone_on_from_is_damaged_unless_it_is_of_other_data(tmp_path):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1, 2])

    def accept(restored):
        if restored.iterator == b"2":
            raise KeyError("num_batches")

    def refuse(restored):
        raise UserError("data position: saved with seed 0, this run has 1")

    with pytest.raises(UserError, match="with seed 0"):
        restore(tmp_path, layout, refuse)
    assert names_in(tmp_path) == ["1", "2"]
    assert int(restore(tmp_path, layout, accept).state.step) == 1
    assert names_in(tmp_path) == ["1", "unreadable-2"]


def test_one_flipped_bit_in_any_file_is_found_and_the_step_before_is_used(tmp_path, caplog):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1])
    folder = tmp_path / "checkpoints"
    files = [path for path in (folder / "1").rglob("*/*") if path.is_file()]
    names = [checksums.FILE, *(str(path.relative_to(folder / "1")) for path in files)]
    assert len(names) > 15
    for step, name in enumerate(names, start=2):  # in each another one
        shutil.copytree(folder / "1", folder / str(step))
        path = folder / str(step) / name
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)
        reads = {
            "params": [
                lambda step=step: restore_params(tmp_path, step),
                lambda step=step: next(read_arrays(tmp_path, step, ["head/bias"])),
            ],
            **dict.fromkeys(
                ("config", "fingerprints"), [lambda step=step: read_description(tmp_path, step)]
            ),
        }
        for read in reads.get(name.split("/")[0], []):
            with pytest.raises(UserError, match=f"checkpoints/{step}: .*damaged: {name}"):
                read()
    with caplog.at_level("WARNING", "absl"):
        restored = restore(tmp_path, layout)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y + 1), restored.state.params, state.params
    )
    assert [name for name in names_in(tmp_path) if name.isdecimal()] == ["1"]
    for step, name in enumerate(names[1:], start=3):
        assert f"{step} cannot be read, trying the one before: damaged: {name}" in caplog.text


def test_a_checkpoint_without_checksums_still_restores_and_says_so_once(tmp_path, caplog):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1])
    (tmp_path / "checkpoints" / "1" / checksums.FILE).unlink()
    with caplog.at_level("WARNING", "absl"):
        assert int(restore(tmp_path, layout).state.step) == 1
        restore_params(tmp_path)
    assert caplog.text.count("checkpoints/1: saved by an older version without checksums") == 1


def test_several_processes_check_each_file_once(tmp_path, monkeypatch):
    save_steps(tmp_path, toy_state()[1], [1])
    read = []
    monkeypatch.setattr(checksums, "_read", lambda path: read.append(path.name) or [0, 0])
    monkeypatch.setattr(checksums, "on_all_processes", lambda ok: ok)
    step_folder = tmp_path / "checkpoints" / "1"
    with pytest.raises(checksums.DamagedError):
        checksums.check(step_folder)
    by_one, read[:] = sorted(read), []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with pytest.raises(checksums.DamagedError):
            checksums.check(step_folder, shared=True)
    assert sorted(read) == by_one and len(by_one) > 15


def test_all_files_of_a_step_are_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync
    step = tmp_path / "checkpoints" / "1"

    def record(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}").replace(".orbax-checkpoint-tmp", "")
        if not step.exists():
            synced.add(path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save_steps(tmp_path, toy_state()[1], [1])
    # Orbax writes these two of the step itself afterwards; no restore needs what is in them.
    afterwards = {step / "_CHECKPOINT_METADATA", step / "commit_success.txt"}
    assert {str(path) for path in [step, *step.rglob("*")] if path not in afterwards} <= synced


@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_what_reads_back_changed_is_no_success(tmp_path, monkeypatch, group_bytes):
    """The first save of a run is compared before it goes on, the last before it ends."""
    monkeypatch.setattr(checkpoints_lib, "_READ_BACK_BYTES", group_bytes)
    _, state = toy_state()
    with Checkpoints(tmp_path / "good") as checkpoints:
        save(checkpoints, state)
        checkpoints.read_back(state)
        with pytest.raises(RuntimeError, match=r"\['train'\]\['rng'\] reads back changed"):
            checkpoints.read_back(state.replace(rng=state.rng.at[0].add(1)))
    monkeypatch.setattr(checksums, "write", damage)  # as a folder whose files cannot be found
    failed = pytest.raises(RuntimeError, match="step 0 could not be saved: .*checkpoint: none")
    with Checkpoints(tmp_path / "bad") as checkpoints, failed:
        save(checkpoints, state)


def test_a_save_that_tmpdir_stops_blames_tmpdir(tmp_path):
    def full():
        raise UserError("TMPDIR: No space left on device. Set TMPDIR to a folder with room")

    stopped = pytest.raises(UserError, match="could not be saved: TMPDIR: No space left on device")
    with Checkpoints(tmp_path) as checkpoints, stopped:
        save(checkpoints, toy_state()[1], types.SimpleNamespace(get_state=full))


def test_a_failed_save_prints_nothing_of_its_own(tmp_path, monkeypatch):
    """TensorStore reports every further write to an event loop that is closed by then."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    checkpoints_lib._report_failed_saves_once.cache_clear()
    Checkpoints(tmp_path)
    texts = ("Event loop is closed", "of another kind")
    echo, other = (types.SimpleNamespace(exc_value=RuntimeError(text)) for text in texts)
    sys.unraisablehook(echo)
    sys.unraisablehook(other)
    assert printed == [other]


@pytest.mark.parametrize("name", ["run[1]", "run*", "what?"])
def test_a_folder_that_orbax_takes_for_a_pattern_is_refused_before_training(tmp_path, name):
    with pytest.raises(UserError) as error:
        Checkpoints(tmp_path / name)
    assert str(error.value).startswith(f"--workdir={tmp_path / name}: found '*', '?' or '[' in ")
    assert not (tmp_path / name).exists()
    # One that was moved under such a name can be read.
    save_steps(tmp_path / "run", toy_state()[1], [1])
    (tmp_path / "run").rename(tmp_path / name)
    restore_params(tmp_path / name)


def test_another_model_or_optimizer_is_one_line_and_loses_no_checkpoint(tmp_path):
    layout, state = toy_state()
    bias = {"bias": jnp.zeros(5), "kernel": state.params["head"]["kernel"]}
    save_steps(tmp_path / "model", state.replace(params=state.params | {"head": bias}), [1])
    with pytest.raises(UserError, match=r"head/bias has shape \(5,\), this run's is \(4,\)"):
        restore(tmp_path / "model", layout)
    save_steps(tmp_path / "tx", state, [1, 2])
    with pytest.raises(UserError) as error:
        restore(tmp_path / "tx", toy_state(optimizer="adafactor")[0])
    assert "checkpoints/2/train: opt_state/" in str(error.value) and "\n" not in str(error.value)
    assert names_in(tmp_path / "tx") == ["1", "2"]


def test_a_position_saved_with_other_data_shards_says_so(tmp_path):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1])
    folder = tmp_path / "checkpoints" / "1" / "iterator"
    (folder / "0-of-1.bin").rename(folder / "0-of-3.bin")
    (folder / "2-of-3.bin").write_bytes(b"that of process 2")
    (folder.parent / checksums.FILE).unlink()
    restored = restore(tmp_path, layout)
    assert (restored.iterator, restored.num_shards) == (b"1", 3)


def test_the_first_process_of_a_data_shard_saves_its_position(tmp_path):
    """Here one process after the other takes the place of all four of a mesh of two shards."""
    layout, state = toy_state()
    position = types.SimpleNamespace(get_state=lambda: b"the second half")
    second = DataLayout(parts=(1,), num_parts=2, shard=1, num_shards=2)
    with Checkpoints(tmp_path, data_layout=second) as checkpoints:
        save(checkpoints, state, position)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in (folder / "0/iterator").glob("*.bin")] == ["1-of-2.bin"]
    other = dataclasses.replace(second, is_first=False)
    with Checkpoints(tmp_path, data_layout=other) as checkpoints:
        restored = checkpoints.restore(layout)
        save(checkpoints, at_step(state, 1), position)
    assert (restored.iterator, restored.num_shards) == (b"the second half", 2)
    assert not list((folder / "1/iterator").glob("*.bin"))


def test_parameters_alone_come_as_numpy_or_where_they_are_asked_to(tmp_path):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1, 2])
    expected = jax.tree.map(lambda x: x + 2, state.params)
    params = restore_params(tmp_path)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    placed = restore_params(tmp_path / "checkpoints", abstract=layout.params)
    assert placed["head"]["bias"].sharding == layout.params["head"]["bias"].sharding
    for found in (params, placed):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert read_description(tmp_path, 2) == (CONFIG, BUILT_ON)
    older = restore_params(tmp_path, step=1)
    np.testing.assert_array_equal(older["head"]["bias"], state.params["head"]["bias"] + 1)


def test_a_missing_checkpoint_names_the_path_and_what_was_found(tmp_path):
    with pytest.raises(UserError, match="/nowhere: no such folder, expected the workdir"):
        restore_params(tmp_path / "nowhere")
    (tmp_path / "photos" / "2024").mkdir(parents=True)  # a number, but no checkpoint
    with pytest.raises(UserError, match=r"photos: found \['2024'\], expected checkpoint steps"):
        latest_step(tmp_path / "photos")
    save_steps(tmp_path, toy_state()[1], [1])
    (tmp_path / "checkpoints" / "20").mkdir()
    (tmp_path / "checkpoints" / "30").touch()
    (tmp_path / "checkpoints" / "²").mkdir()  # a digit to Python, but no number
    assert latest_step(tmp_path) == 1
    with pytest.raises(UserError, match=r"found no step 7, it has \[1\]"):
        restore_params(tmp_path, step=7)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("damaged", ["d/*", "_METADATA", "config/metadata", "fingerprints/*"])
def test_parameters_that_cannot_be_read_are_one_line(tmp_path, damaged, placed):
    layout, state = toy_state()
    save_steps(tmp_path, state, [1])
    folder = tmp_path / "checkpoints" / "1"
    (folder / checksums.FILE).unlink()  # as an older version left it
    damage(folder, damaged)
    with pytest.raises(UserError) as error:
        read_description(tmp_path, 1)
        restore_params(tmp_path, abstract=layout.params if placed else None)
    assert str(error.value).startswith(f"{folder}: this checkpoint cannot be read (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "_sharding"])
def test_damaged_metadata_is_named_before_it_is_read(tmp_path, name):
    write_untrained_run(tmp_path, "tokenizer")
    path = tmp_path / "checkpoints" / str(STEP) / "params" / name
    path.write_bytes(path.read_bytes().replace(b"params", b"parans") + b" ")
    with pytest.raises(UserError, match=f"damaged: params/{name}"):
        checkpoint_reader.saved_arrays(tmp_path, STEP)
