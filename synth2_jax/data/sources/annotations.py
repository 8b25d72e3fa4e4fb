"""One file of annotations and a folder of images: COCO, Karpathy's splits, Flickr30k, VQA.

    coco       captions_train2017.json and train2017/
    karpathy   dataset_coco.json or dataset_flickr30k.json and the images; the splits are in it,
               and several may be joined as "train+restval"
    nocaps     nocaps_val_4500_captions.json; keys begin with the domain
    flickr30k  results_20130124.token or results.csv; Flickr8k's captions.txt
    vqa        VQAv2 and OKVQA: a file of questions, one of answers

The whole file is read: COCO's is 90 MB, VQAv2's 400 MB. A row that cannot be used, or whose image
or question is missing, is skipped and counted; ids may be numbers in one list and text in another.
"""

import collections
import contextlib
import csv
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from synth2_jax.data.caption_text import clean_caption
from synth2_jax.data.records import sha256_of
from synth2_jax.data.skipped import SkipError, Skipped
from synth2_jax.data.sources.file_names import inside
from synth2_jax.data.sources.source import (
    Counted,
    DataSource,
    ImageText,
    SourceConfig,
    Wanted,
    check_split,
    from_list,
    looked_for,
)
from synth2_jax.errors import UserError

QUESTION_PROMPT = "Question: {question} Answer:"  # Flamingo, appendix C (arXiv 2204.14198)
_BYTE_ORDER_MARK = "\ufeff".encode()


def open_coco(config: SourceConfig, wanted: Wanted) -> DataSource:
    """COCO captions: {"images": [{id, file_name}], "annotations": [{image_id, caption}]}."""
    folder, path = _folder(config), _file(config)
    images, annotations = _lists(config, path, "images", "annotations")
    examples = _coco_examples(images, annotations, folder)
    num_found = len(images) + len(annotations)
    return from_list(examples, num_found, _describe(config, path), wanted)


open_nocaps = open_coco  # the same file format, with a domain for each image


def _coco_examples(
    images: Sequence[Any], annotations: Sequence[Any], folder: pathlib.Path
) -> Iterator[Counted]:
    captions: dict[str, list[Any]] = collections.defaultdict(list)
    unusable: list[Counted] = []
    for number, row in enumerate(annotations):
        try:
            captions[_id(row, "image_id")].append(row.get("caption", row))
        except SkipError as error:
            unusable.append((1, error.at(f"annotations/{number}")))
    seen = set()
    for number, row in enumerate(images):
        try:
            image_id, name = _id(row, "id"), _value(row, "file_name")
        except SkipError as error:
            yield 1, error.at(f"images/{number}")
            continue
        key = f"{row['domain']}/{image_id}" if "domain" in row else image_id
        if texts := captions.pop(image_id, []):
            yield 1 + len(texts), _example(key, folder, name, texts)
        elif image_id in seen:
            yield 1, Skipped(key, "duplicate key", f"images/{number}: {name!r:.80}")
        else:
            yield 1, Skipped(key, "no caption", f'no annotation has "image_id": {image_id}')
        seen.add(image_id)
    yield from unusable
    for image_id, texts in captions.items():
        detail = f'no usable image has "id": {image_id}'
        yield len(texts), Skipped(image_id, "no such image", detail, len(texts))


def open_karpathy(config: SourceConfig, wanted: Wanted) -> DataSource:
    """{"images": [{"filename", "split", "sentences": [{"raw"}]}]}; "filepath" is a folder."""
    folder, path = _folder(config), _file(config)
    (rows,) = _lists(config, path, "images")
    splits = [row.get("split") if isinstance(row, dict) else None for row in rows]
    parts = wanted.split.split("+")
    for part in parts:
        check_split(part, {name for name in splits if isinstance(name, str)}, str(path))
    # A row without a split is counted in each split.
    chosen = [n for n, name in enumerate(splits) if name in parts or not isinstance(name, str)]
    examples = (_karpathy_example(f"images/{number}", rows[number], folder) for number in chosen)
    description = _describe(config, path, split=wanted.split)
    return from_list(examples, len(chosen), description, wanted)


