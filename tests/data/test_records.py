import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from synth2_jax.data import pair_writer, records, tfrecord_lengths, unique_keys
from synth2_jax.errors import UserError

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


def raises_line(*parts):
    """One line with all of `parts` in order."""
    return pytest.raises(
        UserError, match="^[^\n]*" + "[^\n]*".join(map(re.escape, parts)) + "[^\n]*$"
    )


def test_pairs_and_manifest_come_back(tmp_path):
    synthetic = dataclasses.replace(PAIR, key="synthetic-0", source="synthetic")
    written = pair_writer.write_pairs(tmp_path, [PAIR, synthetic], PROVENANCE, num_shards=2)
    assert records.read_manifest(tmp_path) == written
    assert written.provenance == PROVENANCE
    assert written.counts == {"real": 1, "synthetic": 1}
    assert [shard.name for shard in written.shards] == [
        "pairs-00000-of-00002.tfrecord",
        "pairs-00001-of-00002.tfrecord",
    ]
    first, second = records.read_pairs(tmp_path)
    assert first.image_tokens.tolist() == [0, 65535, 256]
    assert (first.key, first.caption, first.source) == ("real-0", "a größer Kreis", "real")
    assert (second.key, second.source) == ("synthetic-0", "synthetic")
    assert records.verify(tmp_path) == written


def test_image_tokens_are_little_endian_uint16_on_disk(tmp_path):
    pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    (shard,) = tmp_path.glob("*.tfrecord")
    assert b"\x00\x00\xff\xff\x00\x01" in shard.read_bytes()


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


def test_an_interrupted_writer_leaves_whole_shards_only_and_is_resumed(tmp_path):
    def interrupted():
        yield PAIR
        raise KeyboardInterrupt

    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=2)
    writer.write_shard(1, [PAIR])
    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(0, interrupted())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pairs-00001-of-00002.tfrecord",
        "progress",
    ]
    with raises_line("no manifest.json", "not finished"):
        records.read_manifest(tmp_path)

    resumed = pair_writer.PairWriter(
        tmp_path, dataclasses.replace(PROVENANCE, config={"steps": 11}), num_shards=2
    )
    assert resumed.missing() == [0]
    with raises_line("1 of 2 shards are missing", "pairs-00000-of-00002.tfrecord"):
        resumed.finish()
    resumed.write_shard(0, [dataclasses.replace(PAIR, key="real-1")])
    assert resumed.finish().num_pairs == 2
    assert not (tmp_path / "progress").exists()


