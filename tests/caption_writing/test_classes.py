import logging

import pytest

from synth2_jax.caption_writing.classes import COMMON_OBJECTS, load_classes
from synth2_jax.errors import UserError


def test_names_files_and_built_in_lists_may_be_mixed(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeff# pets\r\ndog\r\n\r\n  golden   retriever \r\ncafé\r\n日本犬".encode())
    given = (str(path), "scenes", "lamp")
    assert load_classes(given, {"scenes": ("red ring", "blue ring")}) == (
        *("dog", "golden retriever", "café", "日本犬"),
        *("red ring", "blue ring", "lamp"),
    )


def test_the_built_in_list_is_of_distinct_plain_names(caplog):
    names = load_classes(COMMON_OBJECTS)
    assert len(names) > 500 and {"dog", "wine glass", "traffic light"} <= set(names)
    assert not caplog.text
    assert all(name.isascii() and name == name.lower() for name in names)
    assert load_classes("dog, wine glass") == ("dog", "wine glass")


def test_duplicates_are_merged_and_a_line_says_so(caplog):
    given = ("dog", "Cat", "DOG", "cafe\u0301", "café", "dog")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert load_classes(given) == ("dog", "Cat", "café")
    (record,) = caplog.records
    expected = "classes: 3 of 6 names are duplicates and were merged: 'dog', 'café'"
    assert record.getMessage() == expected


@pytest.mark.parametrize(
    "contents, text",
    [
        (b"dog\nca\xff\n", "line 2 is not UTF-8, expected a class name"),
        (b"dog\n\x1b[31mcat\n", r"line 2: found '\x1b[31mcat', expected a class name"),
        (b"dog\n---\n", "line 2: found '---', expected a class name"),
        (b"x" * 101, "at most 100 characters"),
        ("\u0344\u0315".encode() * 120_000, "at most 100 characters"),  # a minute to normalize
        (b"# nothing\n\n", "found no class name, expected one a line"),
    ],
)
def test_a_file_that_is_no_class_list(tmp_path, contents, text):
    (tmp_path / "classes.txt").write_bytes(contents)
    check_mistake(str(tmp_path / "classes.txt"), text)


@pytest.mark.parametrize(
    "given, text",
    [
        ("", "classes: found none, expected class names, files with one name a line"),
        ((), "classes: found none"),
        (("", " "), "classes: found none"),
        ("dog,!", "classes: found '!', expected a class name"),
        ("no/such", "classes 'no/such': no such file"),
        ("such.txt", "classes 'such.txt': no such file"),
    ],
)
def test_mistakes(given, text):
    check_mistake(given, text)


def check_mistake(given, text):
    with pytest.raises(UserError) as error:
        load_classes(given)
    assert text in str(error.value) and len(str(error.value).splitlines()) == 1