def _karpathy_example(where: str, row: Any, folder: pathlib.Path) -> Counted:
    try:
        if not isinstance(part := _value(row, "split"), str):
            raise SkipError("split not text", f"found {part!r:.40}")
        name, sentences = _value(row, "filename"), _value(row, "sentences")
        if not isinstance(sentences, list):
            raise SkipError("sentences not a list", f"found {sentences!r:.40}")
        key = _id(row, next((field for field in ("cocoid", "imgid") if field in row), "filename"))
    except SkipError as error:
        return 1, error.at(where)
    if isinstance(name, str):
        name = os.path.join(str(row.get("filepath", "")), name)
    captions = [text.get("raw", text) if isinstance(text, dict) else text for text in sentences]
    return 1, _example(key, folder, name, captions)


def open_flickr30k(config: SourceConfig, wanted: Wanted) -> DataSource:
    """Lines "NAME.jpg#0<tab>caption"; or, under a headline, "NAME.jpg| 0| caption" or CSV."""
    folder, path = _folder(config), _file(config)
    lines = path.read_bytes().removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    fields = functools.partial(_fields, between=b"\t", num_fields=2)
    if numbered and b"\t" not in (first := numbered[0][1]):
        between, num_fields = (b"|", 3) if b"|" in first else (b",", 2)
        if first.startswith(b"image") and b"." not in first.partition(between)[0]:
            num_fields = 1 + numbered.pop(0)[1].count(between)  # a headline: it names no file
        fields = functools.partial(_fields, between=between, num_fields=num_fields)
    captions: dict[str, list[bytes]] = {}
    unusable: list[Counted] = []
    for number, line in numbered:
        try:
            name, caption = fields(line)
            captions.setdefault(name.decode("utf-8", "surrogateescape"), []).append(caption)
        except SkipError as error:
            unusable.append((1, error.at(f"line {number}")))
    images = (
        (len(texts), _example(os.path.splitext(name)[0], folder, name, texts))
        for name, texts in captions.items()
    )
    examples = itertools.chain(images, unusable)
    return from_list(examples, len(numbered), _describe(config, path), wanted)


def _fields(line: bytes, between: bytes, num_fields: int) -> tuple[bytes, bytes]:
    """(name of the image, caption), the first and the last field of a line."""
    fields = line.split(between, num_fields - 1)
    name, caption = fields[0], fields[-1] if len(fields) == num_fields > 1 else b""
    if between == b"\t":
        name = name.rpartition(b"#")[0]
    if between == b"," and caption.startswith(b'"'):
        text = caption.decode("utf-8", "surrogateescape").rstrip()
        try:
            caption = ",".join(next(csv.reader([text]))).encode("utf-8", "surrogateescape")
        except csv.Error:
            caption = b""
    if not name.strip() or not caption.strip():
        raise SkipError("line not an image and a caption", f"{line[:80]!r}")
    return name.strip(), caption


def open_vqa(config: SourceConfig, wanted: Wanted) -> DataSource:
    """Questions and answers as VQAv2 and OKVQA have them; the question becomes the prompt.

    `config.images` is a template with {image_id}.
    """
    paths = _file(config, "questions"), _file(config)
    (questions,) = _lists(config, paths[0], "questions")
    (annotations,) = _lists(config, paths[1], "annotations")
    template = os.path.expanduser(config.images)
    try:
        same = template.format(image_id=1) == template.format(image_id=2)
    except (KeyError, IndexError, ValueError, AttributeError):
        same = True
    if same:
        raise UserError(
            f"--config.source.images: found {config.images!r}, expected a path with {{image_id}}, "
            "such as images/COCO_val2014_{image_id:012d}.jpg"
        )
    examples = _vqa_examples(questions, annotations, template, config.answers == "all")
    description = _describe(config, *paths, answers=config.answers)
    num_found = len(questions) + len(annotations)
    return from_list(examples, num_found, description, wanted)


def _vqa_examples(
    questions: Sequence[Any], annotations: Sequence[Any], template: str, all_answers: bool
) -> Iterator[Counted]:
    asked: dict[str, Mapping[str, Any]] = {}
    unusable: list[Counted] = []
    for number, row in enumerate(questions):
        try:
            question_id = _id(row, "question_id")
            if question_id in asked:
                raise SkipError("duplicate question_id", question_id)
            asked[question_id] = row
        except SkipError as error:
            unusable.append((1, error.at(f"questions/{number}")))
    unanswered = dict.fromkeys(asked)
    for number, row in enumerate(annotations):
        try:
            question_id = _id(row, "question_id")
            if question_id not in asked:
                detail = f'no question has "question_id": {question_id}'
                raise SkipError("no such question", detail)
        except SkipError as error:
            unusable.append((1, error.at(f"annotations/{number}")))
            continue
        num_rows = 1 + (question_id in unanswered)
        unanswered.pop(question_id, None)
        yield num_rows, _vqa_example(question_id, asked[question_id], row, template, all_answers)
    yield from unusable
    for question_id in unanswered:
        detail = f'no annotation has "question_id": {question_id}'
        yield 1, Skipped(f"questions/{question_id}", "no answer", detail)


