import numpy as np
import pytest

from synth2_jax.data import pair_writer, records
from synth2_jax.data.references import pair_key, read_references
from synth2_jax.testing.user_errors import raises_line


def write(folder, keys, prompts=None):
    """Writes pairs of these keys; the image tokens of the image "n-0" are n and 1."""
    tokens = [np.array([int(key[0]), 1]) for key in keys]
    prompts = prompts or [""] * len(keys)
    pairs = [
        records.Pair(key, row, f"of {key}", "real", prompt)
        for key, row, prompt in zip(keys, tokens, prompts, strict=True)
    ]
    pair_writer.write_pairs(folder, pairs, records.Provenance("tok-a", 2, 8), num_shards=2)


@pytest.fixture
def folder(tmp_path):
    keys = ["2-test", "0-test", "7-odd-key"]
    write(tmp_path, [pair_key(key, i) for n, key in enumerate(keys) for i in range(n + 1)])
    return tmp_path


def test_images_come_in_order_with_all_their_captions(folder):
    found = read_references(folder, "tok-a")
    assert [image.key for image in found] == ["2-test", "0-test", "7-odd-key"]
    assert [image.references for image in found] == [
        ("of 2-test-0",),
        ("of 0-test-0", "of 0-test-1"),
        ("of 7-odd-key-0", "of 7-odd-key-1", "of 7-odd-key-2"),
    ]
    for number, image in zip((2, 0, 7), found, strict=True):
        assert image.image_tokens.dtype == np.int32
        np.testing.assert_array_equal(image.image_tokens, [number, 1])
    assert [len(image.references) for image in read_references(folder, "tok-a", 2)] == [1, 2]
    assert len(read_references(folder, "tok-a", max_images=99)) == 3


def test_what_holds_no_references_is_refused(folder, tmp_path):
    with raises_line("tokenizer tok-a, expected tokenizer tok-b"):
        read_references(folder, "tok-b")
    with raises_line("no manifest.json"):
        read_references(tmp_path / "elsewhere", "tok-a")
    with raises_line("found none, expected images with references"):
        read_references(folder, "tok-a", max_images=0)


def test_a_question_is_its_images_own_prompt(tmp_path):
    asked = ["what is it?", "what is it?", "and this?"]
    write(tmp_path / "a", ["7/70-0", "7/70-1", "7/71-0"], asked)
    found = read_references(tmp_path / "a", "tok-a")
    assert [(image.key, image.prompt) for image in found] == [
        ("7/70", asked[0]),
        ("7/71", asked[2]),
    ]
    assert len(found[0].references) == 2
    write(tmp_path / "b", ["7-0", "7-1"], ["what?", "where?"])
    with raises_line("image '7' has the prompts 'what?' and 'where?'"):
        read_references(tmp_path / "b", "tok-a")
