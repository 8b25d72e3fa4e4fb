import hashlib

import pytest

from synth2_jax.caption_writing.drafts import Draft
from synth2_jax.caption_writing.text_file import TextFileSource
from synth2_jax.errors import UserError

CLASSES = ("dog", "hot dog", "knife", "cherry", "犬")


def read(tmp_path, name, contents, classes=CLASSES):
    path = tmp_path / name
    path.write_bytes(contents)
    return list(TextFileSource(str(path), classes).read())


def test_each_line_is_a_caption_of_the_class_it_names(tmp_path):
    lines = (
        "\ufeffa dog sits\r\n\r\n a hot dog and a dog \ntwo Dogs with knives\nthe cherries\n"
        "a dogma\n芝生の上の犬だ"
    )
    found = read(tmp_path, "captions.txt", lines.encode())
    assert found == [
        Draft("dog", 1, "a dog sits"),
        Draft("hot dog", 3, "a hot dog and a dog"),
        Draft("dog", 4, "two Dogs with knives"),
        Draft("cherry", 5, "the cherries"),
        Draft(None, 6, "a dogma", drop_reason="class not named"),
        Draft("犬", 7, "芝生の上の犬だ"),
    ]


def test_a_class_is_looked_for_at_the_beginning_of_a_long_line(tmp_path):
    marks = "\u0344\u0315" * 120_000  # a minute to normalize
    first, second = read(tmp_path, "captions.txt", f"a dog {marks}\n{marks} a dog".encode())
    assert (first.class_name, second.drop_reason) == ("dog", "class not named")


def test_without_classes_every_line_is_taken(tmp_path):
    found = read(tmp_path, "captions.txt", b"a dog\nanything\n", classes=None)
    assert found == [Draft(None, 1, "a dog"), Draft(None, 2, "anything")]


def test_json_lines_may_name_their_class_and_bad_ones_are_counted(tmp_path):
    lines = [
        b'{"caption": " a dog sits ", "class": "cat", "score": 0.5}',
        b'{"caption": "a dog sits"}',
        b'{"caption": "a half \\ud83d", "class": "dog"}',
        b'{"text": "a dog"}',
        b'{"caption": 3}',
        b'{"caption": "a dog", "class": 3}',
        b"[1]",
        b'{"caption": "a d',
        b'{"caption": "\xff"}',
        b"[" * 100_000,
    ]
    found = read(tmp_path, "captions.jsonl", b"\n".join(lines))
    assert [(d.class_name, d.caption, d.drop_reason) for d in found] == [
        ("cat", "a dog sits", ""),
        ("dog", "a dog sits", ""),
        ("dog", "a half \ud83d", ""),  # for the filter to drop
        (None, "", "no caption"),
        (None, "", "no caption"),
        (None, "", "unknown class"),
        (None, "", "no caption"),
        (None, "", "not JSON"),
        (None, "", "not UTF-8"),
        (None, "", "not JSON"),
    ]
    assert [draft.draw for draft in found] == list(range(1, 11))


def test_invalid_utf8_spoils_its_own_line_alone(tmp_path):
    found = read(tmp_path, "captions.txt", b"a dog\n\xff\xfe dog\n\xc3\na dog again\n")
    assert [draft.drop_reason for draft in found] == ["", "not UTF-8", "not UTF-8", ""]


def test_it_is_described_by_name_and_hash(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"a dog\n\nanother")
    source = TextFileSource(str(path), None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.describe() == {"file": "captions.txt", "file_sha256": digest}
    assert source.num_lines() == 3


def test_no_such_file():
    with pytest.raises(UserError, match="text_file 'no such': no such file. Give a file"):
        TextFileSource("no such", None)
