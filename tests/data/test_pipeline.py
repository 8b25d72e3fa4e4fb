"""Tests of data configs, tasks of users, and their errors."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqio

from synth2_jax import config as config_lib
from synth2_jax.data import mixtures, pipeline, preprocessors, tasks
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.testing.batches import assert_same, take
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.vocabulary import train_vocabulary, vocabulary_path

pytestmark = pytest.mark.usefixtures("clean_registry")


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
            rf"--config.data.vocabulary: found {other} \(300 pieces\), but the captions of task "
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
    with user_error("--config.data.folders.*=.*: no manifest.json"):
        start(folders={"real": "/nowhere"})
    with user_error("--config.data.folders.real: no folder of pairs given"):
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


def test_the_config_is_checked():
    section = {"folders": {"real": "/r"}, "rates": {"real": 1}, "modules": ["a", "b"]}
    config = config_lib.build(DataConfig, section, "--config.data")
    assert (dict(config.folders), dict(config.rates)) == ({"real": "/r"}, {"real": 1})
    assert config.module_names == ("a", "b")
    assert dataclasses.replace(config, modules="a, b").module_names == ("a", "b")
    with user_error("--config.data.source: unknown 'sequio'; did you mean 'seqio'"):
        config_lib.build(DataConfig, {"source": "sequio"}, "--config.data")


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
    with user_error("--config.data.source=fake: needs the shapes"):
        pipeline.train_iterator(DataConfig(source="fake"), "vlm")
    with user_error("--config.data.source=fake: has no end"):
        pipeline.eval_batches(DataConfig(source="fake"), "vlm")


def test_no_accelerator_is_taken_from_jax():
    from synth2_jax.data.tensorflow_cpu import tf

    assert tf.config.get_visible_devices("GPU") == []
    assert tf.config.get_visible_devices("TPU") == []
