import collections
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import seqio

from synth2_jax import config as config_lib
from synth2_jax.data import mixtures, pipeline, preprocessors, records, tasks
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import DamagedError, UserError
from synth2_jax.sharding import DataLayout
from synth2_jax.text.vocabulary import train_vocabulary, vocabulary_path

pytestmark = pytest.mark.usefixtures("clean_registry")


@pytest.fixture
def both(write_folder):
    """Three synthetic pairs to one real one."""
    return DataConfig(
        mixture="both",
        folders={"real": write_folder("real", 30), "synthetic": write_folder("synthetic", 50)},
        rates={"real": 1.0, "synthetic": 3.0},
        batch_size=8,
        text_length=24,
        shuffle_buffer=16,
    )


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def user_error(pattern):
    """One line that matches."""
    return pytest.raises(UserError, match=rf"\A.*{pattern}.*\Z")


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [
        (
            "vlm",
            {
                "image_tokens": ((8, 4), "int32"),
                "text_tokens": ((8, 24), "int32"),
                "loss_mask": ((8, 24), "bool"),
                "is_synthetic": ((8,), "bool"),
            },
        ),
        (
            "generator",
            {
                "image_tokens": ((8, 4), "int32"),
                "text_tokens": ((8, 24), "int32"),
                "text_mask": ((8, 24), "bool"),
            },
        ),
        ("language_model", {"text_tokens": ((8, 24), "int32"), "loss_mask": ((8, 24), "bool")}),
    ],
)
def test_batches_are_as_the_models_take_them(both, model_name, expected):
    batch = next(pipeline.train_iterator(both, model_name))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == expected


def test_scenes_images(monkeypatch):
    from synth2_jax.domains.scenes import dataset

    monkeypatch.setitem(dataset.SPLITS, "images", 5)
    config = DataConfig(mixture="scenes_images", batch_size=4)
    batch = next(pipeline.train_iterator(config, "tokenizer"))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((4, 32, 32, 3), np.float32)
    }
    assert -1 <= batch["image"].min() < 0 < batch["image"].max() <= 1


def test_the_seed_alone_decides_the_batches(both):
    first, again = (take(pipeline.train_iterator(both, "vlm"), 30) for _ in range(2))
    assert_same(first, again)
    other = take(pipeline.train_iterator(dataclasses.replace(both, seed=1), "vlm"), 3)
    with pytest.raises(AssertionError):
        assert_same(first[:3], other)


def test_sources_are_counted_and_follow_the_rates(both):
    iterator = pipeline.train_iterator(both, "vlm")
    flags = np.concatenate([batch["is_synthetic"] for batch in take(iterator, 250)])
    counts = collections.Counter("synthetic" if flag else "real" for flag in flags)
    assert iterator.source_counts == counts
    spread = (0.75 * 0.25 / flags.size) ** 0.5
    assert abs(flags.mean() - 0.75) < 4 * spread


def test_the_examples_of_the_last_batch_are_known(both):
    iterator = pipeline.train_iterator(both, "vlm")
    for batch in take(iterator, 3):
        flags = batch["is_synthetic"].tolist()
    assert [key.startswith("synthetic") for key in iterator.last_keys] == flags


def test_images_keep_their_captions(both):
    """Shuffling and mixing move whole examples."""
    known = {
        tuple(pair.image_tokens.tolist()): (pair.caption, pair.source)
        for folder in both.folders.values()
        for pair in records.read_pairs(folder)
    }
    vocabulary = pipeline_vocabulary()
    for batch in take(pipeline.train_iterator(both, "vlm"), 20):
        for i, tokens in enumerate(batch["image_tokens"].tolist()):
            caption, source = known[tuple(tokens)]
            kept = batch["text_tokens"][i][batch["loss_mask"][i]]
            assert vocabulary.decode(kept) == caption
            assert batch["is_synthetic"][i] == (source == "synthetic")


def pipeline_vocabulary():
    from synth2_jax.text.vocabulary import load_vocabulary

    return load_vocabulary("scenes")


