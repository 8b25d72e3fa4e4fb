import numpy as np
import pytest

from synth2_jax.data import pair_writer, records
from synth2_jax.data.references import ReferencedImage, pair_key, read_references
from synth2_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    pairs = [
        records.Pair(pair_key(image, i), np.array([number, number + 1]), f"{image} {i}", "real")
        for number, image in enumerate(["test-000002", "test-000000", "odd-key-7"])
        for i in range(number + 1)
    ]
    pair_writer.write_pairs(tmp_path, pairs, records.Provenance("tok-a", 2, 8), num_shards=2)
    return tmp_path


def test_images_come_in_order_with_all_their_captions(folder):
    found = read_references(folder, "tok-a")
    assert [image.key for image in found] == ["test-000002", "test-000000", "odd-key-7"]
    assert [image.references for image in found] == [
        ("test-000002 0",),
        ("test-000000 0", "test-000000 1"),
        ("odd-key-7 0", "odd-key-7 1", "odd-key-7 2"),
    ]
    for number, image in enumerate(found):
        assert isinstance(image, ReferencedImage) and image.image_tokens.dtype == np.int32
        np.testing.assert_array_equal(image.image_tokens, [number, number + 1])


def test_the_first_so_many_images_are_whole(folder):
    found = read_references(folder, "tok-a", max_images=2)
    assert [len(image.references) for image in found] == [1, 2]
    assert len(read_references(folder, "tok-a", max_images=99)) == 3


def test_pairs_of_another_tokenizer_are_refused_by_both_names(folder):
    with pytest.raises(UserError, match="tokenizer tok-a, expected tokenizer tok-b"):
        read_references(folder, "tok-b")


def test_no_pairs(folder, tmp_path):
    with pytest.raises(UserError, match=r"no manifest.json"):
        read_references(tmp_path / "elsewhere", "tok-a")
    with pytest.raises(UserError, match="found none, expected images with references"):
        read_references(folder, "tok-a", max_images=0)


def test_a_question_is_its_images_own_prompt(tmp_path):
    asked = ["what is it?", "what is it?", "and this?"]
    keys = ["7/70-0", "7/70-1", "7/71-0"]
    pairs = [
        records.Pair(key, np.array([1, 2]), "a dog", "real", prompt)
        for key, prompt in zip(keys, asked, strict=True)
    ]
    pair_writer.write_pairs(tmp_path, pairs, records.Provenance("tok-a", 2, 8), num_shards=1)
    found = read_references(tmp_path, "tok-a")
    assert [(image.key, image.prompt) for image in found] == [
        ("7/70", asked[0]),
        ("7/71", asked[2]),
    ]
    assert found[0].references == ("a dog", "a dog")


def test_several_prompts_under_one_key_are_refused(tmp_path):
    pairs = [
        records.Pair(pair_key("7", i), np.array([1, 2]), "a dog", "real", prompt)
        for i, prompt in enumerate(["what?", "where?"])
    ]
    pair_writer.write_pairs(tmp_path, pairs, records.Provenance("tok-a", 2, 8), num_shards=1)
    with pytest.raises(UserError, match="image '7' has the prompts 'what\\?' and 'where\\?'"):
        read_references(tmp_path, "tok-a")
