"""Document frequencies of a corpus: the images of a folder of pairs or of a COCO file."""

import json

import numpy as np
import pytest

from synth2_jax.data import pair_writer
from synth2_jax.data.records import Pair, Provenance
from synth2_jax.data.references import pair_key
from synth2_jax.errors import UserError
from synth2_jax.evaluation.document_frequencies import read_document_frequencies
from synth2_jax.scoring.captions import document_frequency

CORPUS = {"a-1": ["a dog", "the dog"], "a-2": ["a cat"], "7": ["a dog runs"]}


def test_images_of_pairs_and_of_a_coco_file_are_counted(tmp_path):
    pairs = [
        Pair(pair_key(image, number), np.array([1]), caption, "real")
        for image, captions in CORPUS.items()
        for number, caption in enumerate(captions)
    ]
    pair_writer.write_pairs(tmp_path / "pairs", pairs, Provenance("any", 1, 2))
    rows = [{"image_id": i, "caption": c} for i, captions in CORPUS.items() for c in captions]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": rows}))
    expected = document_frequency(list(CORPUS.values()))
    assert expected.counts[("dog",)] == 2  # twice of one image counts once
    for name in ("pairs", "coco.json"):
        found = read_document_frequencies(tmp_path / name)
        assert (found.counts, found.num_images) == (expected.counts, 3)
        assert str(found) == f"{name} (3 images)"


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot read .*FileNotFoundError"),
        ("{", "cannot read .*JSONDecodeError"),
        ("[1]", "cannot read .*TypeError"),
        ('{"annotations": [{"image_id": 1}]}', "cannot read .*KeyError: 'caption'"),
        ('{"annotations": [{"image_id": 1, "caption": null}]}', "image 1 has the caption None"),
        ('{"annotations": []}', "has no captions, expected some"),
    ],
)
def test_other_files_are_one_line(tmp_path, text, message):
    path = tmp_path / "captions.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"^--config.document_frequencies: .*{message}") as error:
        read_document_frequencies(path)
    assert len(str(error.value).splitlines()) == 1
