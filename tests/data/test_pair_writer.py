"""Tests of writing folders of pairs: shard by shard, resumed, and never with a key twice."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from synth2_jax.data import pair_writer, records, unique_keys
from synth2_jax.testing.user_errors import raises_line

PROVENANCE = records.Provenance("tok-a", 3, 65536, sampler={"num_steps": 8}, config={"steps": 10})
PAIR = records.Pair("real-0", np.array([0, 65535, 256]), "a größer Kreis", "real")


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
        tokenizer="tok-a+norm_groups=8",  # "tok-a" by an older version
    )
    assert pair_writer.PairWriter(tmp_path, moved, num_shards=1).finish().num_pairs == 1
    for name, change, text in (
        ("tokenizer", "tok-a+code_choice=dot_product", "found pairs of tokenizer"),
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


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"skipped": {"x": 1}}, ["found the digest", "Delete it"]),
        ({"captions_cut": 1}, ["found the digest", "Delete it"]),
        # As before there were digests.
        ({"digest": "", "shard": {"num_bytes": 1}}, ["num_bytes", "Delete this file"]),
    ],
)
def test_what_an_earlier_run_noted_is_compared(tmp_path, change, parts):
    pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1).write_shard(0, [PAIR])
    (path,) = tmp_path.glob("progress/*.tfrecord.json")
    values = json.loads(path.read_text())
    shard = {**values["shard"], **change.get("shard", {})}
    path.write_text(json.dumps({**values, **change, "shard": shard}))
    with raises_line(str(path), *parts):
        pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1).finish()


def test_what_is_said_of_a_skipped_example_can_be_read_again(tmp_path):
    writer = pair_writer.PairWriter(tmp_path, PROVENANCE, num_shards=1)
    writer.write_shard(0, [PAIR, records.Skipped("caf\ud83d", "corrupt image", "\udcff" * 9999)])
    writer.finish()
    (shown,) = records.read_manifest(tmp_path).skipped_examples
    assert shown["key"] == r"caf\ud83d" and len(shown["detail"]) == 3000


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