def _vqa_example(
    question_id: str, asked: Mapping[str, Any], row: Any, template: str, all_answers: bool
) -> ImageText | Skipped:
    image_id, answers = asked.get("image_id"), []
    try:
        answers = _answers(row, all_answers)
        _id(asked, "image_id")
        question = clean_caption(_value(asked, "question"), what="question")
        name = _image_name(template, image_id)
    except SkipError as error:
        return error.at(f"{image_id}/{question_id}", max(len(answers), 1))
    folder = pathlib.Path(os.path.dirname(template.partition("{")[0]))
    prompts = [QUESTION_PROMPT.format(question=question)] * len(answers)
    return _example(f"{image_id}/{question_id}", folder, name, answers, prompts)


def _answers(row: Mapping[str, Any], all_answers: bool) -> list[Any]:
    """Returns all answers, or the one that most people gave."""
    found = _value(row, "answers")
    if not isinstance(found, list) or not found:
        raise SkipError("no answer", f'"answers" is {found!r:.40}')
    answers = [
        answer.get("answer", answer) if isinstance(answer, dict) else answer for answer in found
    ]
    if all_answers:
        return answers
    common = collections.Counter(answer for answer in answers if isinstance(answer, str))
    first = common.most_common(1)[0][0] if common else answers[0]
    return [row.get("multiple_choice_answer") or first]


def _image_name(template: str, image_id: Any) -> str:
    for value in (image_id, int(image_id) if str(image_id).isdecimal() else image_id):
        with contextlib.suppress(ValueError):  # such as text where a number is needed
            return os.path.abspath(template.format(image_id=value))
    raise SkipError("image_id not as in source.images", f"found {image_id!r:.40}")


def _describe(config: SourceConfig, *paths: pathlib.Path, **more: str) -> dict[str, Any]:
    return {"source": config.format, "sha256": [sha256_of(path) for path in paths], **more}


def _lists(config: SourceConfig, path: pathlib.Path, *names: str) -> list[list[Any]]:
    """Returns the lists of these names in a JSON file."""
    expected = f"expected annotations of {config.format}"
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}), {expected}") from error
    found: Iterable[str] = values if isinstance(values, dict) else ()
    for name in names:
        if name not in found or not isinstance(values[name], list):
            shown = sorted(found)[:10] or type(values).__name__
            raise UserError(f"{path}: {expected} with a list {name!r}, found {shown}")
    return [values[name] for name in names]


def _file(config: SourceConfig, key: str = "path") -> pathlib.Path:
    path = pathlib.Path(os.path.expanduser(name := getattr(config, key)))
    if not name or not path.is_file():
        expected = f"expected a file of annotations of {config.format}"
        raise UserError(f"--config.source.{key}: found {name!r}, {expected}")
    return path


def _folder(config: SourceConfig) -> pathlib.Path:
    folder = pathlib.Path(os.path.expanduser(config.images))
    if not config.images or not folder.is_dir():
        expected = f"expected a folder of images for {config.format}"
        raise UserError(f"--config.source.images: found {config.images!r}, {expected}")
    return folder


def _value(row: Any, name: str) -> Any:
    if not isinstance(row, dict):
        raise SkipError("row not a JSON object", f"found {row!r:.40}")
    if name not in row:
        raise SkipError(f"no {name}", looked_for(name, row))
    return row[name]


def _id(row: Any, name: str) -> str:
    """Returns an id as text: "1", 1 and 1.0 are the same."""
    value = _value(row, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SkipError(f"{name} not text or a number", f"found {value!r:.40}")
    return str(value)


def _example(
    key: str, folder: pathlib.Path, name: Any, captions: Sequence[Any], prompts: Sequence[str] = ()
) -> ImageText | Skipped:
    try:
        return ImageText(key, inside(folder, name), captions, prompts)
    except SkipError as error:
        return error.at(key, max(len(captions), 1))