@pytest.mark.slow
def test_a_killed_writer_leaves_no_shard(tmp_path):
    script = f"""
import os
import numpy as np
from synth2_jax.data import pair_writer, records
pair = records.Pair("real-0", np.zeros(3, int), "a circle", "real")
def killed():
    yield pair
    os.kill(os.getpid(), 9)
provenance = records.Provenance("tok-a", num_image_tokens=3, codebook_size=8)
pair_writer.PairWriter({str(tmp_path)!r}, provenance, num_shards=1).write_shard(0, killed())
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -9
    provenance = records.Provenance("tok-a", num_image_tokens=3, codebook_size=8)
    writer = pair_writer.PairWriter(tmp_path, provenance, num_shards=1)
    assert writer.missing() == [0]
    writer.write_shard(0, [dataclasses.replace(PAIR, image_tokens=np.zeros(3, int))])
    writer.finish()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_cannot_add_to_a_folder(tmp_path, finished):
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    writer.write_shard(0, [PAIR])
    if finished:
        writer.finish()
    other = dataclasses.replace(PROVENANCE, sampler={"num_steps": 12})
    with raises_line("sampler", "8", "12", "delete the folder"):
        pair_writer.PairWriter(tmp_path, other, num_shards=1)


@pytest.mark.parametrize("finished", [False, True])
def test_only_what_determines_the_pairs_is_compared(tmp_path, finished):
    captions = {"source": "server", "usage": {"answers": 3}, "sha256": "a" * 64}
    generator = {"checkpoint": "generator", "step": 2, "fingerprint": "f"}
    provenance = dataclasses.replace(PROVENANCE, captions=captions, generator=generator)
    writer = pair_writer.PairWriter(tmp_path, provenance, num_shards=1)
    writer.write_shard(0, [PAIR])
    if finished:
        writer.finish()
    moved = dataclasses.replace(
        provenance,
        captions={**captions, "usage": {"answers": 0}},
        generator={**generator, "checkpoint": "moved"},
    )
    assert pair_writer.PairWriter(tmp_path, moved, num_shards=1).finish().num_pairs == 1
    for name, change, text in (
        ("captions", {**captions, "sha256": "b" * 64}, "found pairs of captions"),
        ("captions", {**captions, "pictures": "blank"}, "found pairs of captions"),
        ("captions", {"source": "coco", "sha256": ["a" * 64]}, "found pairs of captions"),
        ("generator", {**generator, "fingerprint": "g"}, "found pairs of generator"),
        ("generator", None, "found pairs of generator"),
    ):
        with raises_line(text, "delete the folder or choose another"):
            other = dataclasses.replace(provenance, **{name: change})
            pair_writer.PairWriter(tmp_path, other, num_shards=1)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"image_tokens": np.array([1, 2])}, ["'real-0'", "(2,)", "(3,)"]),
        ({"image_tokens": np.array([1, 2, 65536])}, ["'real-0'", "65536", "0 to 65535"]),
        ({"image_tokens": np.array([1, -2, 3])}, ["'real-0'", "-2", "0 to 65535"]),
        ({"source": "fake"}, ["'real-0'", "'fake'", "synthetic"]),
    ],
)
def test_unfit_pairs_are_refused_by_key(tmp_path, change, parts):
    with raises_line(*parts):
        pair_writer.write_pairs(tmp_path, [dataclasses.replace(PAIR, **change)], PROVENANCE)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_key_is_there_once(tmp_path, num_shards):
    with raises_line("'real-0'", "twice"):
        pair_writer.write_pairs(tmp_path, [PAIR, PAIR], PROVENANCE, num_shards=num_shards)


def test_lists_in_a_manifest_stay_lists(tmp_path):
    captions = {"source": "server", "sha256": "a" * 64, "styles": ["short", []]}
    provenance = dataclasses.replace(PROVENANCE, captions=captions)
    written = pair_writer.write_pairs(tmp_path, [PAIR], provenance)
    assert records.read_manifest(tmp_path) == written


def test_codebooks_fit_uint16():
    with raises_line("65537", "uint16"):
        records.Provenance("tok-a", num_image_tokens=3, codebook_size=65537)


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


def pairs_in_two_shards(folder):
    pairs = [dataclasses.replace(PAIR, key=f"real-{number}") for number in range(4)]
    return pair_writer.write_pairs(folder, pairs, PROVENANCE, num_shards=2)


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
    pairs_in_two_shards(tmp_path)
    manifest = tmp_path / "manifest.json"
    values = place = json.loads(manifest.read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    manifest.write_text(json.dumps(values))
    with raises_line(str(manifest), message):
        records.read_manifest(tmp_path)


@pytest.mark.parametrize(
    "pattern, contents, message",
    [
        ("progress/*1-of*.json", b"{}", ".shard: missing"),
        ("progress/*1-of*.json", b"\xff", "not JSON"),
        ("progress/*1-of*.keys", b"\0" * 32, "damaged (sha256"),
        ("progress/*1-of*.keys", None, "no such file"),
        ("progress/work.json", b"[", "not JSON"),
        ("pairs-00001*", b"x", "damaged (sha256"),
        ("pairs-00001*", None, "no such file"),
    ],
)
def test_what_an_earlier_run_has_written_is_read_back(tmp_path, pattern, contents, message):
    first = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=2)
    for index in first.missing():
        first.write_shard(index, [dataclasses.replace(PAIR, key=f"real-{index}")])
    (path,) = tmp_path.glob(pattern)
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    with raises_line(str(path), message):
        pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=2).finish()
    assert not (tmp_path / "manifest.json").exists()


def test_the_size_that_an_earlier_run_noted_is_compared(tmp_path):
    first = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    first.write_shard(0, [PAIR])
    (path,) = tmp_path.glob("progress/*.tfrecord.json")
    values = json.loads(path.read_text())
    values["shard"]["num_bytes"] += 1
    path.write_text(json.dumps({**values, "digest": ""}))  # as before there were digests
    with raises_line(str(path), "num_bytes", "Delete this file"):
        pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1).finish()


@pytest.mark.parametrize("change", [{"skipped": {"x": 1}}, {"captions_cut": 1}])
def test_counts_that_an_earlier_run_noted_are_as_it_noted_them(tmp_path, change):
    first = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    first.write_shard(0, [PAIR])
    (path,) = tmp_path.glob("progress/*.tfrecord.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with raises_line(str(path), "found the digest", "Delete it"):
        pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1).finish()


def test_what_is_said_of_a_skipped_example_can_be_read_again(tmp_path):
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    writer.write_shard(0, [PAIR, records.Skipped("caf\ud83d", "corrupt image", "\udcff" * 9999)])
    writer.finish()
    (shown,) = records.read_manifest(tmp_path).skipped_examples
    assert shown["key"] == r"caf\ud83d" and len(shown["detail"]) == 3000


def test_another_tokenizer_is_named_with_the_expected_one(tmp_path):
    manifest = pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    records.check_tokenizer(manifest, "tok-a")
    with raises_line(str(tmp_path), "tok-a", "tok-z"):
        records.check_tokenizer(manifest, "tok-z", tmp_path)


def test_the_manifest_is_read_without_tensorflow(tmp_path):
    pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    script = f"""
