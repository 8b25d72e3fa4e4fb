"""What was predicted, in the file formats that the data sets' own scorers read.

COCO's results and annotations of captions (https://cocodataset.org/#format-results), VQA's results
of answers (https://visualqa.org/evaluation.html).
"""

import collections
import re
from collections.abc import Sequence
from typing import Any

from synth2_jax.data.references import ReferencedImage


def caption_results(
    images: Sequence[ReferencedImage], captions: Sequence[str]
) -> list[dict[str, Any]]:
    """[{"image_id", "caption"}]."""
    return [
        {"image_id": number, "caption": caption}
        for number, caption in zip(_ids(images), captions, strict=True)
    ]


def caption_annotations(images: Sequence[ReferencedImage]) -> dict[str, Any]:
    """{"images": [{"id"}], "annotations": [{"id", "image_id", "caption"}]} of the references."""
    ids = _ids(images)
    spoken = [
        (number, reference)
        for number, image in zip(ids, images, strict=True)
        for reference in image.references
    ]
    return {
        "info": {},
        "licenses": [],
        "type": "captions",
        "images": [{"id": number} for number in ids],
        "annotations": [
            {"id": index, "image_id": number, "caption": reference}
            for index, (number, reference) in enumerate(spoken)
        ],
    }


def answer_results(
    images: Sequence[ReferencedImage], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """[{"question_id", "answer"}]."""
    return [
        {"question_id": number, "answer": answer}
        for number, answer in zip(_ids(images), answers, strict=True)
    ]


def _ids(images: Sequence[ReferencedImage]) -> list[int | str]:
    """The data set's own: the end of a key such as "in-domain/42", where no two are the same.

    Numbers are numbers, as in the files that the images came from.
    """
    keys = [image.key for image in images]
    names = [key.rpartition("/")[2] for key in keys]
    if max(collections.Counter(names).values()) > 1:
        names = keys
    numbers = all(re.fullmatch(r"0|[1-9]\d{0,17}", name, re.ASCII) for name in names)
    return [int(name) for name in names] if numbers else names
