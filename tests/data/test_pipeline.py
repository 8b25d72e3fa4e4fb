"""Tests of data configs, tasks of users, and their errors."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest

from synth2_jax import config as config_lib
from synth2_jax.data import mixtures, pipeline, tasks
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.testing.batches import assert_same, take
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.vocabulary import load_vocabulary, train_vocabulary, vocabulary_path

pytestmark = pytest.mark.usefixtures("clean_registry")


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (((3, 1.0), (2, 2.0)), "rising ones"),
        (((0, 1.0), (0, 2.0), (0, 3.0)), "rising ones"),
        (((0, -1.0),), "numbers of 0 or more"),
        (((0, float("nan")),), "numbers of 0 or more"),
        ("often", "expected a rate or"),
        ((), "expected a rate or"),
        (((0, 0.0),), "expected a number above 0"),
        (0.0, "expected a number above 0"),
        (float("nan"), "expected a number above 0"),
        (-1.0, "expected a number above 0"),
    ],
)
def test_unfit_rates(both, rates, message):
    config = dataclasses.replace(both, rates={"real": rates, "synthetic": 1.0})
    with user_error(f"--config.data.rates.real: .*{message}"):
        pipeline.train_iterator(config, "vlm")


def test_all_rates_may_not_be_0(both):
    falling = ((0, 1.0), (5, 0.0))
    config = dataclasses.replace(both, rates={"real": falling, "synthetic": falling})
    with user_error("--config.data.rates: .*a rate of 0 for every task at step 5"):
        pipeline.train_iterator(config, "vlm")


@pytest.fixture
def user_module(both, tmp_path, monkeypatch):
    """user_module(name, code) -> a config that imports it; the code may use TASK."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, code, **changes):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(IMPORTS + code)
        return dataclasses.replace(both, rates={}, modules=name, **changes)

    return write


IMPORTS = """import functools, seqio, tensorflow as tf
from synth2_jax.data import preprocessors, tasks
def add(name, folder, *more):
    files = {"train": f"{folder}/*.tfrecord"}
    decode = functools.partial(preprocessors.decode_pairs, prompt="Output:")
    seqio.TaskRegistry.add(
        name,
        source=seqio.FileDataSource(tf.data.TFRecordDataset, files),
        preprocessors=[decode, *more],
        output_features=tasks.pair_features("scenes"),
    )
"""


def test_a_users_module_brings_a_mixture(both, user_module):
    """Several of a user's own lines, over shards of theirs, mixed with a folder of the config."""
    code = f"""
add("my_task", {both.folders["synthetic"]!r})
seqio.MixtureRegistry.add("my_mixture", [("my_task", 3.0), ("real", 1.0)])
"""
    folders = {"real": both.folders["real"]}
    config = user_module("my_tasks_for_a_test", code, folders=folders, mixture="my_mixture")
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
            rf"--config.data.vocabulary: found {other} \(300 pieces\), but the captions of task "
            r"'mine' have the vocabulary .*scenes.model \(512 pieces\). Give both the same"
        ):
            start(other, mixture)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('return dataset.map(lambda x: {"a": x["none"]})', "line 13: KeyError: 'none'"),
        (
            "return dataset.map(lambda x: {**x, 'key': tf.reshape(x['key'], [3])})",
            "line 13: ValueError: Cannot reshape a tensor with 1 elements to shape",
        ),
        ("return dataset.map(fail)", "line 15: RuntimeError: of two lines"),
        ("return dataset.no_such_method()", "line 13: AttributeError: .* no attribute"),
        (
            "return dataset.map(lambda x: {**x, 'key': tf.ensure_shape("
            "tf.py_function(fail, [x['key']], tf.string), [])})",
            "--config.data.mixture: task 'failing': RuntimeError: of two",
        ),
    ],
)
def test_an_error_in_a_users_task_keeps_its_cause(both, user_module, body, message):
    code = f"""def broken(dataset):
    {body}
def fail(example):
    raise RuntimeError("of two\\nlines")
add("failing", {both.folders["real"]!r}, broken)
"""
    config = user_module("failing_task", code, folders={}, mixture="failing")
    with user_error(message):
        next(pipeline.train_iterator(config, "vlm"))


