"""`synth2 synthesize`: provenance, resume shard by shard, and rows that stand alone."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.folder import read_manifest
from synth2_jax.data import records
from synth2_jax.files import JsonLinesFile, read_json_lines, write_json, write_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.synthesis.token_generator import SynthesizeConfig, TokenGenerator
from synth2_jax.testing.user_errors import raises_line, user_error

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute


@pytest.fixture(scope="module")
def generator(chain):
    return load_trained(str(chain.path("generator")), "generator")


@pytest.fixture(scope="module")
def config(chain):
    """As the pairs were made."""
    manifest = records.read_manifest(chain.path("pairs", "synthetic"))
    return config_lib.build(SynthesizeConfig, manifest.provenance.config)


@pytest.fixture(scope="module")
def pairs(chain):
    return list(records.read_pairs(chain.path("pairs", "synthetic")))


def test_the_manifest_tells_where_the_pairs_come_from(chain, generator):
    manifest = records.verify(chain.path("pairs", "synthetic"))
    assert dict(manifest.counts) == {"real": 0, "synthetic": chain.num_captions}
    assert [shard.num_pairs for shard in manifest.shards] == [6, 7, 7]
    found = manifest.provenance
    assert found.tokenizer == generator.fingerprint("tokenizer")
    assert found.generator == generator.provenance("generator")
    assert found.generator["step"] == chain.steps["generator"]
    assert found.sampler["num_steps"] == 2 and found.sampler["seed"] == 0
    assert found.sampler["guidance"]["scale"] == 1.5
    rows = chain.path("captions", "captions.jsonl").read_bytes()
    # What is read has tuples in the place of lists.
    assert json.loads(json.dumps(found.captions)) == {
        **json.loads(chain.path("captions", "manifest.json").read_text()),
        "sha256": hashlib.sha256(rows).hexdigest(),
    }


def test_every_caption_has_its_pair_in_order(chain, pairs):
    rows = read_json_lines(chain.path("captions", "captions.jsonl"))
    assert [pair.caption for pair in pairs] == [row["caption"] for row in rows]
    assert [pair.key for pair in pairs[:2]] == ["synthetic-000000000-0", "synthetic-000000001-0"]
    assert {pair.source for pair in pairs} == {"synthetic"}
    tokens = np.stack([pair.image_tokens for pair in pairs])
    assert tokens.shape == (chain.num_captions, chain.num_tokens)
    assert len(np.unique(tokens, axis=0)) > 1  # a mask id would have been refused by the writer


def test_only_missing_shards_are_made_again_and_come_out_the_same(chain, tmp_path, mistake):
    def times():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tfrecord")}

    chain.run(chain.synthesis(tmp_path))
    whole, before = chain.shards(tmp_path), times()
    assert whole == chain.shards("pairs", "synthetic")
    _, second, _ = whole
    manifest = (tmp_path / "manifest.json").read_text()
    (tmp_path / second).unlink()
    chain.run(chain.synthesis(tmp_path))
    assert chain.shards(tmp_path) == whole
    after = times()
    assert {name for name in whole if after[name] != before[name]} == {second}
    assert (tmp_path / "manifest.json").read_text() == manifest
    chain.run(chain.synthesis(tmp_path))
    assert times() == after
    for change in ({"seed": 1}, {"guidance__scale": 2.0}, {"num_shards": 2}):
        line = mistake(chain.synthesis(tmp_path, **change))
        assert "delete the folder or choose another" in line


def test_a_row_depends_on_its_caption_and_number_alone(generator, config, pairs):
    captions = [pair.caption for pair in pairs]
    expected = np.stack([pair.image_tokens for pair in pairs])
    generate = TokenGenerator(generator, dataclasses.replace(config, batch_size=5))
    # In other batches than the stage's, in another order, and with the batch half filled.
    order = [7, 3, 11]
    np.testing.assert_array_equal(generate([captions[i] for i in order], order), expected[order])
    moved = generate([captions[7]] * 2, [7, 8])
    np.testing.assert_array_equal(moved[0], expected[7])
    assert (moved[1] != moved[0]).any()  # the number is the seed of the row


def test_several_samples_of_a_caption_differ(chain, tmp_path):
    chain.run(chain.synthesis(tmp_path, samples_per_caption=3, num_shards=1))
    pairs = list(records.read_pairs(tmp_path))
    assert len(pairs) == 3 * chain.num_captions
    groups = [pairs[i : i + 3] for i in range(0, len(pairs), 3)]
    assert all(len({pair.caption for pair in group}) == 1 for group in groups)
    assert any(len({tuple(pair.image_tokens) for pair in group}) == 3 for group in groups)


def test_captions_are_tokenized_as_in_the_generators_training(generator, config):
    data = {**generator.config["data"], "vocabulary": "no such file"}
    elsewhere = dataclasses.replace(generator, config={**generator.config, "data": data})
    with raises_line("vocabulary 'no such file': no such file"):
        TokenGenerator(elsewhere, config)


# --- captions of others ---


@pytest.fixture
def write(tmp_path):
    """write(caption, ...) -> a folder of captions."""

    def folder(*captions):
        rows = [{"caption": caption} for caption in captions]
        write_json_lines(tmp_path / "captions" / "captions.jsonl", rows)
        write_json(tmp_path / "captions" / "manifest.json", {"source": "file"})
        return tmp_path / "captions"

    return folder


def test_captions_that_are_cut_are_counted(chain, tmp_path, caplog, mistake, write):
    captions = {"captions": write("a red circle", "a blue ring " * 20), "samples_per_caption": 2}
    with caplog.at_level("WARNING", logger="absl"):
        chain.run(chain.synthesis(tmp_path / "pairs", **captions))
    assert "2 of 4 captions are cut: the generator reads 26 tokens" in caplog.text
    assert records.read_manifest(tmp_path / "pairs").captions_cut == 2
    write("a red circle", "a green ring")  # other captions never mix
    line = mistake(chain.synthesis(tmp_path / "pairs", **captions))
    assert "sha256" in line and "delete the folder" in line


@pytest.mark.parametrize("caption", ["", "  "])
def test_a_caption_without_a_token_is_skipped_and_counted(chain, tmp_path, mistake, write, caption):
    run = {"captions": write("a red circle", caption), "num_shards": 1}
    line = mistake(chain.synthesis(tmp_path / "pairs", **run))
    assert line.startswith(
        "synthesize: 1 of 2 pairs are skipped (caption without tokens 1), expected at most 1%"
    )
    chain.run(chain.synthesis(tmp_path / "pairs", max_skipped=0.5, **run))
    manifest = records.read_manifest(tmp_path / "pairs")
    assert (manifest.num_pairs, dict(manifest.skipped)) == (1, {"caption without tokens": 1})
    (pair,) = records.read_pairs(tmp_path / "pairs")
    assert (pair.key, pair.caption) == ("synthetic-000000000-0", "a red circle")


def test_captions_that_cannot_be_read_are_named(chain, tmp_path, mistake, write):
    def line():
        return mistake(chain.synthesis(tmp_path / "pairs", captions=captions))

    captions = write("a red circle")
    file, manifest = captions / "captions.jsonl", captions / "manifest.json"
    held = file.read_text()
    for row, told in (
        ('{"text": "a ring"}', "line 2 is {'text': 'a ring'}, expected a text as its caption"),
        ('{"caption": 3}', "line 2 is {'caption': 3}, expected a text as its caption"),
        ('{"caption": "a ri', "line 2 is not JSON"),
    ):
        file.write_text(held + row)
        assert f"{file}: {told}" in line()
    manifest.write_text('{"source": "fi')
    assert line().startswith(f"--config.captions={captions}: {manifest}: not JSON")
    manifest.unlink()
    assert line().endswith(
        f"{manifest}: no such file; expected what `synth2 captions` leaves there"
    )
    file.write_text("")
    assert line().endswith(f"{file}: found no captions, expected one a line")


def test_a_manifest_of_other_captions_is_refused(tmp_path):
    write_json_lines(tmp_path / "captions.jsonl", [{"caption": "a dog"}])
    captions = JsonLinesFile(tmp_path / "captions.jsonl")
    for key, value in (
        *(("num_captions", number) for number in (2, "x", None)),
        *(("sha256", value) for value in ("0" * 64, 3, None)),
    ):
        write_json(tmp_path / "manifest.json", {key: value})
        with user_error(rf"captions.jsonl: found {key} .*, expected .*again"):
            read_manifest(tmp_path, captions)
    right = {"num_captions": 1, "sha256": captions.sha256}
    for manifest in (right, {"source": "another tool"}):
        write_json(tmp_path / "manifest.json", manifest)
        assert read_manifest(tmp_path, captions) == manifest
