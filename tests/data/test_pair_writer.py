"""Tests of writing folders of pairs: shard by shard, resumed, and never with a key twice."""

import dataclasses
import functools
import json
import subprocess
import sys

import numpy as np
import pytest

from synth2_jax.data import pair_writer, records, unique_keys
from synth2_jax.data.skipped import Skipped
from synth2_jax.testing.user_errors import raises_line

PROVENANCE = records.Provenance("tok-a", 3, 65536, sampler={"num_steps": 8}, config={"steps": 10})
OTHER = dataclasses.replace(PROVENANCE, sampler={"num_steps": 12})
PAIR = records.Pair("real-0", np.array([0, 65535, 256]), "a größer Kreis", "real")


@pytest.fixture
def open_writer(tmp_path):
    """open_writer(num_shards=2) -> a writer of tmp_path."""
    return functools.partial(pair_writer.PairWriter, tmp_path)


def test_an_interrupted_writer_leaves_whole_shards_only_and_is_resumed(tmp_path, open_writer):
    def interrupted():
        yield PAIR
        raise KeyboardInterrupt

    writer = open_writer(PROVENANCE, num_shards=2)
    writer.write_shard(1, [PAIR])
    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(0, interrupted())
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["pairs-00001-of-00002.tfrecord", "progress"]
    with raises_line("no manifest.json", "not finished"):
        records.read_manifest(tmp_path)

    resumed = open_writer(dataclasses.replace(PROVENANCE, config={"steps": 11}), num_shards=2)
    assert resumed.missing() == [0]
    with raises_line("1 of 2 shards are missing", "pairs-00000-of-00002.tfrecord"):
        resumed.finish()
    resumed.write_shard(0, [dataclasses.replace(PAIR, key="real-1")])
    assert resumed.finish().num_pairs == 2
    assert not (tmp_path / "progress").exists()


SCRIPT = """
import os, resource, signal
import numpy as np
from synth2_jax.data import pair_writer, records
from synth2_jax.data.tensorflow_cpu import tf
def pairs(name, count, num_tokens=3):
    tokens = np.zeros(num_tokens, int)
    return (records.Pair(f"{name}-{i}", tokens, "a circle", "real") for i in range(count))
def killed():
    yield from pairs("real", 1)
    os.kill(os.getpid(), 9)
def open_writer(num_shards, num_tokens=3):
    provenance = records.Provenance("tok-a", num_tokens, 65536, sampler={"num_steps": 8})
    return pair_writer.PairWriter(FOLDER, provenance, num_shards=num_shards)
"""


def run(folder, body):
    """Runs a body after SCRIPT in a process of its own."""
    script = SCRIPT.replace("FOLDER", repr(str(folder))) + body
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.slow
def test_a_killed_writer_leaves_no_shard(tmp_path, open_writer):
    assert run(tmp_path, "open_writer(1).write_shard(0, killed())").returncode == -9
    writer = open_writer(PROVENANCE, num_shards=1)
    assert writer.missing() == [0]
    writer.write_shard(0, [PAIR])
    writer.finish()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_half_there(tmp_path, open_writer):
    """A limit on the size of files fails as a full disk does, and needs no disk of its own."""
    body = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = open_writer(2, 256)
writer.write_shard(0, pairs("a", 10, 256))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer.write_shard(1, pairs("b", 1000, 256))
"""
    assert run(tmp_path, body).stderr.splitlines()[-1] == (
        f"synth2_jax.errors.UserError: pairs {tmp_path}: File too large; 1 of 2 shards are "
        "finished and stay, the same command makes the others"
    )
    provenance = dataclasses.replace(PROVENANCE, num_image_tokens=256)
    assert open_writer(provenance, num_shards=2).missing() == [1]
    assert not list(tmp_path.glob("*1-of*")) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_more_shards_than_files_that_may_be_open(tmp_path):
    body = """
