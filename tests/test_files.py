import hashlib
import json
import pathlib

import numpy as np
import pytest

from synth2_jax import files
from synth2_jax.errors import UserError


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


def test_no_rows_are_an_empty_file(tmp_path):
    files.write_json_lines(tmp_path / "rows.jsonl", iter([]))
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert files.read_json_lines(tmp_path / "rows.jsonl") == []


def test_the_last_line_may_lack_its_end(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}')
    assert files.read_json_lines(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": 1}\n{"a":\n', "rows.jsonl: line 2 is not JSON"),
        (b'{"a": 1}\n\n{"a": 2}\n', "rows.jsonl: line 2 is not JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "rows.jsonl: line 2 is not JSON"),
        (
            b'{"a": 1}\n{"a": 1}\n[1, 2]\n',
            r"rows.jsonl: line 3 is \[1, 2\], expected a JSON object",
        ),
    ],
)
def test_bad_lines_are_user_errors_by_number(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read_json_lines(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "contents, message",
    [
        (b'{"a": NaN}', "found NaN"),
        (b'{"a": -Infinity}', "found -Infinity"),
        (b'{"a": 1e400}', "found 1e400"),
        (b'{"a": 18446744073709551616}', "expected one of 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected one of 64 bits"),
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"),
        (b"[" * 100_000, "too deeply nested"),
        (b'{"a": "\xed\xa0\xbd"}', "invalid continuation byte"),
    ],
)
def test_json_that_could_not_be_written_again_is_refused(tmp_path, contents, message):
    (tmp_path / "value.json").write_bytes(contents)
    with pytest.raises(UserError, match=f"not JSON .*{message}.*`synth2 demo`"):
        files.read_json(tmp_path / "value.json", "demo")


def test_json_of_numbers_emoji_and_a_byte_order_mark_is_read():
    contents = '\ufeff{"a": [-9223372036854775808, 1.5e3, "\\ud83d\\ude00", true]}'
    assert files.load_json(contents.encode()) == {"a": [-(2**63), 1500.0, "😀", True]}


def test_a_missing_file_is_a_user_error(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            files.read_json_lines(path)


def test_json_is_indented_and_ends_its_line(tmp_path):
    files.write_json(tmp_path / "value.json", {"a": [1]})
    text = (tmp_path / "value.json").read_text()
    assert json.loads(text) == {"a": [1]} and text.startswith('{\n  "a"') and text.endswith("}\n")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "note.txt"
    files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "new \ud800")
    assert path.read_text() == "old"
    with pytest.raises(TypeError):
        files.write_json_lines(path, [{"a": 1}, {"a": object()}])
    assert path.read_text() == "old"


def test_a_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "note.txt"
    files.write_text(path, "a longer first text")
    files.write_text(path, "second é")
    assert path.read_text(encoding="utf-8") == "second é"
    assert [found.name for found in tmp_path.iterdir()] == ["note.txt"]


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
    refused = pytest.raises(UserError, match=r"\ATMPDIR: No space left on device\. Set TMPDIR to")
    with refused, files.temporary_folder() as folder:
        assert pathlib.Path(folder).is_dir()
        raise RuntimeError(f"{folder}/iterator; No space left on device")
    assert not pathlib.Path(folder).exists()
    monkeypatch.setattr(files.tempfile, "tempdir", "/no/where")
    refused = pytest.raises(UserError, match=r"\ATMPDIR: No such file or directory\. Set TMPDIR to")
    with refused, files.temporary_folder():
        pytest.fail("made")
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), files.temporary_folder():
        1 / 0  # noqa: B018


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


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "value.json: no such file; expected what `synth2 demo` leaves there"),
        (b'{"a": [1, ', "value.json: not JSON .*; expected what `synth2 demo` leaves there"),
        (b"", "value.json: not JSON .*; expected what"),
        (b'{"a": "\xff"}', "value.json: not JSON .*; expected what"),
        (b"[1, 2]", r"value.json: found \[1, 2\]; expected what"),
    ],
)
def test_json_that_is_not_what_was_written_is_a_user_error(tmp_path, content, message):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        files.read_json(path, "demo")
    assert "\n" not in str(error.value)
    files.write_json(path, {"a": 1})
    assert files.read_json(path, "demo") == {"a": 1}


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 10_000])
def test_any_range_of_a_long_file(tmp_path, count):
    path = tmp_path / "rows.jsonl"
    files.write_json_lines(path, [{"n": n, "text": "ü\u2028" * (n % 3)} for n in range(count)])
    file = files.JsonLinesFile(path)
    assert file.num_rows == count
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for start, stop in ((0, 2), (4094, 4098), (count - 1, count + 5), (8191, 8193), (7, 7)):
        found = list(file.rows(max(start, 0), stop))
        numbers = range(max(start, 0), min(stop, count))
        assert [(number, row["n"]) for number, row in found] == [(n + 1, n) for n in numbers]


def test_a_line_that_is_no_object_is_named_when_it_is_reached(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 0}\n[1]\n{"n"')
    file = files.JsonLinesFile(path)
    assert list(file.rows(0, 1)) == [(1, {"n": 0})]
    with pytest.raises(UserError, match=r"line 2 is \[1\], expected a JSON object"):
        list(file.rows(1, 2))
    with pytest.raises(UserError, match="line 3 is not JSON"):
        list(file.rows(2, 3))
    with pytest.raises(UserError, match="no such file"):
        files.JsonLinesFile(tmp_path / "none.jsonl")
