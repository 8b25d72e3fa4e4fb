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

from synth2_jax import sharding
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.sharding import DataLayout, MeshConfig
from synth2_jax.testing.toy_objective import ToyObjective
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
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer

CONFIG = {"model": {"depth": 2}, "sizes": [1, 2]}
BUILT_ON = {"tokenizer": "0123456789abcdef"}


@pytest.fixture
def mesh():
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def layout_and_state(mesh, toy=None, optimizer="adamw"):
    toy = toy or ToyObjective()
    tx = make_optimizer(OptimizerConfig(name=optimizer))
    layout = train_state.state_layout(toy, tx, mesh)
    return layout, train_state.create_train_state(toy, tx, layout, seed=1)


def save_steps(workdir, state, steps, keep=5):
    checkpoints = Checkpoints(workdir, keep)
    batches = FakeBatches(ToyObjective().batch_spec(2))
    for step in steps:
        next(batches)
        params = jax.tree.map(lambda x, s=step: x + s, state.params)
        saved = state.replace(step=jnp.int32(step), params=params)
        checkpoints.save(saved, batches, CONFIG, BUILT_ON)
    checkpoints.close()


def damage(folder):
    """Truncates every file of arrays in a step folder."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_what_is_restored_is_what_was_saved(tmp_path, mesh, optimizer):
    layout, state = layout_and_state(mesh, optimizer=optimizer)
    save_steps(tmp_path, state, [0])
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(layout)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    places = jax.tree.map(lambda leaf: leaf.sharding, restored.state)
    assert places == train_state.shardings(layout)
    assert restored.iterator == b"1"
    assert restored.config == CONFIG and restored.built_on == BUILT_ON


def test_nothing_to_restore_is_none(tmp_path, mesh):
    layout, _ = layout_and_state(mesh)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(layout) is None and checkpoints.latest_step() is None


def test_the_last_ones_are_kept(tmp_path, mesh):
    _, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1, 2, 3], keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert names == ["2", "3"]


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(tmp_path, mesh, caplog):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1, 2])
    damage(tmp_path / "checkpoints" / "2")
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level("WARNING", logger="absl"):
        restored = checkpoints.restore(layout)
    assert f"{tmp_path / 'checkpoints' / '2'} cannot be read" in caplog.text
    assert int(restored.state.step) == 1 and restored.iterator == b"1"
    # The damaged folder is out of the way: its step can be saved again, and read.
    again = restored.state.replace(step=jnp.int32(2))
    checkpoints.save(again, FakeBatches({}), CONFIG, BUILT_ON)
    checkpoints.wait()
    assert int(checkpoints.restore(layout).state.step) == 2
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "unreadable-2").is_dir()


def flip_a_bit(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def test_one_flipped_bit_in_any_file_is_found_and_the_step_before_is_used(tmp_path, mesh, caplog):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    folder = tmp_path / "checkpoints"
    names = [path.relative_to(folder / "1") for path in (folder / "1").rglob("*/*")]
    names = [checksums.FILE, *(str(name) for name in names if (folder / "1" / name).is_file())]
    assert len(names) > 15
    for step, name in enumerate(names, start=2):  # in each another one
        shutil.copytree(folder / "1", folder / str(step))
        flip_a_bit(folder / str(step) / name)
        item = name.split("/")[0]
        if item in ("params", "config", "fingerprints"):
            with pytest.raises(UserError, match=f"checkpoints/{step}: .*damaged: {name}"):
                restore_params(tmp_path, step)
        if item == "params":
            with pytest.raises(UserError, match=f"damaged: {name}"):
                next(read_arrays(tmp_path, step, ["head/bias"]))
        if item in ("config", "fingerprints"):
            with pytest.raises(UserError, match=f"damaged: {name}"):
                read_description(tmp_path, step)
    with caplog.at_level("WARNING", "absl"), Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(layout)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y + 1), restored.state.params, state.params
    )
    assert sorted(path.name for path in folder.iterdir() if path.name.isdecimal()) == ["1"]
    for step, name in enumerate(names[1:], start=3):
        assert f"{step} cannot be read, trying the one before: damaged: {name}" in caplog.text


def test_what_is_damaged_twice_is_set_aside_twice(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    folder = tmp_path / "checkpoints"
    save_steps(tmp_path, state, [1])
    for _ in range(3):
        save_steps(tmp_path, state, [2])
        damage(folder / "2")
        with Checkpoints(tmp_path) as checkpoints:
            assert int(checkpoints.restore(layout).state.step) == 1
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["1", "unreadable-2", "unreadable-2-2", "unreadable-2-3"]


def test_a_step_of_damaged_metadata_is_set_aside(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1, 2])
    path = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": "x"}))
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(layout).state.step) == 1
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["1", "unreadable-2"]


def test_what_cannot_be_gone_on_from_is_damaged_unless_it_is_of_other_data(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1, 2])

    def accept(restored):
        if restored.iterator == b"2":
            raise KeyError("num_batches")

    def refuse(restored):
        raise UserError("data position: saved with seed 0, this run has 1")

    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="with seed 0"):
        checkpoints.restore(layout, refuse)
    assert (tmp_path / "checkpoints" / "2").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(layout, accept).state.step) == 1
    assert (tmp_path / "checkpoints" / "unreadable-2").is_dir()


def test_a_checkpoint_without_checksums_still_restores_and_says_so_once(tmp_path, mesh, caplog):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    (tmp_path / "checkpoints" / "1" / checksums.FILE).unlink()
    with caplog.at_level("WARNING", "absl"), Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(layout).state.step) == 1
        restore_params(tmp_path)
    assert caplog.text.count("checkpoints/1: saved by an older version without checksums") == 1


def test_several_processes_check_each_file_once(tmp_path, mesh, monkeypatch):
    _, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
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


def test_all_files_of_a_step_are_on_the_disk_before_it_has_its_name(tmp_path, mesh, monkeypatch):
    _, state = layout_and_state(mesh)
    synced, fsync = set(), os.fsync

    def record(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}").replace(".orbax-checkpoint-tmp", "")
        if not (tmp_path / "checkpoints" / "1").exists():
            synced.add(path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save_steps(tmp_path, state, [1])
    step = tmp_path / "checkpoints" / "1"
    # Orbax writes these two of the step itself afterwards; no restore needs what is in them.
    afterwards = {step / "_CHECKPOINT_METADATA", step / "commit_success.txt"}
    assert {str(path) for path in [step, *step.rglob("*")] if path not in afterwards} <= synced


@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_what_reads_back_changed_is_no_success(tmp_path, mesh, monkeypatch, group_bytes):
    """The first save of a run is compared before it goes on, the last before it ends."""
    monkeypatch.setattr(checkpoints_lib, "_READ_BACK_BYTES", group_bytes)
    layout, state = layout_and_state(mesh)
    batches = FakeBatches(ToyObjective().batch_spec(2))
    with Checkpoints(tmp_path / "good") as checkpoints:
        checkpoints.save(state, batches, CONFIG, BUILT_ON)
        checkpoints.read_back(state)
        changed = state.replace(rng=state.rng.at[0].add(1))
        with pytest.raises(RuntimeError, match=r"\['train'\]\['rng'\] reads back changed"):
            checkpoints.read_back(changed)
    monkeypatch.setattr(checksums, "write", damage)  # as a folder whose files cannot be found
    failed = pytest.raises(RuntimeError, match="step 0 could not be saved: .*checkpoint: none")
    with Checkpoints(tmp_path / "bad") as checkpoints, failed:
        checkpoints.save(state, batches, CONFIG, BUILT_ON)


def test_a_save_that_tmpdir_stops_blames_tmpdir(tmp_path, mesh, monkeypatch):
    def full():
        raise UserError("TMPDIR: No space left on device. Set TMPDIR to a folder with room")

    _, state = layout_and_state(mesh)
    batches = FakeBatches(ToyObjective().batch_spec(2))
    monkeypatch.setattr(batches, "get_state", full)
    stopped = pytest.raises(UserError, match="could not be saved: TMPDIR: No space left on device")
    with Checkpoints(tmp_path) as checkpoints, stopped:
        checkpoints.save(state, batches, CONFIG, BUILT_ON)


def test_a_failed_save_prints_nothing_of_its_own(tmp_path, monkeypatch):
    """TensorStore reports every further write to an event loop that is closed by then."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    checkpoints_lib._report_failed_saves_once.cache_clear()
    Checkpoints(tmp_path)
    echo, other = (
        types.SimpleNamespace(exc_value=RuntimeError(text))
        for text in ("Event loop is closed", "of another kind")
    )
    sys.unraisablehook(echo)
    sys.unraisablehook(other)
    assert printed == [other]


