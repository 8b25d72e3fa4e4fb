"""`synth2 tokenize`: what the folders of pairs hold; nothing is lost, or it is said."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from synth2_jax.data import records
from synth2_jax.domains.scenes import dataset
from synth2_jax.loading.tokenizing import decode_images, encode_images
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages.inspect import describe_pairs
from synth2_jax.testing.image_files import picture, write_tar

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


@pytest.fixture(scope="module")
def tokenizer(chain):
    return load_trained(str(chain.path("tokenizer")), "tokenizer")


@pytest.mark.parametrize("split", ["real", "test"])
def test_the_manifest_says_what_is_there_and_by_whom(chain, tokenizer, split):
    manifest = records.verify(chain.path("pairs", split))
    assert manifest.num_pairs == dataset.REFERENCES * chain.num_images
    assert dict(manifest.counts) == {"real": manifest.num_pairs, "synthetic": 0}
    sizes = [shard.num_pairs for shard in manifest.shards]
    assert len(sizes) == 2 and all(size % 5 == 0 for size in sizes)  # an image is in one shard
    provenance = manifest.provenance
    assert provenance.tokenizer == tokenizer.fingerprint("tokenizer")
    assert (provenance.num_image_tokens, provenance.codebook_size) == (chain.num_tokens, 32)
    assert provenance.captions == {"source": f"scenes/{split}", "images": chain.num_images}
    assert provenance.generator is None and provenance.sampler is None
    assert provenance.config["max_images"] == chain.num_images


def test_pairs_are_the_examples_of_scenes_in_order(chain, tokenizer):
    pairs = list(records.read_pairs(chain.path("pairs", "real")))
    examples = dataset.examples("real", chain.num_images)
    assert [p.caption for p in pairs] == [c for example in examples for c in example.captions]
    assert [p.key for p in pairs[:6]] == [f"real-000000-{i}" for i in range(5)] + ["real-000001-0"]
    assert {p.source for p in pairs} == {"real"}
    images = np.stack([example.image for example in examples])
    # Another batch size than the stage's, and a last batch that is not full.
    tokens = encode_images(tokenizer, images, 7, "test")
    found = np.stack([pair.image_tokens for pair in pairs])
    np.testing.assert_array_equal(found, np.repeat(tokens, 5, axis=0))
    pixels = decode_images(tokenizer, tokens[[0, 1, 0]], batch_size=2)
    assert pixels.shape == (3, 32, 32, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[0], pixels[2])


def test_a_finished_folder_is_left_alone_and_a_missing_shard_made_again(
    chain, tmp_path, mistake, capfd
):
    folder = tmp_path / "test"
    chain.run(chain.tokenization(tmp_path, splits="test"))
    # Progress counts images and nothing else.
    assert capfd.readouterr().err.splitlines()[-1].startswith("tokenize test 24/24 images  ")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord")}
    manifest = json.loads((folder / "manifest.json").read_text())
    chain.run(chain.tokenization(tmp_path, splits="test"))
    assert {path: path.stat().st_mtime_ns for path in times} == times and len(times) == 2
    assert chain.shards(folder) == chain.shards("pairs", "test")
    (folder / manifest["shards"][1]["name"]).unlink()
    chain.run(chain.tokenization(tmp_path, splits="test"))
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    for change in ({"num_shards": 3}, {"max_images": 2}):  # shards of other images never mix
        line = mistake(chain.tokenization(tmp_path, splits="test", **change))
        assert "delete the folder or choose another" in line


# --- images and captions as people have them ---


@pytest.fixture(scope="module")
def examples():
    return dataset.examples("real", 20)


@pytest.fixture
def web(tmp_path, examples):
    """Three tar files: pictures of Scenes, with a few that cannot be used."""
    contents = [picture(example.image) for example in examples]
    contents[3] = contents[3][: len(contents[3]) // 2]
    contents[7] = b"<html>404 not found</html>"
    captions = [example.captions[0].encode() for example in examples]
    captions[5] = b" \n"
    captions[11] = b"gr\xf6\xdfer"
    bounds = [0, 8, 8, 20]  # the second holds nothing
    for number in range(3):
        members = []
        for index in range(bounds[number], bounds[number + 1]):
            members.append((f"{index:04d}.png", contents[index]))
            members.append((f"{index:04d}.txt", captions[index]))
        write_tar(tmp_path / f"web-{number}.tar", members)
    return {
        "source__format": "webdataset",
        "source__path": tmp_path / "web-{0..2}.tar",
        "splits": "train",
        "max_images": None,
        "batch_size": 3,
        "max_skipped": 0.3,
    }


def test_web_data_becomes_pairs_and_the_rest_is_counted(
    chain, tokenizer, tmp_path, web, examples, capfd, mistake
):
    chain.run(chain.tokenization(tmp_path / "a", **web))
    manifest = records.verify(tmp_path / "a" / "train")
    reasons = ("caption not UTF-8", "corrupt image", "empty caption", "not an image")
    assert dict(manifest.skipped) == dict.fromkeys(reasons, 1)
    assert [shard.num_pairs for shard in manifest.shards] == [5, 0, 11]
    printed = capfd.readouterr()
    told = "tokenize train: found 20 pairs, kept 16, skipped 4 (caption not UTF-8 1, "
    assert told in printed.out
    # Nobody knows how many images there are before all are read.
    assert printed.err.splitlines()[-1].startswith("tokenize train 3/3 shards  ")
    shown = {skip["key"]: skip["detail"] for skip in manifest.skipped_examples}
    assert shown["web-0/0007"] == "begins with b'<html>40'"
    assert manifest.provenance.captions["source"] == "webdataset"
    good = [n for n in range(20) if n not in (3, 5, 7, 11)]
    pairs = list(records.read_pairs(tmp_path / "a" / "train"))
    assert [pair.key for pair in pairs] == [f"web-{0 if n < 8 else 2}/{n:04d}-0" for n in good]
    assert [pair.caption for pair in pairs] == [examples[n].captions[0] for n in good]
    tokens = encode_images(tokenizer, np.stack([examples[n].image for n in good]), 5, "test")
    np.testing.assert_array_equal(np.stack([pair.image_tokens for pair in pairs]), tokens)
    # Batches and threads change nothing; captions of another field never mix.
    chain.run(chain.tokenization(tmp_path / "b", **{**web, "batch_size": 16, "num_threads": 1}))
    assert chain.shards(tmp_path, "a", "train") == chain.shards(tmp_path, "b", "train")
    line = mistake(chain.tokenization(tmp_path / "a", **web, source__caption_field="json/caption"))
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
    members += [("1.png", picture(examples[0].image)), ("1.txt", text)]
    write_tar(tmp_path / "web.tar", members)
    source = {"source__format": "webdataset", "source__path": tmp_path / "web.tar"}
    command = chain.tokenization(tmp_path / "pairs", **source, splits="train", max_images=None)
    line = mistake([*command, "--config.max_skipped=0.4"])
    assert line.startswith("tokenize train: 1 of 2 pairs are skipped (not an image 1)")
    assert "; the first is web/0\\x1b[31m" in line
    chain.run([*command, "--config.max_skipped=1"])
    text = describe_pairs(tmp_path / "pairs" / "train")
    assert "skipped: {'not an image': 1}" in text and "\\x1b[31m" in text
    assert not {"\x1b", "\x07", "\r"} & set(line + text)


def test_killed_anywhere_it_ends_with_the_same_pairs(chain, tmp_path, web):
    chain.run(chain.tokenization(tmp_path / "whole", **web))
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
    whole = records.read_manifest(tmp_path / "whole" / "train")
    assert records.verify(folder).shards == whole.shards
    assert not list(folder.glob(".*.tmp"))


def test_images_are_tokenized_in_the_step_as_before_it(chain, tmp_path, mistake, capfd):
    """The same losses from `--on-the-fly` as from stored tokens, by generator and VLM."""
    command = chain.tokenization(tmp_path / "images", splits="real")
    assert "expected true or false" in mistake([*command, "--on-the-fly=maybe"])
    chain.run([*command, "--on-the-fly"])
    assert capfd.readouterr().err.splitlines()[-1].startswith("tokenize real 24/24 images  ")
    folder = tmp_path / "images" / "real"
    manifest = records.verify(folder)
    assert manifest.provenance.image_size == 32 and manifest.provenance.tokenizer == ""
    stored = list(records.read_pairs(chain.path("pairs", "real")))
    found = list(records.read_pairs(folder))
    assert [pair.key for pair in found] == [pair.key for pair in stored]
    assert "images of 32 pixels, for a tokenizer in the step" in describe_pairs(folder)
    pixels = np.asarray(Image.open(io.BytesIO(found[0].image)))
    np.testing.assert_array_equal(pixels, dataset.examples("real", 1)[0].image)
    for model in ("generator", "vlm"):
        losses = []
        for name, pairs in (("tokens", chain.path("pairs", "real")), ("images", folder)):
            workdir = tmp_path / model / name
            chain.run(chain.training(model, workdir, train__steps=3, data__folders__real=pairs))
            losses.append(chain.losses(workdir))
        assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == 3
    line = mistake(chain.evaluation(tmp_path / "scores", folder=folder))
    assert line.startswith(f"--config.folder={folder}: found images, expected image tokens")
