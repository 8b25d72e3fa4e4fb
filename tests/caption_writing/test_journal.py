import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from synth2_jax.caption_writing.answers import Answer
from synth2_jax.caption_writing.journal import Journal
from synth2_jax.errors import UserError


def answer_of(text):
    return Answer(text, "stop", "m", 10, 4)


def row_of(key, **changes):
    """A line as `append` writes it."""
    row = {"key": key, "text": "x", "finish_reason": "", "model": "m", "server": ""}
    return {**row, "prompt_tokens": None, "completion_tokens": None, **changes}


def test_what_was_appended_is_there_again(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    with Journal(path) as journal:
        journal.append("a", answer_of("犬 \ud83d\n\x1b[31m"))  # half of a surrogate pair
        journal.append("b", answer_of(""))
        assert json.loads(path.read_text().splitlines()[0])["key"] == "a"  # before it is closed
    assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 2
    with Journal(path) as journal:
        assert journal.answers.get("a") == answer_of("犬 \ud83d\n\x1b[31m")
        assert journal.answers.get("c") is None
        assert len(journal.answers) == 2


def test_cut_at_any_byte_it_loses_no_more_than_the_last_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        for key in "abc":
            journal.append(key, answer_of(key * 3))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(path) as journal:
            # A line that lacks its line break alone is whole.
            assert len(journal.answers) == sum(end - 1 <= size for end in ends)
            journal.append("d", answer_of("new"))
        with Journal(path) as journal:
            assert journal.answers.get("d") == answer_of("new")
            assert len(journal.answers) == 1 + sum(end - 1 <= size for end in ends)


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"3", b"{}", b"\xff", b"null", b"", b"\0\0\0", b"[" * 100_000),
        *(
            json.dumps(row).encode()
            for row in (
                row_of(3),
                row_of("b", text=None),
                row_of("b", model="\ud83d"),
                row_of("b", model="m" * 1001),
                row_of("b", finish_reason=["stop"]),
                row_of("b", server="\x1b[31m"),
                row_of("b", prompt_tokens=10**400),
                row_of("b", prompt_tokens=-1),
                row_of("b", completion_tokens=True),
                row_of("b", completion_tokens=float("nan")),
                row_of("b", more=1),
                {"key": "b", "text": "x"},
            )
        ),
    ],
)
def test_damage_before_the_last_line_is_named(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    good = json.dumps(row_of("a")).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with pytest.raises(
        UserError, match=r"answers.jsonl: line 2 is damaged \(.*Delete that line"
    ) as e:
        Journal(path).__enter__()
    assert str(e.value).isprintable()
    path.write_bytes(good + b"\n" + line)  # as a kill leaves it
    with Journal(path) as journal:
        assert len(journal.answers) == 1
    assert path.read_bytes() == good + b"\n"


def test_no_changed_answer_is_used(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        journal.append("a", answer_of("a dog"))
        journal.append("b", answer_of("a cat"))
    whole = path.read_bytes()
    for place in range(whole.index(b"\n")):
        for bit in (0, 5):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(UserError, match="line [12] is damaged"):
                Journal(path).__enter__()


def test_two_runs_cannot_share_it(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path), pytest.raises(UserError, match="another run is writing to it"):
        Journal(path).__enter__()
    with Journal(path):
        pass


def test_a_killed_process_keeps_what_it_appended_and_lets_go(tmp_path):
    path = tmp_path / "answers.jsonl"
    code = (
        "import os, pathlib, sys\n"
        "from synth2_jax.caption_writing.answers import Answer\n"
        "from synth2_jax.caption_writing.journal import Journal\n"
        "with Journal(pathlib.Path(sys.argv[1])) as journal:\n"
        "    journal.append('a', Answer('x', 'stop', 'm', 10, 4))\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert journal.answers.get("a") == answer_of("x")


@pytest.fixture
def small_disk():
    """small_disk(bytes) lets no file of this process grow beyond that size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_finds_no_room_is_told_and_leaves_no_half(tmp_path, small_disk):
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        journal.append("a", answer_of("x"))
        whole = path.read_bytes()
        small_disk(len(whole) + 20)
        for _ in range(2):
            with pytest.raises(
                UserError, match="File too large; an answer .* is lost, the 1 before"
            ):
                journal.append("b", answer_of("y"))
            assert path.read_bytes() == whole and journal.answers.get("b") is None
        small_disk(1 << 20)
        journal.append("b", answer_of("y"))
    with Journal(path) as journal:
        assert len(journal.answers) == 2


def test_a_full_disk_is_noticed_before_anything_is_asked(tmp_path, monkeypatch):
    with Journal(tmp_path / "answers.jsonl") as journal:
        journal.check_room()
        found = os.statvfs(tmp_path)
        full = os.statvfs_result((*found[:4], 1, *found[5:]))
        monkeypatch.setattr(os, "fstatvfs", lambda descriptor: full)
        with pytest.raises(UserError, match="the disk is full .*expected 16 MiB.*nothing more"):
            journal.check_room()
        unknown = os.statvfs_result((*found[:2], 0, 0, 0, *found[5:]))
        monkeypatch.setattr(os, "fstatvfs", lambda descriptor: unknown)
        journal.check_room()