writer = open_writer(300)
for shard in range(300):
    writer.write_shard(shard, pairs(str(shard), 1))
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
print(writer.finish().num_pairs)
"""
    done = run(tmp_path, body)
    assert done.stdout == "300\n", done.stderr[-1000:]


CAPTIONS = {"source": "server", "usage": {"answers": 3}, "sha256": "a" * 64}
GENERATOR = {"checkpoint": "generator", "step": 2, "fingerprint": "f"}


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_cannot_add_to_a_folder(open_writer, finished):
    """Only what determines the pairs is compared."""
    provenance = dataclasses.replace(PROVENANCE, captions=CAPTIONS, generator=GENERATOR)
    writer = open_writer(provenance, num_shards=1)
    writer.write_shard(0, [PAIR])
    if finished:
        writer.finish()
    for name, change in (
        ("captions", {**CAPTIONS, "sha256": "b" * 64}),
        ("captions", {**CAPTIONS, "pictures": "blank"}),
        ("captions", {"source": "coco", "sha256": ["a" * 64]}),
        ("generator", {**GENERATOR, "fingerprint": "g"}),
        ("generator", None),
        ("sampler", {"num_steps": 12}),
        ("tokenizer", "tok-a+code_choice=dot_product"),
    ):
        with raises_line(f"found pairs of {name}", "delete the folder or choose another"):
            open_writer(dataclasses.replace(provenance, **{name: change}), num_shards=1)
    moved = {
        "captions": {**CAPTIONS, "usage": {"answers": 0}},
        "generator": {**GENERATOR, "checkpoint": "moved"},
        "tokenizer": "tok-a+norm_groups=8",  # "tok-a" by an older version
    }
    same = open_writer(dataclasses.replace(provenance, **moved), num_shards=1)
    assert same.finish().num_pairs == 1


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"image_tokens": np.array([1, 2])}, ["(2,)", "(3,)"]),
        ({"image_tokens": np.array([1, 2, 65536])}, ["65536", "0 to 65535"]),
        ({"image_tokens": np.array([1, -2, 3])}, ["-2", "0 to 65535"]),
        ({"source": "fake"}, ["'fake'", "synthetic"]),
    ],
)
def test_unfit_pairs_are_refused_by_key(tmp_path, change, parts):
    with raises_line("'real-0'", *parts):
        pair_writer.write_pairs(tmp_path, [dataclasses.replace(PAIR, **change)], PROVENANCE)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_key_is_there_once(tmp_path, num_shards):
    with raises_line("'real-0'", "twice"):
        pair_writer.write_pairs(tmp_path, [PAIR, PAIR], PROVENANCE, num_shards=num_shards)


@pytest.mark.parametrize("at_a_time", [100, 1 << 22])
def test_many_keys_over_many_shards(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(unique_keys, "_KEYS_AT_A_TIME", at_a_time)
    write = functools.partial(pair_writer.write_pairs, provenance=PROVENANCE, num_shards=7)
    pairs = [dataclasses.replace(PAIR, key=f"real-{i}") for i in range(2000)]
    assert write(tmp_path / "a", pairs).num_pairs == 2000
    pairs[1999] = dataclasses.replace(PAIR, key="real-3")
    with raises_line("'real-3'", "twice"):
        write(tmp_path / "b", pairs)
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
def test_what_an_earlier_run_has_written_is_read_back(
    tmp_path, open_writer, pattern, contents, message
):
    first = open_writer(PROVENANCE, num_shards=2)
    for index in first.missing():
        first.write_shard(index, [dataclasses.replace(PAIR, key=f"real-{index}")])
    (path,) = tmp_path.glob(pattern)
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    with raises_line(str(path), message):
        open_writer(PROVENANCE, num_shards=2).finish()
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"skipped": {"x": 1}}, ["found the digest", "Delete it"]),
        ({"captions_cut": 1}, ["found the digest", "Delete it"]),
        # As before there were digests.
        ({"digest": "", "shard": {"num_bytes": 1}}, ["num_bytes", "Delete this file"]),
        ({"digest": "", "shard": {"work": "x"}}, ["written by another run", "delete"]),
    ],
)
def test_what_an_earlier_run_noted_is_compared(tmp_path, open_writer, change, parts):
    open_writer(PROVENANCE, num_shards=1).write_shard(0, [PAIR])
    (path,) = tmp_path.glob("progress/*.tfrecord.json")
    values = json.loads(path.read_text())
    shard = {**values["shard"], **change.get("shard", {})}
    path.write_text(json.dumps({**values, **change, "shard": shard}))
    with raises_line(path.stem, *parts):
        open_writer(PROVENANCE, num_shards=1).finish()


def test_what_was_skipped_is_counted_by_reason_and_shown(tmp_path, open_writer):
    bad = Skipped("000000017", "corrupt image", "cannot identify image file", num_pairs=5)
    late = Skipped("000000018", "empty caption")
    odd = Skipped("caf\ud83d", "empty caption", "\udcff" * 9999)
    open_writer(PROVENANCE, num_shards=2).write_shard(0, [bad, PAIR])
    resumed = open_writer(PROVENANCE, num_shards=2)
    resumed.write_shard(1, [late, odd])
    manifest = resumed.finish()
    assert manifest == records.read_manifest(tmp_path)
    assert manifest.num_pairs == 1
    assert manifest.skipped == {"corrupt image": 5, "empty caption": 2}
    shown = manifest.skipped_examples
    assert shown[0] == {"key": bad.key, "reason": bad.reason, "detail": bad.detail}
    assert shown[2]["key"] == r"caf\ud83d" and len(shown[2]["detail"]) == 3000


def test_a_shard_whose_description_was_not_written_yet_is_written_again(tmp_path, open_writer):
    open_writer(PROVENANCE, num_shards=1).write_shard(0, [PAIR])
    (sidecar,) = (tmp_path / "progress").glob("*.tfrecord.json")
    sidecar.unlink()
    assert open_writer(PROVENANCE, num_shards=1).missing() == [0]


def test_shards_know_what_determines_them(tmp_path):
    works = [
        {shard.work for shard in pair_writer.write_pairs(folder, [PAIR], of, num_shards=2).shards}
        for folder, of in ((tmp_path / "a", PROVENANCE), (tmp_path / "b", OTHER))
    ]
    assert len(works[0] | works[1]) == 4
    again = pair_writer.write_pairs(tmp_path / "c", [PAIR], PROVENANCE, num_shards=2)
    assert {shard.work for shard in again.shards} == works[0]


def test_a_folder_without_a_pair_is_no_result_and_may_be_used_again(tmp_path, open_writer):
    writer = open_writer(PROVENANCE, num_shards=3)
    skipped = Skipped("a/0", "no caption", "looked for txt, found jpg", num_pairs=2)
    for index in range(3):
        writer.write_shard(index, [skipped] if index else [])
    lost = "no pairs, all 4 are skipped (no caption 4); the first is a/0"
    for _ in range(2):
        with raises_line(lost, "looked for txt"):
            writer.finish()
    assert not (tmp_path / "manifest.json").exists()
    assert pair_writer.write_pairs(tmp_path, [PAIR], OTHER, num_shards=2).num_pairs == 1
    assert len(list(tmp_path.glob("*.tfrecord"))) == 2
    records.verify(tmp_path)


def test_a_shard_that_another_process_has_begun_is_not_forgotten(tmp_path, open_writer):
    """Processes of a corrected run find the old one's empty shards, one after the other."""
    old = open_writer(PROVENANCE, num_shards=2)
    for index in (0, 1):
        old.write_shard(index, [])
    work = (tmp_path / "progress" / "work.json").read_bytes()
    open_writer(OTHER, num_shards=2).write_shard(0, [])
    (tmp_path / "progress" / "work.json").write_bytes(work)  # as the second has read it
    assert open_writer(OTHER, num_shards=2).missing() == [1]


def test_what_a_kill_at_the_very_end_leaves_is_cleaned_up(tmp_path, open_writer):
    written = pair_writer.write_pairs(tmp_path, [PAIR], PROVENANCE)
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "work.json").write_text("{}")
    writer = open_writer(PROVENANCE, num_shards=1)
    assert writer.missing() == [] and writer.finish() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == before
