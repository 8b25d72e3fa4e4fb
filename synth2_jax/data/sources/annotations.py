"""One file of annotations and a folder of images: COCO, Karpathy's splits, Flickr30k, VQA.

    coco       captions_train2017.json and train2017/
    karpathy   dataset_coco.json or dataset_flickr30k.json and the images; the splits are in it,
               and several may be joined as "train+restval"
    nocaps     nocaps_val_4500_captions.json; keys begin with the domain
    flickr30k  results_20130124.token or results.csv
    vqa        VQAv2 and OKVQA: a file of questions, one of answers

The whole file is read: COCO's is 90 MB, VQAv2's 400 MB.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synth2_jax.data.sources.source import (
    ImageText,
    ListSource,
    SourceConfig,
    describe_annotations,
    inside,
)
from synth2_jax.errors import UserError, nearest

QUESTION_PROMPT = "Question: {question} Answer:"  # Flamingo, appendix C (arXiv 2204.14198)


def open_coco(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """COCO captions: {"images": [{id, file_name}], "annotations": [{image_id, caption}]}."""
    del split
    folder, path = _folder(config, "coco"), _file(config.path, "coco")
    values = _read(path, "coco", "images", "annotations")
    captions: dict[Any, list[str]] = collections.defaultdict(list)
    with _Shape(path, 'annotations with "image_id" and "caption"'):
        for row in values["annotations"]:
            captions[row["image_id"]].append(row["caption"])
    with _Shape(path, 'images with "id" and "file_name"'):
        examples = [
            ImageText(
                f"{row['domain']}/{row['id']}" if "domain" in row else str(row["id"]),
                _image(folder, row["file_name"], path),
                captions[row["id"]],
            )
            for row in values["images"]
            if captions[row["id"]]
        ]
    return ListSource(examples, describe_annotations(config.format, [path]), num_shards, max_images)


open_nocaps = open_coco  # the same file format, with a domain for each image


def open_karpathy(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """{"images": [{"filename", "split", "sentences": [{"raw"}]}]}; "filepath" is a folder."""
    folder, path = _folder(config, "karpathy"), _file(config.path, "karpathy")
    values = _read(path, "karpathy", "images")
    with _Shape(path, 'images with "filename", "split" and "sentences" of "raw"'):
        known = {row["split"] for row in values["images"]}
        for part in split.split("+"):
            if part not in known:
                raise UserError(f"{path}: no split {part!r}; {nearest(part, known)}")
        examples = [
            ImageText(
                str(row.get("cocoid", row.get("imgid", row["filename"]))),
                _image(folder, str(pathlib.Path(row.get("filepath", ""), row["filename"])), path),
                [sentence["raw"] for sentence in row["sentences"]],
            )
            for row in values["images"]
            if row["split"] in split.split("+")
        ]
    description = {**describe_annotations("karpathy", [path]), "split": split}
    return ListSource(examples, description, num_shards, max_images)


def open_flickr30k(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """Lines "NAME.jpg#0<tab>caption", or "NAME.jpg| 0| caption" under a headline."""
    del split
    folder, path = _folder(config, "flickr30k"), _file(config.path, "flickr30k")
    captions: dict[str, list[bytes]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith(b"image_name")):
            continue
        name, tab, caption = line.partition(b"\t")
        if tab:
            name = name.rpartition(b"#")[0]
        elif line.count(b"|") >= 2:
            name, _, caption = line.split(b"|", 2)
        if not name or not caption:
            raise UserError(
                f"{path}: line {number} is {line[:40]!r}, expected an image and a caption"
            )
        captions.setdefault(name.decode("utf-8", "replace").strip(), []).append(caption)
    examples = [
        ImageText(name.rpartition(".")[0], _image(folder, name, path), texts)
        for name, texts in captions.items()
    ]
    return ListSource(examples, describe_annotations("flickr30k", [path]), num_shards, max_images)


def open_vqa(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """Questions and answers as VQAv2 and OKVQA have them; the question becomes the prompt.

    `config.images` is a template with {image_id}.
    """
    del split
    questions_path = _file(config.questions, "vqa", "questions")
    path = _file(config.path, "vqa")
    with _Shape(questions_path, 'questions with "question_id", "image_id" and "question"'):
        rows = _read(questions_path, "vqa", "questions")["questions"]
        questions = {row["question_id"]: (row["image_id"], row["question"]) for row in rows}
    try:
        images = {
            image_id: config.images.format(image_id=image_id) for image_id, _ in questions.values()
        }
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"vqa: source.images is {config.images!r}, expected a path with {{image_id}}, such as "
            "images/COCO_val2014_{image_id:012d}.jpg"
        ) from error
    if len(images) > 1 and len(set(images.values())) == 1:
        raise UserError(
            f"vqa: source.images is {config.images!r}, expected a path with {{image_id}}"
        )
    examples = []
    with _Shape(path, 'annotations with "question_id" and "answers" of "answer"'):
        for row in _read(path, "vqa", "annotations")["annotations"]:
            image_id, question = questions[row["question_id"]]
            answers = [answer["answer"] for answer in row["answers"]]
            if config.answers == "most_common":
                common = collections.Counter(answers).most_common(1)
                answers = [row.get("multiple_choice_answer") or common[0][0]]
            prompt = QUESTION_PROMPT.format(question=" ".join(question.split()))
            image = pathlib.Path(images[image_id]).expanduser()
            key = f"{image_id}/{row['question_id']}"
            examples.append(ImageText(key, image, answers, [prompt] * len(answers)))
    description = describe_annotations("vqa", [questions_path, path])
    description["answers"] = config.answers
    return ListSource(examples, description, num_shards, max_images)


class _Shape:
    """Turns a missing key or a value of another type inside of it into one line."""

    def __init__(self, path: pathlib.Path, expected: str):
        self._path, self._expected = path, expected

    def __enter__(self) -> None:
        return None

    def __exit__(self, exception_type, exception, traceback) -> None:
        if isinstance(exception, KeyError | TypeError | AttributeError | IndexError):
            found = f"{type(exception).__name__}: {exception}"
            raise UserError(
                f"{self._path}: expected {self._expected}, found {found}"
            ) from exception


def _read(path: pathlib.Path, what: str, *keys: str) -> Mapping[str, Sequence[Any]]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}), expected annotations of {what}") from error
    found: Iterable[str] = values if isinstance(values, dict) else ()
    for key in keys:
        if key not in found or not isinstance(values[key], list):
            raise UserError(
                f"{path}: expected annotations of {what} with a list {key!r}, found "
                f"{sorted(found)[:10] or type(values).__name__}"
            )
    return values


def _file(name: str, what: str, key: str = "path") -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    if not name or not path.is_file():
        raise UserError(f"{what}: source.{key} is {name!r}, expected a file of annotations")
    return path


def _folder(config: SourceConfig, what: str) -> pathlib.Path:
    folder = pathlib.Path(config.images).expanduser()
    if not config.images or not folder.is_dir():
        raise UserError(f"{what}: source.images is {config.images!r}, expected a folder of images")
    return folder


def _image(folder: pathlib.Path, name: str, path: pathlib.Path) -> pathlib.Path:
    found = inside(folder, name)
    if found is None:
        raise UserError(f"{path}: image {name!r} leads out of {folder}")
    return found