@pytest.mark.parametrize("name", ["run[1]", "run*", "what?"])
def test_a_folder_that_orbax_takes_for_a_pattern_is_refused_before_training(tmp_path, name):
    with pytest.raises(UserError) as error:
        Checkpoints(tmp_path / name)
    assert str(error.value).startswith(f"--workdir={tmp_path / name}: found '*', '?' or '[' in ")
    assert not (tmp_path / name).exists()


def test_a_folder_that_was_moved_under_such_a_name_can_be_read(tmp_path, mesh):
    _, state = layout_and_state(mesh)
    save_steps(tmp_path / "run", state, [1])
    (tmp_path / "run").rename(tmp_path / "run[1]")
    restore_params(tmp_path / "run[1]")


def test_only_damaged_checkpoints_are_an_error_and_left_alone(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    damage(tmp_path / "checkpoints" / "1")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"cannot read any of the steps \[1\]"):
        checkpoints.restore(layout)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_another_model_is_an_error_with_the_parameter(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    bias = {"bias": jnp.zeros(5), "kernel": state.params["head"]["kernel"]}
    save_steps(tmp_path, state.replace(params=state.params | {"head": bias}), [1])
    with pytest.raises(UserError, match=r"head/bias has shape \(5,\), this run's is \(4,\)"):
        Checkpoints(tmp_path).restore(layout)


def test_another_optimizer_is_an_error_of_one_line_and_loses_no_checkpoint(tmp_path, mesh):
    _, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1, 2])
    layout, _ = layout_and_state(mesh, optimizer="adafactor")
    with pytest.raises(UserError) as error:
        Checkpoints(tmp_path).restore(layout)
    assert "checkpoints/2/train: opt_state/" in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_a_position_saved_with_other_data_shards_says_so(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(layout).num_shards == 1
    folder = tmp_path / "checkpoints" / "1" / "iterator"
    (folder / "0-of-1.bin").rename(folder / "0-of-3.bin")
    (folder / "2-of-3.bin").write_bytes(b"that of process 2")
    (folder.parent / checksums.FILE).unlink()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(layout)
    assert (restored.iterator, restored.num_shards) == (b"1", 3)


def test_the_first_process_of_a_data_shard_saves_its_position(tmp_path, mesh):
    """Here one process after the other takes the place of all four of a mesh of two shards."""
    layout, state = layout_and_state(mesh)
    position = types.SimpleNamespace(get_state=lambda: b"the second half")
    second = DataLayout(parts=(1,), num_parts=2, shard=1, num_shards=2)
    with Checkpoints(tmp_path, data_layout=second) as checkpoints:
        checkpoints.save(state, position, CONFIG, BUILT_ON)
    folder = tmp_path / "checkpoints" / str(state.step) / "iterator"
    assert [path.name for path in folder.glob("*.bin")] == ["1-of-2.bin"]
    other = dataclasses.replace(second, is_first=False)
    with Checkpoints(tmp_path, data_layout=other) as checkpoints:
        restored = checkpoints.restore(layout)
        checkpoints.save(state.replace(step=state.step + 1), position, CONFIG, BUILT_ON)
    assert (restored.iterator, restored.num_shards) == (b"the second half", 2)
    assert not list((folder.parents[1] / str(state.step + 1) / "iterator").glob("*.bin"))


def test_the_best_are_kept_beside_the_newest(tmp_path, mesh):
    _, state = layout_and_state(mesh)
    scores = {1: 0.5, 2: 0.9, 3: 0.1, 4: None, 5: 0.2}
    with Checkpoints(tmp_path, keep=1, keep_best=2, best_metric="score") as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"score": score, "other": -score}
            batches = FakeBatches(ToyObjective().batch_spec(2))
            saved = state.replace(step=jnp.int32(step))
            checkpoints.save(saved, batches, CONFIG, BUILT_ON, metrics)
        with pytest.raises(UserError, match="'score' is not measured; .*one of: scores"):
            saved = state.replace(step=jnp.int32(6))
            checkpoints.save(saved, batches, CONFIG, BUILT_ON, {"scores": 1.0})
    found = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal())
    assert found == [1, 2, 5]