import sys
from synth2_jax.data import pair_writer, pipeline, records
records.verify({str(tmp_path)!r})
assert not {{"tensorflow", "seqio"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_was_skipped_is_counted_by_reason_and_shown(tmp_path):
    bad = records.Skipped("000000017", "corrupt image", "cannot identify image file", num_pairs=5)
    late = records.Skipped("000000018", "empty caption")
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=2)
    writer.write_shard(0, [bad, PAIR])
    resumed = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=2)
    resumed.write_shard(1, [late, late])
    manifest = resumed.finish()
    assert manifest == records.read_manifest(tmp_path)
    assert manifest.num_pairs == 1
    assert manifest.skipped == {"corrupt image": 5, "empty caption": 2}
    assert manifest.skipped_examples[0] == {
        "key": "000000017",
        "reason": "corrupt image",
        "detail": "cannot identify image file",
    }


def test_a_shard_whose_description_was_not_written_yet_is_written_again(tmp_path):
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    writer.write_shard(0, [PAIR])
    (sidecar,) = (tmp_path / "progress").glob("*.tfrecord.json")
    sidecar.unlink()
    assert pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1).missing() == [0]


def test_shards_know_what_determines_them(tmp_path):
    other = dataclasses.replace(PROVENANCE, sampler={"num_steps": 12})
    works = set()
    for name, provenance in (("a", PROVENANCE), ("b", other)):
        written = pair_writer.write_pairs(tmp_path / name, [PAIR], provenance, num_shards=2)
        works |= {shard.work for shard in written.shards}
    assert len(works) == 4
    again = pair_writer.write_pairs(tmp_path / "c", [PAIR], PROVENANCE, num_shards=2)
    assert {shard.work for shard in again.shards} <= works

    mixed = pair_writer.PairWriter(tmp_path / "mixed", PROVENANCE, num_shards=1)
    mixed.write_shard(0, [PAIR])
    (sidecar,) = (tmp_path / "mixed" / "progress").glob("*.tfrecord.json")
    (intruder,) = [again.shards[0].work]
    values = {**json.loads(sidecar.read_text()), "digest": ""}
    values["shard"]["work"] = intruder
    sidecar.write_text(json.dumps(values))
    with raises_line("pairs-00000-of-00001.tfrecord", "another run", "delete"):
        mixed.finish()


def test_a_folder_without_a_pair_is_no_result_and_may_be_used_again(tmp_path):
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=3)
    skipped = records.Skipped("a/0", "no caption", "looked for txt, found jpg", num_pairs=2)
    for index in range(3):
        writer.write_shard(index, [skipped] if index else [])
    for _ in range(2):
        with raises_line(
            "no pairs, all 4 are skipped (no caption 4); the first is a/0", "looked for txt"
        ):
            writer.finish()
    assert not (tmp_path / "manifest.json").exists()
    other = dataclasses.replace(PROVENANCE, sampler={"num_steps": 12})
    assert pair_writer.write_pairs(tmp_path, [PAIR], other, num_shards=2).num_pairs == 1
    assert len(list(tmp_path.glob("*.tfrecord"))) == 2
    records.verify(tmp_path)


def test_a_shard_that_another_process_has_begun_is_not_forgotten(tmp_path):
    """Processes of a corrected run find the old one's empty shards, one after the other."""
    old = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=2)
    old.write_shard(0, [])
    old.write_shard(1, [])
    work = (tmp_path / "progress" / "work.json").read_bytes()
    other = dataclasses.replace(PROVENANCE, sampler={"num_steps": 12})
    pair_writer.PairWriter(tmp_path, other, num_shards=2).write_shard(0, [])
    (tmp_path / "progress" / "work.json").write_bytes(work)  # as the second has read it
    assert pair_writer.PairWriter(tmp_path, other, num_shards=2).missing() == [1]


@pytest.mark.parametrize(
    "contents",
    [
        b"not an Example",
        b"",  # an Example without features
        b"\n\x13\n\x11\n\x03key\x12\n\n\x08\n\x06\xff\xff\xff\xff\xff\xff",
    ],
)
def test_records_that_are_no_pairs_are_one_line(tmp_path, contents):
    from synth2_jax.data.tensorflow_cpu import tf

    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as file:
        file.write(contents)
    with raises_line("a.tfrecord is damaged", "write it again"):
        list(records.read_shard(tmp_path / "a.tfrecord"))