def test_pairs_of_another_tokenizer_are_refused(both, write_folder):
    pipeline.train_iterator(both, "vlm", tokenizer_fingerprint="tok-a")
    for read in (pipeline.train_iterator, pipeline.eval_batches):
        with user_error("tok-a.*tok-z"):
            read(both, "vlm", tokenizer_fingerprint="tok-z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rates": {}, "mixture": "reel"},
            "--config.data.mixture: no task or mixture 'reel'; did you mean 'real'",
        ),
        ({"split": "tran"}, "no split 'tran'; did you mean 'train'"),
        ({"mixture": "", "rates": {}}, "data.mixture: none given, with 2 folders"),
        ({"model_name": "generater"}, "'generater'; did you mean 'generator'"),
        (
            {"model_name": "tokenizer"},
            "task 'real': feature 'image' is missing, the tokenizer needs uint8, rank 3",
        ),
        (
            {"mixture": "real", "rates": {}, "batch_size": 64, "num_epochs": 1},
            "--config.data.mixture=real: fewer examples than the 64 of one batch",
        ),
        ({"folders": {"real": "/nowhere"}}, "--config.data.folders.real=.*: no manifest.json"),
        ({"folders": {"real": ""}}, "--config.data.folders.real: no folder of pairs given"),
        ({"text_length": 2}, "example '.*-0.*text_length=2 is too short"),
    ],
)
def test_unfit_configs(both, changes, message):
    changes = {"model_name": "vlm", **changes}
    model_name = changes.pop("model_name")
    with user_error(message):
        next(pipeline.train_iterator(dataclasses.replace(both, **changes), model_name))


def test_unfit_tasks(both, write_folder, user_module, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.tfrecord").touch()
    config = user_module("nothing_task", "add('nothing', 'empty')", mixture="nothing")
    with user_error("task 'nothing': no examples in split 'train'"):
        pipeline.train_iterator(config, "vlm")
    wide = write_folder("synthetic", 5, name="wide", num_image_tokens=9)
    config = dataclasses.replace(both, folders={**both.folders, "synthetic": wide})
    with user_error("task 'synthetic': image_tokens of length 9, the tasks before it have 4"):
        pipeline.train_iterator(config, "vlm")
    with user_error("no pairs, the source is empty"):
        write_folder("real", 0, name="empty pairs")


def test_a_caption_without_targets_is_named_in_evaluation(both):
    """Also where the end token alone has room after the prompt."""
    for length in (2, len(load_vocabulary("scenes").encode(both.prompt)) + 1):
        config = dataclasses.replace(both, text_length=length, mixture="real", rates={})
        with user_error("example 'real-000'"):
            next(pipeline.eval_batches(config, "vlm"))


def test_a_damaged_shard_is_one_line(both):
    for path in pathlib.Path(both.folders["real"]).glob("*.tfrecord"):
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)
    with user_error("a shard is damaged or missing"):
        take(pipeline.train_iterator(both, "vlm"), 30)


def test_the_config_is_checked():
    section = {"folders": {"real": "/r"}, "rates": {"real": 1}, "modules": ["a", "b"]}
    config = config_lib.build(DataConfig, section, "--config.data")
    assert (dict(config.folders), dict(config.rates)) == ({"real": "/r"}, {"real": 1})
    assert config.module_names == ("a", "b")
    assert dataclasses.replace(config, modules="a, b").module_names == ("a", "b")
    with user_error("--config.data.source: unknown 'sequio'; did you mean 'seqio'"):
        config_lib.build(DataConfig, {"source": "sequio"}, "--config.data")


def test_fake_data_needs_shapes_and_has_no_end():
    with user_error("--config.data.source=fake: needs the shapes"):
        pipeline.train_iterator(DataConfig(source="fake"), "vlm")
    with user_error("--config.data.source=fake: has no end"):
        pipeline.eval_batches(DataConfig(source="fake"), "vlm")


def test_no_accelerator_is_taken_from_jax():
    assert tf.config.get_visible_devices("GPU") == []
    assert tf.config.get_visible_devices("TPU") == []
