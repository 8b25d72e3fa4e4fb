"""Tests of folders of pairs on disk: what is read back, and what is refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from synth2_jax.data import pair_writer, records, tfrecord_lengths
from synth2_jax.testing.user_errors import raises_line

PROVENANCE = records.Provenance(
    "tok-a",
    num_image_tokens=3,
    codebook_size=65536,
    generator={"checkpoint": "generator/100", "fingerprint": "gen-b"},
    sampler={"num_steps": 8},
    captions={"source": "language_model", "seed": 7},
    config={"steps": 10},
)
PAIR = records.Pair("real-0", np.array([0, 65535, 256]), "a größer Kreis", "real")


def test_pairs_and_manifest_come_back(tmp_path):
    synthetic = dataclasses.replace(PAIR, key="synthetic-0", source="synthetic", prompt="Say:")
    written = pair_writer.write_pairs(tmp_path, [PAIR, synthetic], PROVENANCE, num_shards=2)
    assert records.read_manifest(tmp_path) == records.verify(tmp_path) == written
    assert written.provenance == PROVENANCE
    assert written.counts == {"real": 1, "synthetic": 1}
    names = [f"pairs-0000{n}-of-00002.tfrecord" for n in (0, 1)]
    assert [shard.name for shard in written.shards] == names
    first, second = records.read_pairs(tmp_path)
    assert first.image_tokens.tolist() == [0, 65535, 256]
    assert (first.key, first.caption, first.source) == ("real-0", "a größer Kreis", "real")
    assert (second.key, second.source) == ("synthetic-0", "synthetic")
    assert (first.prompt, second.prompt) == ("", "Say:")
    # As little-endian uint16.
    assert b"\x00\x00\xff\xff\x00\x01" in (tmp_path / names[0]).read_bytes()


def test_a_flipped_byte_is_named_by_verify(tmp_path):
    pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    (shard,) = tmp_path.glob("*.tfrecord")
    contents = bytearray(shard.read_bytes())
    contents[20] ^= 1
    shard.write_bytes(contents)
    records.read_manifest(tmp_path)  # the size is as it was
    with raises_line(shard.name, "sha256"):
        records.verify(tmp_path)
    with raises_line(shard.name, "damaged", "corrupted record at 12"):
        list(records.read_pairs(tmp_path))


def test_lists_in_a_manifest_stay_lists(tmp_path):
    captions = {"source": "server", "sha256": "a" * 64, "styles": ["short", []]}
    provenance = dataclasses.replace(PROVENANCE, captions=captions)
    written = pair_writer.write_pairs(tmp_path, [PAIR], provenance)
    assert records.read_manifest(tmp_path) == written


def test_unfit_folders(tmp_path):
    with raises_line(str(tmp_path), "no manifest.json", "no pairs here"):
        records.read_manifest(tmp_path)
    folder = tmp_path / "train"
    pair_writer.write_pairs(folder, [PAIR], PROVENANCE)
    with raises_line("Folders in it that have one: train"):
        records.read_manifest(tmp_path)
    path, (shard,) = folder / "manifest.json", folder.glob("*.tfrecord")
    whole, contents = path.read_text(), shard.read_bytes()

    shard.write_bytes(contents[:-1])
    with raises_line(shard.name, f"{len(contents) - 1} bytes", str(len(contents))):
        records.read_manifest(folder)
    shard.unlink()
    with raises_line(shard.name, "no such file", "run the stage"):
        records.read_manifest(folder)
    newer = {**json.loads(whole), "version": 2}
    for text in ("{", "[]", json.dumps({"format": "x"}), json.dumps(newer)):
        path.write_text(text)
        with raises_line(str(path), "expected"):
            records.read_manifest(folder)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("num_pairs",), 5, "num_pairs is 5, expected the 4 of the shards"),
        (("counts", "real"), 3, "found 4 pairs in the shards, expected {'real': 3"),
        (("counts",), [1], "counts: found [1], expected a section"),
        (("counts", "real"), "4", "counts.real: found '4', expected int"),
        (("shards", 0, "num_bytes"), None, "shards[0].num_bytes: found None, expected int"),
        (("shards", 0, "num_pairs"), -2, "found -2 pairs"),
        (("shards", 0, "name"), "../other/a.tfrecord", "found a shard of the name '../other/"),
        (("shards", 0, "x"), 1, "shards[0].x: unknown key"),
        (("shards",), {}, "shards: found {}, expected a list"),
        (("tokenizer",), 1.5, "tokenizer: found 1.5, expected str"),
        (("codebook_size",), float("nan"), "not JSON (found NaN"),
        (("codebook_size",), 10**30, "expected one of 64 bits"),
        (("captions",), "x", "captions: found 'x', expected a section"),
        (("skipped_examples",), [3], "skipped_examples[0]: found 3, expected a section"),
    ],
)
def test_a_manifest_is_checked_value_by_value(tmp_path, path, value, message):
    pairs = [dataclasses.replace(PAIR, key=f"real-{number}") for number in range(4)]
    pair_writer.write_pairs(tmp_path, pairs, PROVENANCE, num_shards=2)
    manifest = tmp_path / "manifest.json"
    values = place = json.loads(manifest.read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    manifest.write_text(json.dumps(values))
    with raises_line(str(manifest), message):
        records.read_manifest(tmp_path)


def test_another_tokenizer_is_named_with_the_expected_one(tmp_path, caplog):
    manifest = pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    records.check_tokenizer(manifest, "tok-a")
    with raises_line(str(tmp_path), "tok-a", "tok-z"):
        records.check_tokenizer(manifest, "tok-z", tmp_path)
    with caplog.at_level("WARNING", "absl"):
        records.check_tokenizer(manifest, "tok-a+norm_groups=8", tmp_path)
    assert "an older synth2 stored tokenizer tok-a; assuming it was tok-a+norm" in caplog.text
    with raises_line("write tok-a+code_choice=dot_product+norm_groups=8 as tokenizer"):
        records.check_tokenizer(manifest, "tok-a+code_choice=dot_product+norm_groups=8", tmp_path)


def test_the_manifest_is_read_without_tensorflow(tmp_path):
    pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    script = f"""