@pytest.mark.parametrize("before", [0, 1, 23])
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


def layouts(count):
    """Layouts for so many processes of one device each, which share no rows."""
    return [DataLayout((index,), count, index, count) for index in range(count)]


def processes(config, count):
    """The iterators of so many processes."""
    return [pipeline.train_iterator(config, "vlm", layout=layout) for layout in layouts(count)]


def together(iterators, count):
    """Batches put together from the rows of all processes."""
    parts = zip(*(take(iterator, count) for iterator in iterators), strict=True)
    return [{name: np.concatenate([p[name] for p in rows]) for name in rows[0]} for rows in parts]


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_batches_are_the_same_on_any_number_of_processes(both, count):
    """Also on more processes than there are shards."""
    assert_same(together(processes(both, count), 6), together(processes(both, 1), 6))


@pytest.mark.slow
def test_after_a_change_of_processes_the_data_goes_on_exactly(both):
    alone = pipeline.train_iterator(both, "vlm")
    take(alone, 5)
    four = processes(both, 4)
    for part in four:
        message = part.restart(alone.get_state(), 5)
        assert message == "resuming the data exactly: skipping 40 examples"
        assert part.source_counts == alone.source_counts
    assert_same(together(four, 3), take(alone, 3))
    # And again, from a position that was itself restarted.
    states = [part.get_state() for part in four]
    again = processes(both, 4)
    for part, state in zip(again, states, strict=True):
        part.set_state(state)
    expected = take(alone, 3)
    assert_same(together(again, 3), expected)
    two = processes(both, 2)
    for part in two:
        part.restart(states[0], 8)
    assert_same(together(two, 3), expected)


@pytest.mark.slow
def test_no_example_of_an_epoch_is_lost_or_seen_twice_when_processes_change(both):
    config = dataclasses.replace(both, mixture="synthetic", rates={}, num_epochs=1, batch_size=6)

    def keys(parts, count):
        found = []
        for _ in range(count):
            for part in parts:
                next(part)
                found += part.last_keys
        return found

    parts, found = processes(config, 2), []
    for step, count in ((3, 3), (5, 1), (7, 6)):
        found += keys(parts, step - len(found) // 6)
        state, parts = parts[0].get_state(), processes(config, count)
        for part in parts:
            part.restart(state, step)
    found += keys(parts, 1)
    for part in parts:  # all of them end together
        assert list(part) == []
    assert len(found) == 48 and len(set(found)) == 48  # two of 50 are no batch of 6


@pytest.mark.slow
def test_rates_follow_a_schedule(both):
    """From real pairs alone to synthetic ones alone, between steps 10 and 30."""
    config = dataclasses.replace(
        both, rates={"real": ((10, 1.0), (30, 0.0)), "synthetic": ((10, 0.0), (30, 1.0))}
    )
    iterator = pipeline.train_iterator(config, "vlm")
    shares = [batch["is_synthetic"].mean() for batch in take(iterator, 60)]
    assert max(shares[:10]) == 0 and min(shares[31:]) == 1
    assert 0.3 < np.mean(shares[10:30]) < 0.7
    assert np.mean(shares[10:17]) < np.mean(shares[23:30])

    # Two processes, and a run that was stopped in between, follow the same schedule.
    expected = together(processes(config, 1), 40)
    two = processes(config, 2)
    assert_same(together(two, 20), expected[:20])
    states = [part.get_state() for part in two]
    again = processes(config, 2)
    for part, state in zip(again, states, strict=True):
        part.set_state(state)
    assert_same(together(again, 20), expected[20:])


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"real": ((0, 1.0), (0, 2.0)), "synthetic": 1.0}, "rising ones"),
        ({"real": ((0, -1.0),), "synthetic": 1.0}, "numbers of 0 or more"),
        ({"real": ((0, float("nan")),), "synthetic": 1.0}, "numbers of 0 or more"),
        ({"real": "often", "synthetic": 1.0}, "expected a rate or"),
        ({"real": (), "synthetic": 1.0}, "expected a rate or"),
        ({"real": ((0, 0.0),), "synthetic": 1.0}, "expected a number above 0"),
        (
            {"real": ((0, 1.0), (5, 0.0)), "synthetic": ((0, 1.0), (5, 0.0))},
            "a rate of 0 for every task at step 5",
        ),
        ({"real": 0.0, "synthetic": 1.0}, "expected a number above 0"),
        ({"real": float("nan"), "synthetic": 1.0}, "expected a number above 0"),
        ({"real": -1.0, "synthetic": 1.0}, "expected a number above 0"),
    ],
)
def test_unfit_rates(both, rates, message):
    with user_error(message):
        pipeline.train_iterator(dataclasses.replace(both, rates=rates), "vlm")