def test_parameters_alone_come_as_numpy_or_where_they_are_asked_to(tmp_path, mesh):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1, 2])
    expected = jax.tree.map(lambda x: x + 2, state.params)
    params, config, built_on = restore_params(tmp_path)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert config == CONFIG and built_on == BUILT_ON
    placed = restore_params(tmp_path / "checkpoints", abstract=layout.params)[0]
    assert placed["head"]["bias"].sharding == layout.params["head"]["bias"].sharding
    jax.tree.map(np.testing.assert_array_equal, placed, expected)
    older = restore_params(tmp_path, step=1)[0]
    np.testing.assert_array_equal(older["head"]["bias"], state.params["head"]["bias"] + 1)


def test_a_missing_checkpoint_names_the_path_and_what_was_found(tmp_path, mesh):
    with pytest.raises(UserError, match="/nowhere: no such folder, expected the workdir"):
        restore_params(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"found \['notes.txt'\], expected checkpoint steps"):
        latest_step(tmp_path)
    _, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    with pytest.raises(UserError, match=r"found no step 7, it has \[1\]"):
        restore_params(tmp_path, step=7)


def test_a_folder_of_digits_that_is_no_checkpoint_is_passed_over(tmp_path, mesh):
    _, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    (tmp_path / "checkpoints" / "20").mkdir()
    (tmp_path / "checkpoints" / "30").touch()
    (tmp_path / "checkpoints" / "²").mkdir()  # a digit to Python, but no number
    assert latest_step(tmp_path) == 1
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    with pytest.raises(UserError, match=r"photos: found \['2024'\], expected checkpoint steps"):
        restore_params(tmp_path / "photos")


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("damaged", ["d/*", "_METADATA", "config/metadata", "fingerprints/*"])
def test_parameters_that_cannot_be_read_are_one_line(tmp_path, mesh, damaged, placed):
    layout, state = layout_and_state(mesh)
    save_steps(tmp_path, state, [1])
    folder = tmp_path / "checkpoints" / "1"
    (folder / checksums.FILE).unlink()  # as an older version left it
    files = [path for path in folder.rglob(damaged) if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError) as error:
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
