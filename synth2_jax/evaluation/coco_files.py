"""Writes predictions in the file formats that the data sets' own scorers read.

COCO's results and annotations of captions (https://cocodataset.org/#format-results), VQA's results
of answers (https://visualqa.org/evaluation.html).
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from synth2_jax.data.references import ReferencedImage
from synth2_jax.files import write_json, write_json_lines


def write(
    folder: pathlib.Path, images: Sequence[ReferencedImage], captions: Sequence[str], task: str
) -> None:
    """Writes captions.jsonl, and predictions.json and references.json for others' scorers."""
    rows = []
    for image, caption in zip(images, captions, strict=True):
        row = {"key": image.key, "caption": caption, "references": image.references}
        rows.append(row | ({"prompt": image.prompt} if image.prompt else {}))
    write_json_lines(folder / "captions.jsonl", rows)
    write_json(folder / "predictions.json", predictions(images, captions, task))
    if task == "caption":
        write_json(folder / "references.json", caption_annotations(images))


def predictions(
    images: Sequence[ReferencedImage], texts: Sequence[str], task: str
) -> list[dict[str, Any]]:
    """[{"image_id", "caption"}] of the task "caption", [{"question_id", "answer"}] of "vqa"."""
    number, text = {"caption": ("image_id", "caption"), "vqa": ("question_id", "answer")}[task]
    return [{number: i, text: t} for i, t in zip(_ids(images), texts, strict=True)]


def caption_annotations(images: Sequence[ReferencedImage]) -> dict[str, Any]:
    """{"images": [{"id"}], "annotations": [{"id", "image_id", "caption"}]} of the references."""
    ids = _ids(images)
    spoken = [(i, text) for i, image in zip(ids, images, strict=True) for text in image.references]
    return {
        "info": {},
        "licenses": [],
        "type": "captions",
        "images": [{"id": number} for number in ids],
        "annotations": [
            {"id": index, "image_id": number, "caption": text}
            for index, (number, text) in enumerate(spoken)
        ],
    }


def _ids(images: Sequence[ReferencedImage]) -> list[int | str]:
    """The data set's own: the end of a key such as "in-domain/42", where no two are the same.

    Numbers are numbers, as in the files that the images came from.
    """
    keys = [image.key for image in images]
    names = [key.rpartition("/")[2] for key in keys]
    if len(set(names)) < len(names):
        names = keys
    numbers = all(re.fullmatch(r"0|[1-9]\d{0,17}", name, re.ASCII) for name in names)
    return [int(name) for name in names] if numbers else names