def test_text_tokens_are_counted_by_source(both):
    iterator = pipeline.train_iterator(both, "vlm")
    expected = collections.Counter()
    for batch in take(iterator, 4):
        for row, synthetic in zip(batch["loss_mask"], batch["is_synthetic"], strict=True):
            expected["synthetic" if synthetic else "real"] += int(row.sum())
    assert iterator.source_tokens == dict(expected)
    assert iterator.totals["data/real_tokens"] == expected["real"]
    assert iterator.totals["data/real_examples"] == iterator.source_counts["real"]
    resumed = pipeline.train_iterator(both, "vlm")
    resumed.set_state(iterator.get_state())
    assert resumed.totals == iterator.totals


def test_tokens_beyond_the_models_are_named(both):
    good = pipeline.train_iterator(both, "vlm", limits={"image_tokens": 512})
    take(good, 10)
    small = pipeline.train_iterator(both, "vlm", limits={"image_tokens": 300})
    message = "example '(real|synthetic)-0.*: found image_tokens .*expected 0 to 299"
    with user_error(message):
        take(small, 10)
    with user_error(message):
        list(pipeline.eval_batches(both, "vlm", limits={"image_tokens": 300}))


@pytest.mark.parametrize("count, missing", [(1, ("deal", "schedule", "vocabulary")), (2, ())])
def test_a_position_of_an_older_version_opens(both, count, missing):
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
    resumed.set_state(old.getvalue())
    assert_same(take(resumed, 5), take(iterator, 5))