def test_a_record_longer_than_its_shard_is_not_read(tmp_path):
    """Its checksum is right; TensorFlow would take memory for all of it, and end the process."""
    huge = bytes.fromhex("000000000000001000000000")
    checksum = tfrecord_lengths._masked_crc(huge[:8]).to_bytes(4, "little")
    (tmp_path / "a.tfrecord").write_bytes(huge[:8] + checksum + bytes(100))
    with raises_line("a.tfrecord is damaged", "1,152,921,504,606,846,976 bytes"):
        list(records.read_shard(tmp_path / "a.tfrecord"))


def test_a_pair_may_have_a_prompt_of_its_own(tmp_path):
    asked = dataclasses.replace(PAIR, prompt="Question: what is red? Answer:")
    pair_writer.write_pairs(tmp_path, [asked, dataclasses.replace(PAIR, key="real-1")], PROVENANCE)
    assert [pair.prompt for pair in records.read_pairs(tmp_path)] == [asked.prompt, ""]


@pytest.mark.parametrize("at_a_time", [100, 1 << 22])
def test_many_keys_over_many_shards(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(unique_keys, "_KEYS_AT_A_TIME", at_a_time)
    pairs = [dataclasses.replace(PAIR, key=f"real-{i}") for i in range(2000)]
    assert (
        pair_writer.write_pairs(tmp_path / "a", pairs, PROVENANCE, num_shards=7).num_pairs == 2000
    )
    pairs[1999] = dataclasses.replace(PAIR, key="real-3")
    with raises_line("'real-3'", "twice"):
        pair_writer.write_pairs(tmp_path / "b", pairs, PROVENANCE, num_shards=7)
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_a_manifest_without_the_later_fields_opens(tmp_path):
    written = pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    del values["skipped"], values["skipped_examples"], values["shards"][0]["work"]
    path.write_text(json.dumps(values))
    opened = records.read_manifest(tmp_path)
    assert opened.fingerprint == written.fingerprint
    assert opened.skipped == {}


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_half_there(tmp_path):
    """A limit on the size of files fails as a full disk does, and needs no disk of its own."""
    script = f"""
import resource, signal
import numpy as np
from synth2_jax.data import pair_writer, records
from synth2_jax.data.tensorflow_cpu import tf
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
provenance = records.Provenance("tok-a", num_image_tokens=256, codebook_size=8)
writer = pair_writer.PairWriter({str(tmp_path)!r}, provenance, num_shards=2)
def pairs(name, count):
    tokens = np.zeros(256, int)
    return (records.Pair(f"{{name}}-{{i}}", tokens, "a circle", "real") for i in range(count))
writer.write_shard(0, pairs("a", 10))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer.write_shard(1, pairs("b", 1000))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == (
        f"synth2_jax.errors.UserError: pairs {tmp_path}: File too large; 1 of 2 shards are "
        "finished and stay, the same command makes the others"
    )
    provenance = records.Provenance("tok-a", num_image_tokens=256, codebook_size=8)
    assert pair_writer.PairWriter(tmp_path, provenance, num_shards=2).missing() == [1]
    assert not list(tmp_path.glob("*1-of*")) and not list(tmp_path.glob(".*.tmp"))


def test_a_folder_may_hold_images_in_place_of_tokens(tmp_path):
    provenance = records.Provenance("", 0, 0, image_size=32)
    pair = dataclasses.replace(PAIR, image_tokens=None, image=b"\x89PNG...")
    manifest = pair_writer.write_pairs(tmp_path, [pair], provenance)
    assert records.read_manifest(tmp_path) == manifest
    assert list(records.read_pairs(tmp_path)) == [pair]
    with raises_line("found images", "tok-a", "without --on-the-fly"):
        records.check_tokenizer(manifest, "tok-a", tmp_path)
    with raises_line("codebook of 0"):
        records.Provenance("", 0, 0)


def test_what_a_kill_at_the_very_end_leaves_is_cleaned_up(tmp_path):
    written = pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "work.json").write_text("{}")
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    assert writer.missing() == [] and writer.finish() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.slow
def test_more_shards_than_files_that_may_be_open(tmp_path):
    script = f"""
import resource
import numpy as np
from synth2_jax.data import pair_writer, records
provenance = records.Provenance("tok-a", num_image_tokens=1, codebook_size=8)
writer = pair_writer.PairWriter({str(tmp_path)!r}, provenance, num_shards=300)
for shard in range(300):
    writer.write_shard(shard, [records.Pair(str(shard), np.zeros(1, int), "a circle", "real")])
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
print(writer.finish().num_pairs)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "300\n", run.stderr[-1000:]