import sys
from synth2_jax.data import pair_writer, pipeline, records
records.verify({str(tmp_path)!r})
assert not {{"tensorflow", "seqio"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Its checksum is right; TensorFlow would take memory for all of it, and end the process.
HUGE = bytes.fromhex("000000000000001000000000")[:8]
HUGE += tfrecord_lengths._masked_crc(HUGE).to_bytes(4, "little") + bytes(100)


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"not an Example", "write it again"),
        (b"", "write it again"),  # an Example without features
        (b"\n\x13\n\x11\n\x03key\x12\n\n\x08\n\x06\xff\xff\xff\xff\xff\xff", "write it again"),
        (HUGE, "1,152,921,504,606,846,976 bytes"),
    ],
)
def test_records_that_are_no_pairs_are_one_line(tmp_path, contents, message):
    from synth2_jax.data.tensorflow_cpu import tf

    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as file:
        file.write(contents)
    if contents == HUGE:
        path.write_bytes(HUGE)
    with raises_line("a.tfrecord is damaged", message):
        list(records.read_shard(path))


def test_a_manifest_without_the_later_fields_opens(tmp_path):
    written = pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    del values["skipped"], values["skipped_examples"], values["shards"][0]["work"]
    path.write_text(json.dumps(values))
    opened = records.read_manifest(tmp_path)
    assert opened.fingerprint == written.fingerprint
    assert opened.skipped == {}


def test_a_folder_may_hold_images_in_place_of_tokens(tmp_path):
    provenance = records.Provenance("", 0, 0, image_size=32)
    pair = dataclasses.replace(PAIR, image_tokens=None, image=b"\x89PNG...")
    manifest = pair_writer.write_pairs(tmp_path, [pair], provenance)
    assert records.read_manifest(tmp_path) == manifest
    assert list(records.read_pairs(tmp_path)) == [pair]
    with raises_line("found images", "tok-a", "without --on-the-fly"):
        records.check_tokenizer(manifest, "tok-a", tmp_path)
    for size, parts in ((0, ["codebook of 0"]), (65537, ["65537", "uint16"])):
        with raises_line(*parts):
            records.Provenance("tok-a", num_image_tokens=3, codebook_size=size)
