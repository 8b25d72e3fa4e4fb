import json
import os
import signal
import subprocess
import sys

import pytest

from synth2_jax.captioners.journal import Journal
from synth2_jax.errors import UserError


def test_what_was_appended_is_there_again(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    with Journal(path) as journal:
        journal.append("a", {"text": "犬 \ud83d\n\x1b[31m"})  # half of a surrogate pair
        journal.append("b", {"text": ""})
        assert json.loads(path.read_text().splitlines()[0])["key"] == "a"  # before it is closed
    assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 2
    with Journal(path) as journal:
        assert journal.get("a") == {"text": "犬 \ud83d\n\x1b[31m"}
        assert journal.get("c") is None
        assert len(journal) == len(journal.answers()) == 2


def test_cut_at_any_byte_it_loses_no_more_than_the_last_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path) as journal:
        for key in "abc":
            journal.append(key, {"text": key * 3})
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(path) as journal:
            # A line that lacks its line break alone is whole.
            assert len(journal) == sum(end - 1 <= size for end in ends)
            journal.append("d", {"text": "new"})
        with Journal(path) as journal:
            assert journal.get("d") == {"text": "new"}
            assert len(journal) == 1 + sum(end - 1 <= size for end in ends)


@pytest.mark.parametrize("line", [b"{", b"3", b"{}", b"\xff", b"null", b"", b"\0\0\0"])
def test_damage_before_the_last_line_is_named(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a"}\n' + line + b'\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"answers.jsonl: line 2 is damaged \(.*delete that line"):
        Journal(path).__enter__()


def test_two_runs_cannot_share_it(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path), pytest.raises(UserError, match="another run is writing there"):
        Journal(path).__enter__()
    with Journal(path):
        pass


def test_a_killed_process_keeps_what_it_appended_and_lets_go(tmp_path):
    path = tmp_path / "answers.jsonl"
    code = (
        "import os, pathlib, sys\n"
        "from synth2_jax.captioners.journal import Journal\n"
        "with Journal(pathlib.Path(sys.argv[1])) as journal:\n"
        "    journal.append('a', {'text': 'x'})\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert journal.get("a") == {"text": "x"}
