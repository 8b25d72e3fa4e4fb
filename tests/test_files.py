"""Small files: written whole or not at all, and read with the line that is wrong."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from synth2_jax import files
from synth2_jax.testing.user_errors import raises_line, user_error


def test_json_lines_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    rows = [
        {"caption": "a red circle", "draw": 0},
        {"caption": "line\nline\r\n, \u2028, \u0085, \x1c and \x0c", "nested": {"a": [1, None]}},
        {"caption": "日本 🎈 é"},
    ]
    files.write_json_lines(path, rows)
    assert files.read_json_lines(path) == rows
    assert "日本 🎈 é" in path.read_text(encoding="utf-8")  # for people to read
    assert path.read_bytes().count(b"\n") == 3


def test_there_may_be_no_rows_and_no_end_of_the_last(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.write_json_lines(path, iter([]))
    assert path.read_bytes() == b"" and files.read_json_lines(path) == []
    path.write_bytes(b'{"a": 1}\r\n{"a": 2}')
    assert files.read_json_lines(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": 1}\n{"a":\n', "line 2 is not JSON"),
        (b'{"a": 1}\n\n{"a": 2}\n', "line 2 is not JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is not JSON"),
        (b'{"a": 1}\n{"a": 1}\n[1, 2]\n', "line 3 is [1, 2], expected a JSON object"),
        (None, "no such file, expected one JSON object a line"),
    ],
)
def test_bad_lines_are_user_errors_by_number(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with raises_line("rows.jsonl: ", message):
        files.read_json_lines(path)
    with raises_line("rows.jsonl: ", message):  # named when it is reached
        list(files.JsonLinesFile(path).rows(0, 9))


@pytest.mark.parametrize(
    "contents, message",
    [
        (None, "no such file; "),
        (b'{"a": [1, ', "not JSON "),
        (b"", "not JSON "),
        (b'{"a": "\xff"}', "not JSON "),
        (b"[1, 2]", "found [1, 2]; "),
        # What could not be written again.
        (b'{"a": NaN}', "not JSON (found NaN"),
        (b'{"a": -Infinity}', "not JSON (found -Infinity"),
        (b'{"a": 1e400}', "not JSON (found 1e400"),
        (b'{"a": 18446744073709551616}', "expected one of 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected one of 64 bits"),
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"),
        (b"[" * 100_000, "too deeply nested"),
        (b'{"a": "\xed\xa0\xbd"}', "invalid continuation byte"),
    ],
)
def test_json_that_is_not_what_was_written_is_a_user_error(tmp_path, contents, message):
    path = tmp_path / "value.json"
    if contents is not None:
        path.write_bytes(contents)
    with raises_line("value.json: ", message, "expected what `synth2 demo` leaves there"):
        files.read_json(path, "demo")


def test_json_of_numbers_emoji_and_a_byte_order_mark_is_read():
    contents = '\ufeff{"a": [-9223372036854775808, 1.5e3, "\\ud83d\\ude00", true]}'
    assert files.load_json(contents.encode()) == {"a": [-(2**63), 1500.0, "😀", True]}


def test_json_is_indented_and_ends_its_line(tmp_path):
    files.write_json(tmp_path / "value.json", {"a": [1]})
    assert (tmp_path / "value.json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    assert files.read_json(tmp_path / "value.json", "demo") == {"a": [1]}


def test_a_write_replaces_all_or_leaves_the_old_file(tmp_path):
    path = tmp_path / "note.txt"
    files.write_text(path, "a longer first text")
    files.write_text(path, "second é")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "new \ud800")
    with pytest.raises(TypeError):
        files.write_json_lines(path, [{"a": 1}, {"a": object()}])
    assert path.read_text(encoding="utf-8") == "second é"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_of_one_number_on_two_machines_write_one_file_whole(tmp_path, monkeypatch):
    """And names as long as a name may be."""
    monkeypatch.setattr(files.os, "getpid", lambda: 17)
    path = tmp_path / ("é" * 127)
    with files.written_whole(path) as first, files.written_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_folder_that_cannot_be_is_blamed_on_tmpdir(monkeypatch):
    line = r"TMPDIR: No space left on device\. Set TMPDIR to"
    with user_error(line), files.temporary_folder() as folder:
        assert pathlib.Path(folder).is_dir()
        raise RuntimeError(f"{folder}/iterator; No space left on device")
    assert not pathlib.Path(folder).exists()
    with pytest.raises(ZeroDivisionError), files.temporary_folder():
        1 / 0  # noqa: B018
    monkeypatch.setattr(files.tempfile, "tempdir", "/no/where")
    with user_error(r"TMPDIR: No such file or directory\. Set TMPDIR"), files.temporary_folder():
        pytest.fail("made")


def test_a_write_that_the_system_refuses_names_the_file_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error, files.written_whole(tmp_path / "folder") as temporary:
        temporary.touch()
    assert error.value.filename == str(tmp_path / "folder") and error.value.filename2 is None


def test_what_json_has_no_number_for_is_null(tmp_path):
    value = {"a": [float("nan"), np.float64("-inf"), 1.5], "b": {"c": (float("inf"), "NaN", None)}}
    expected = {"a": [None, None, 1.5], "b": {"c": [None, "NaN", None]}}
    files.write_json(tmp_path / "value.json", value)
    files.write_json_lines(tmp_path / "rows.jsonl", [value])
    assert json.loads((tmp_path / "value.json").read_text(), parse_constant=pytest.fail) == expected
    assert json.loads((tmp_path / "rows.jsonl").read_text(), parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 10_000])
def test_any_range_of_a_long_file(tmp_path, count):
    path = tmp_path / "rows.jsonl"
    files.write_json_lines(path, [{"n": n, "text": "ü\u2028" * (n % 3)} for n in range(count)])
    file = files.JsonLinesFile(path)
    assert file.num_rows == count
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for start, stop in ((0, 2), (4094, 4098), (max(count - 1, 0), count + 5), (8191, 8193), (7, 7)):
        found = list(file.rows(start, stop))
        numbers = range(start, min(stop, count))
        assert [(number, row["n"]) for number, row in found] == [(n + 1, n) for n in numbers]


def test_a_line_that_is_no_object_costs_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 0}\n[1]\n{"n"')
    assert list(files.JsonLinesFile(path).rows(0, 1)) == [(1, {"n": 0})]