@pytest.mark.slow
def test_shards_of_their_own_start_anew_after_a_change_of_processes(both):
    """From a seed of the step, so that no two parts of a run see the data in the same order."""
    both = dataclasses.replace(both, deal="shards")
    alone = pipeline.train_iterator(both, "vlm")
    first = take(alone, 5)

    def of_two(index):
        return pipeline.train_iterator(both, "vlm", layout=layouts(2)[index])

    halves = [of_two(index) for index in (0, 1)]
    for half in halves:
        assert "a new order of the data starts here" in half.restart(alone.get_state(), 5)
        assert half.source_counts == alone.source_counts
    rows = [batch["image_tokens"] for half in halves for batch in take(half, 1)]
    assert [len(part) for part in rows] == [len(first[0]["image_tokens"]) // 2] * 2
    fresh = take(of_two(0), 1)[0]["image_tokens"]
    assert not np.array_equal(rows[0], fresh)  # another order than the run began with

    state, expected = halves[0].get_state(), take(halves[0], 20)
    again = of_two(0)
    again.set_state(state)
    assert_same(take(again, 20), expected)


_RUN = """
import itertools, os, pathlib, pickle, sys
from synth2_jax.data import pipeline
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
    import pickle
    import shutil

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
    log = []
    with open(tmp_path / "log", "rb") as file:
        for _ in range(8 + 10):
            log.append(pickle.load(file))
    assert_same(log[:8], straight[:8])
    assert_same(log[8:], straight[5:15])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 16}, "saved with batch_size 8, this run has 16"),
        ({"seed": 5}, "saved with seed 0, this run has 5"),
        ({"rates": {"real": 1.0, "synthetic": 1.0}}, "saved with rates"),
        ({"text_length": 30}, "saved with text_length 24, this run has 30"),
    ],
)
def test_a_position_of_other_data_is_refused(both, change, message):
    state = pipeline.train_iterator(both, "vlm").get_state()
    other = pipeline.train_iterator(dataclasses.replace(both, **change), "vlm")
    with user_error(message):
        other.set_state(state)


def test_a_position_of_other_pairs_is_refused(both, write_folder):
    state = pipeline.train_iterator(both, "vlm").get_state()
    folders = {**both.folders, "real": write_folder("real", 31, name="more")}
    with user_error("saved with folders"):
        changed = dataclasses.replace(both, folders=folders)
        pipeline.train_iterator(changed, "vlm").set_state(state)
    with pytest.raises(DamagedError, match="these bytes are not one"):
        pipeline.train_iterator(both, "vlm").set_state(b"12")


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


@pytest.mark.parametrize(
    "order", [{"deal": "examples", "num_epochs": 1}, {"deal": "shards", "shuffle_buffer": 1}]
)
def test_processes_read_disjoint_parts(both, order):
    """With as many shards as processes, and with fewer."""
    config = dataclasses.replace(both, mixture="real", rates={}, batch_size=6, **order)
    for count in (2, 3):
        parts = [
            {
                tuple(tokens)
                for batch in take(
                    pipeline.train_iterator(config, "vlm", layout=layouts(count)[index]),
                    4,
                )
                for tokens in batch["image_tokens"].tolist()
            }
            for index in range(count)
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    with user_error("batch_size: found 6.*multiple of the 4 parts"):
        pipeline.train_iterator(config, "vlm", layout=layouts(4)[0])


def test_evaluation_is_one_pass_in_order(both):
    config = dataclasses.replace(both, rates={}, mixture="real")
    batches = list(pipeline.eval_batches(config, "vlm", with_keys=True))
    assert [batch["valid"].sum() for batch in batches] == [8, 8, 8, 6]
    keys = np.concatenate([batch["key"][batch["valid"]] for batch in batches])
    assert keys.tolist() == [f"real-{i:03d}" for i in range(30)]
    last = batches[-1]
    assert last["text_tokens"].shape == (8, 24)
    assert not last["loss_mask"][6:].any() and last["loss_mask"][:6].any(axis=1).all()
    np.testing.assert_array_equal(last["image_tokens"][6:], last["image_tokens"][[5, 5]])
    assert "key" not in next(pipeline.eval_batches(config, "vlm"))


def test_evaluation_of_a_mixture_reads_all_its_tasks(both):
    batches = pipeline.eval_batches(both, "vlm", with_keys=True)
    keys = np.concatenate([batch["key"][batch["valid"]] for batch in batches])
    assert len(keys) == len(set(keys)) == 80


def test_processes_evaluate_the_same_number_of_batches(both):
    config = dataclasses.replace(both, rates={}, mixture="real", batch_size=14)
    parts = [
        list(pipeline.eval_batches(config, "vlm", layout=layout, with_keys=True))
        for layout in layouts(2)
    ]
    assert [len(part) for part in parts] == [3, 3]
    assert [batch["valid"].sum() for batch in parts[1]] == [7, 7, 0]
    keys = [key for part in parts for batch in part for key in batch["key"][batch["valid"]]]
    assert sorted(keys) == [f"real-{i:03d}" for i in range(30)]


def test_a_users_module_brings_a_mixture(both, tmp_path, monkeypatch):
    """Several of a user's own lines, over shards of theirs, mixed with a folder of the config."""
    (tmp_path / "my_tasks_for_a_test.py").write_text(
        f"""
import functools
import seqio
import tensorflow as tf
from synth2_jax.data import preprocessors, tasks

seqio.TaskRegistry.add(
    "my_task",
    source=seqio.FileDataSource(
        tf.data.TFRecordDataset, {{"train": "{both.folders["synthetic"]}/*.tfrecord"}}
    ),
    preprocessors=[functools.partial(preprocessors.decode_pairs, prompt="Output:")],
    output_features=tasks.pair_features("scenes"),
)
seqio.MixtureRegistry.add("my_mixture", [("my_task", 3.0), ("real", 1.0)])
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = dataclasses.replace(
        both,
        folders={"real": both.folders["real"]},
        rates={},
        modules="my_tasks_for_a_test",
        mixture="my_mixture",
    )
    iterator = pipeline.train_iterator(config, "vlm")
    flags = np.concatenate([batch["is_synthetic"] for batch in take(iterator, 100)])
    assert abs(flags.mean() - 0.75) < 4 * (0.75 * 0.25 / flags.size) ** 0.5
    state, expected = iterator.get_state(), take(iterator, 5)
    resumed = pipeline.train_iterator(config, "vlm")
    resumed.set_state(state)
    assert_same(take(resumed, 5), expected)


def test_a_task_of_another_vocabulary_is_refused(both, tmp_path):
    """Its ids would be other words to the model, which would learn them without a word."""
    other = tmp_path / "other.model"
    other.write_bytes(train_vocabulary(["a red circle", "a blue square"] * 9, 300))
    copy = tmp_path / "copy.model"
    copy.write_bytes(pathlib.Path(vocabulary_path("scenes")).read_bytes())
    tasks.add_pairs_task("mine", both.folders["real"], "scenes")
    mixtures.add_mixture("my_mixture", {"mine": 1.0})

    def start(vocabulary, mixture, model_name="vlm"):
        config = DataConfig(
            mixture=mixture, vocabulary=str(vocabulary), batch_size=8, text_length=24
        )
        for read in (pipeline.train_iterator, pipeline.eval_batches):
            next(iter(read(config, model_name)))

    for mixture in ("mine", "my_mixture"):
        start("scenes", mixture)
        start(copy, mixture)
        with user_error(
            rf"config.data.vocabulary: found {other} \(300 pieces\), but the captions of task "
            r"'mine' have the vocabulary .*scenes.model \(512 pieces\). Give both the same"
        ):
            start(other, mixture)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('return dataset.map(lambda x: {"a": x["none"]})', "line 5: KeyError: 'none'"),
        (
            "return dataset.map(lambda x: {**x, 'key': tf.reshape(x['key'], [3])})",
            "line 5: ValueError: Cannot reshape a tensor with 1 elements to shape",
        ),
        ("return dataset.map(fail)", "line 9: RuntimeError: of two lines"),
        ("return dataset.no_such_method()", "line 5: AttributeError: .* no attribute"),
        (
            "return dataset.map(lambda x: {**x, 'key': tf.ensure_shape("
            "tf.py_function(fail, [x['key']], tf.string), [])})",
            "task 'failing': RuntimeError: of two",
        ),
    ],
)
def test_an_error_in_a_users_task_keeps_its_cause(both, tmp_path, monkeypatch, body, told):
    (tmp_path / "failing_task.py").write_text(
        f"""import functools, seqio, tensorflow as tf
from synth2_jax.data import preprocessors, tasks

def broken(dataset):
    {body}


def fail(example):
    raise RuntimeError("of two\\nlines")

seqio.TaskRegistry.add(
    "failing",
    source=seqio.FileDataSource(
        tf.data.TFRecordDataset, {{"train": "{both.folders["real"]}/*.tfrecord"}}
    ),
    preprocessors=[functools.partial(preprocessors.decode_pairs, prompt=""), broken],
    output_features=tasks.pair_features("scenes"),
)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "failing_task", raising=False)
    config = dataclasses.replace(
        both, folders={}, rates={}, modules="failing_task", mixture="failing"
    )
    with user_error(told):
        next(pipeline.train_iterator(config, "vlm"))


def test_pairs_of_another_tokenizer_are_refused(both, write_folder):
    pipeline.train_iterator(both, "vlm", tokenizer_fingerprint="tok-a")
    for read in (pipeline.train_iterator, pipeline.eval_batches):
        with user_error("tok-a.*tok-z"):
            read(both, "vlm", tokenizer_fingerprint="tok-z")


def test_unfit_configs(both, write_folder, tmp_path):
    def start(model_name="vlm", **changes):
        next(pipeline.train_iterator(dataclasses.replace(both, **changes), model_name))

    start()
    with user_error("'bohth'.*did you mean 'both'"):
        start(rates={}, mixture="bohth")
    with user_error("no split 'tran'; did you mean 'train'"):
        start(split="tran")
    with user_error("data.mixture: none given, with 2 folders"):
        start(mixture="", rates={})
    with user_error("'generater'.*did you mean 'generator'"):
        start("generater")
    with user_error("task 'real': feature 'image' is missing, the tokenizer needs uint8, rank 3"):
        start("tokenizer")
    with user_error("fewer examples than the 64 of one batch"):
        start(mixture="real", rates={}, batch_size=64, num_epochs=1)
    with user_error("no pairs, the source is empty"):
        write_folder("real", 0, name="empty")
    (tmp_path / "empty.tfrecord").touch()
    seqio.TaskRegistry.add(
        "nothing",
        source=seqio.FileDataSource(
            tf.data.TFRecordDataset, {"train": str(tmp_path / "empty.tfrecord")}
        ),
        preprocessors=[functools.partial(preprocessors.decode_pairs, prompt="")],
        output_features=tasks.pair_features("scenes"),
    )
    with user_error("task 'nothing': no examples in split 'train'"):
        start(mixture="nothing", rates={})
    wide = write_folder("synthetic", 5, name="wide", num_image_tokens=9)
    with user_error("task 'synthetic': image_tokens of length 9, the tasks before it have 4"):
        start(folders={**both.folders, "synthetic": wide})
    with user_error("no manifest.json"):
        start(folders={"real": "/nowhere"})
    with user_error("config.data.folders.real: no folder of pairs given"):
        start(folders={"real": ""})


def test_a_caption_without_targets_is_named(both):
    with user_error("example '.*-0.*text_length=2 is too short"):
        next(pipeline.train_iterator(dataclasses.replace(both, text_length=2), "vlm"))
    with user_error("example 'real-000'"):
        config = dataclasses.replace(both, text_length=2, mixture="real", rates={})
        next(pipeline.eval_batches(config, "vlm"))


def test_a_damaged_shard_is_one_line(both):
    for path in pathlib.Path(both.folders["real"]).glob("*.tfrecord"):
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)
    with user_error("a shard is damaged or missing"):
        take(pipeline.train_iterator(both, "vlm"), 30)


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


