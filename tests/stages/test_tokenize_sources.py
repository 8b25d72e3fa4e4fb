"""`synth2 tokenize` of images and captions as people have them: nothing is lost, or it is said."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from synth2_jax.data import records
from synth2_jax.domains.scenes import dataset
from synth2_jax.loading.tokenizing import encode_images
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages.inspect import describe_pairs
from synth2_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def examples():
    return dataset.examples("real", 20)


@pytest.fixture
def web(tmp_path, examples):
    """Three tar files: pictures of Scenes, with a few that cannot be used."""
    contents = [png(example.image) for example in examples]
    contents[3] = contents[3][: len(contents[3]) // 2]
    contents[7] = b"<html>404 not found</html>"
    captions = [example.captions[0].encode() for example in examples]
    captions[5] = b" \n"
    captions[11] = b"gr\xf6\xdfer"
    bounds = [0, 8, 8, 20]  # the second holds nothing
    for number in range(3):
        with tarfile.open(tmp_path / f"web-{number}.tar", "w") as tar:
            for index in range(bounds[number], bounds[number + 1]):
                for ending, data in (("png", contents[index]), ("txt", captions[index])):
                    info = tarfile.TarInfo(f"{index:04d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return {
        "source__format": "webdataset",
        "source__path": tmp_path / "web-{0..2}.tar",
        "splits": "train",
        "max_images": None,
        "batch_size": 3,
        "max_skipped": 0.3,
    }


def test_web_data_becomes_pairs_and_the_rest_is_counted(chain, tmp_path, web, examples, capsys):
    chain.run(chain.tokenization(tmp_path / "pairs", **web))
    manifest = records.verify(tmp_path / "pairs" / "train")
    assert dict(manifest.skipped) == {
        "caption not UTF-8": 1,
        "corrupt image": 1,
        "empty caption": 1,
        "not an image": 1,
    }
    assert [shard.num_pairs for shard in manifest.shards] == [5, 0, 11]
    printed = capsys.readouterr()
    assert (
        "tokenize train: found 20 pairs, kept 16, skipped 4 (caption not UTF-8 1, " in printed.out
    )
    # Nobody knows how many images there are before all are read.
    assert printed.err.splitlines()[-1].startswith("tokenize train 3/3 shards  ")
    shown = {skip["key"]: skip["detail"] for skip in manifest.skipped_examples}
    assert shown["web-0/0007"] == "begins with b'<html>40'"
    assert manifest.provenance.captions["source"] == "webdataset"
    good = [n for n in range(20) if n not in (3, 5, 7, 11)]
    pairs = list(records.read_pairs(tmp_path / "pairs" / "train"))
    assert [pair.key for pair in pairs] == [f"web-{0 if n < 8 else 2}/{n:04d}-0" for n in good]
    assert [pair.caption for pair in pairs] == [examples[n].captions[0] for n in good]
    tokenizer = load_trained(str(chain.path("tokenizer")), "tokenizer")
    tokens = encode_images(tokenizer, np.stack([examples[n].image for n in good]), 5, "test")
    np.testing.assert_array_equal(np.stack([pair.image_tokens for pair in pairs]), tokens)


def test_batches_threads_and_processes_change_nothing(chain, tmp_path, web):
    for name, change in (("a", {}), ("b", {"batch_size": 16, "num_threads": 1})):
        chain.run(chain.tokenization(tmp_path / name, **{**web, **change}))
    for shard in records.read_manifest(tmp_path / "a" / "train").shards:
        found = [(tmp_path / name / "train" / shard.name).read_bytes() for name in "ab"]
        assert found[0] == found[1]


def test_captions_of_another_field_never_mix(chain, tmp_path, web, mistake):
    chain.run(chain.tokenization(tmp_path / "pairs", **web))
    other = chain.tokenization(tmp_path / "pairs", **web, source__caption_field="json/caption")
    line = mistake(other)
    assert "json/caption" in line and "delete the folder or choose another" in line


def test_too_much_that_cannot_be_used_stops_the_run_until_it_is_accepted(
    chain, tmp_path, web, mistake
):
    strict = {**web, "max_skipped": 0.1}
    for _ in range(2):  # starting again does not get around it
        line = mistake(chain.tokenization(tmp_path / "pairs", **strict))
        assert line.startswith("tokenize train: 4 of 20 pairs are skipped (caption not UTF-8 1, ")
        assert "expected at most 10%, --config.max_skipped" in line
    assert not (tmp_path / "pairs" / "train" / "manifest.json").exists()
    chain.run(chain.tokenization(tmp_path / "pairs", **web))
    assert records.verify(tmp_path / "pairs" / "train").num_pairs == 16


def test_names_from_a_file_act_on_no_terminal(chain, tmp_path, mistake, examples):
    name, text = "0\x1b[31m\r\x1b]0;owned\x07", b"a \x1b[31mred circle"
    members = [(f"{name}.jpg", b"\x1b[2Jnot an image"), (f"{name}.txt", text)]
    members += [("1.png", png(examples[0].image)), ("1.txt", text)]
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = {"source__format": "webdataset", "source__path": tmp_path / "web.tar"}
    command = chain.tokenization(tmp_path / "pairs", **source, splits="train", max_images=None)
    line = mistake([*command, "--config.max_skipped=0.4"])
    assert line.startswith("tokenize train: 1 of 2 pairs are skipped (not an image 1)")
    assert "; the first is web/0\\x1b[31m" in line
    chain.run([*command, "--config.max_skipped=1"])
    text = describe_pairs(tmp_path / "pairs" / "train")
    assert "skipped: {'not an image': 1}" in text and "\\x1b[31m" in text
    for shown in (line, text):
        assert not {"\x1b", "\x07", "\r"} & set(shown)


def test_questions_become_prompts(chain, tmp_path, examples):
    images = tmp_path / "images"
    images.mkdir()
    for number, example in enumerate(examples):
        (images / f"{number:012d}.png").write_bytes(png(example.image))
    questions = [
        {"question_id": 100 + n, "image_id": n, "question": f"how many, {n}?"} for n in range(20)
    ]
    answers = [
        {"question_id": 100 + n, "answers": [{"answer": "two"}, {"answer": "three"}]}
        for n in range(20)
    ]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "answers.json").write_text(json.dumps({"annotations": answers}))
    chain.run(
        chain.tokenization(
            tmp_path / "pairs",
            source__format="vqa",
            source__path=tmp_path / "answers.json",
            source__questions=tmp_path / "questions.json",
            source__images=images / "{image_id:012d}.png",
            source__answers="all",
            splits="train",
            max_images=None,
        )
    )
    pairs = list(records.read_pairs(tmp_path / "pairs" / "train"))
    assert len(pairs) == 40
    assert pairs[3].prompt == "Question: how many, 1? Answer:" and pairs[3].caption == "three"


def test_killed_anywhere_it_ends_with_the_same_pairs(chain, tmp_path, web):
    chain.run(chain.tokenization(tmp_path / "whole", **web))
    whole = records.read_manifest(tmp_path / "whole" / "train")
    command = chain.tokenization(tmp_path / "pairs", **web)
    command = [sys.executable, "-m", "synth2_jax.main", *command[1:]]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    folder = tmp_path / "pairs" / "train"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((folder / "progress").glob("*.tfrecord.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert "kept 16, skipped 4" in again.stdout
    manifest = records.verify(folder)
    assert manifest.shards == whole.shards
    assert not list(folder.glob(".*.tmp"))


def test_images_are_tokenized_in_the_step_as_before_it(chain, tmp_path):
    """The same losses from `--on-the-fly` as from stored tokens, by generator and VLM."""
    command = chain.tokenization(tmp_path / "images", splits="real")
    chain.run([*command, "--on-the-fly"])
    folder = tmp_path / "images" / "real"
    manifest = records.verify(folder)
    assert manifest.provenance.image_size == 32 and manifest.provenance.tokenizer == ""
    stored = list(records.read_pairs(chain.path("pairs", "real")))
    found = list(records.read_pairs(folder))
    assert [pair.key for pair in found] == [pair.key for pair in stored]
    text = describe_pairs(folder)
    assert "images of 32 pixels, for a tokenizer in the step" in text
    pixels = np.asarray(Image.open(io.BytesIO(found[0].image)))
    np.testing.assert_array_equal(pixels, dataset.examples("real", 1)[0].image)
    for model in ("generator", "vlm"):
        losses = []
        for name, pairs in (("tokens", chain.path("pairs", "real")), ("images", folder)):
            workdir = tmp_path / model / name
            chain.run(chain.training(model, workdir, train__steps=3, data__folders__real=pairs))
            rows = read_metrics(workdir / "metrics.jsonl")
            losses.append([row["loss"] for row in rows if "loss" in row])
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert len(losses[0]) == 3


def test_images_are_refused_where_tokens_are_needed(chain, tmp_path, mistake):
    command = chain.tokenization(tmp_path, splits="test")
    assert "expected true or false" in mistake([*command, "--on-the-fly=maybe"])
    chain.run([*command, "--on-the-fly=true"])
    line = mistake(chain.evaluation(tmp_path / "scores", folder=tmp_path / "test"))
    assert line.startswith(
        f"--config.folder={tmp_path / 'test'}: found images, expected image tokens"
    )
