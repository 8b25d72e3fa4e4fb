import json

import pytest

from synth2_jax.caption_writing.folder import read_manifest
from synth2_jax.errors import UserError
from synth2_jax.experiments.caption_sets import balance_of, natural_quotas, sample, write_captions
from synth2_jax.files import JsonLinesFile

CLASSES = ("red circle", "blue ring", "cyan ring")
CAPTIONS = ("two red circles", "a red circle and a blue ring", "a picture", "A Red circle, left")


@pytest.mark.parametrize(
    "total, quotas",
    [
        (4, {"red circle": 3, "blue ring": 1}),
        (10, {"red circle": 8, "blue ring": 2}),  # 7.5 and 2.5: of equal remainders the first
        (1, {"red circle": 1}),
        (4000, {"red circle": 3000, "blue ring": 1000}),
    ],
)
def test_classes_get_captions_as_often_as_the_real_captions_name_them(total, quotas):
    assert natural_quotas(CAPTIONS, CLASSES, total) == quotas


def test_real_captions_that_name_no_class_are_an_error():
    with pytest.raises(UserError, match="no real caption names a class, such as 'red circle'"):
        natural_quotas(["a picture"], CLASSES, 10)


@pytest.mark.parametrize("number", [2, 4, 7, 8])
def test_a_sample_has_exactly_so_many_captions_as_evenly_as_can_be(number):
    found = sample(CAPTIONS, number, seed=0)
    assert len(found) == number and found == sample(CAPTIONS, number, seed=0)
    counts = [found.count(caption) for caption in CAPTIONS]
    assert max(counts) - min(counts) <= 1
    assert any(sample(CAPTIONS, number, seed) != found for seed in range(1, 9))


def test_captions_are_written_as_the_stage_leaves_them(tmp_path):
    write_captions(str(tmp_path), CAPTIONS, "real pairs")
    captions = JsonLinesFile(tmp_path / "captions.jsonl")
    manifest = read_manifest(tmp_path, captions)  # raises unless it belongs to the captions
    assert (manifest["source"], manifest["num_captions"]) == ("real pairs", len(CAPTIONS))
    rows = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert [json.loads(row)["caption"] for row in rows] == list(CAPTIONS)


def test_a_set_of_one_caption_has_no_entropy_and_a_mixed_one_has():
    found = balance_of({"one": ["a red ring"] * 30, "mixed": [f"a {c} x" for c in "abcdef"] * 5})
    assert (found["one"]["entropy"], found["one"]["top5_share"]) == (0.0, 1.0)
    assert found["mixed"]["entropy"] > 1 and found["mixed"]["captions"] == 30