def test_the_config_is_checked():
    section = {"folders": {"real": "/r"}, "rates": {"real": 1}, "modules": ["a", "b"]}
    config = config_lib.build(DataConfig, section, "config.data")
    assert (dict(config.folders), dict(config.rates)) == ({"real": "/r"}, {"real": 1})
    assert config.module_names == ("a", "b")
    assert dataclasses.replace(config, modules="a, b").module_names == ("a", "b")
    with user_error("config.data.*unknown source 'sequio'; did you mean 'seqio'"):
        config_lib.build(DataConfig, {"source": "sequio"}, "config.data")


def test_fake_batches_need_no_tensorflow():
    script = """
import sys, jax, numpy as np
from synth2_jax.data import pipeline
spec = {"text_tokens": jax.ShapeDtypeStruct((2, 3), np.int32)}
config = pipeline.DataConfig(source="fake")
iterator = pipeline.train_iterator(config, "language_model", batch_spec=spec)
assert next(iterator)["text_tokens"].shape == (2, 3)
assert not {"tensorflow", "seqio"} & set(sys.modules)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    with user_error("config.data.source=fake: needs the shapes"):
        pipeline.train_iterator(DataConfig(source="fake"), "vlm")
    with user_error("config.data.source=fake: has no end"):
        pipeline.eval_batches(DataConfig(source="fake"), "vlm")


def test_no_accelerator_is_taken_from_jax():
    from synth2_jax.data.tensorflow_cpu import tf

    assert tf.config.get_visible_devices("GPU") == []
    assert tf.config.get_visible_devices("TPU") == []
