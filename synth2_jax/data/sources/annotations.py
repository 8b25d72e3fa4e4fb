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
import csv
import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from synth2_jax.data.caption_text import clean_caption
from synth2_jax.data.records import Skipped
from synth2_jax.data.rejected import Rejected
from synth2_jax.data.sources.source import (
    Counted,
    ImageText,
    ListSource,
    SourceConfig,
    describe_annotations,
    inside,
    looked_for,
)
from synth2_jax.errors import UserError, nearest

QUESTION_PROMPT = "Question: {question} Answer:"  # Flamingo, appendix C (arXiv 2204.14198)
_BYTE_ORDER_MARK = "\ufeff".encode()


def open_coco(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """COCO captions: {"images": [{id, file_name}], "annotations": [{image_id, caption}]}."""
    del split
    folder, path = _folder(config, "coco"), _file(config.path, "coco")
    values = _read(path, "coco", "images", "annotations")
    num_found = len(values["images"]) + len(values["annotations"])
    description = describe_annotations(config.format, [path])
    examples = _coco_examples(values["images"], values["annotations"], folder)
    return ListSource(examples, num_found, description, num_shards, max_images)


open_nocaps = open_coco  # the same file format, with a domain for each image


def _coco_examples(
    images: Sequence[Any], annotations: Sequence[Any], folder: pathlib.Path
) -> Iterator[Counted]:
    captions: dict[str, list[Any]] = collections.defaultdict(list)
    unusable: list[Counted] = []
    for number, row in enumerate(annotations):
        try:
            captions[_id(row, "image_id")].append(row.get("caption", row))
        except Rejected as error:
            unusable.append(_skipped(f"annotations/{number}", error))
    seen = set()
    for number, row in enumerate(images):
        try:
            image_id, name = _id(row, "id"), _value(row, "file_name")
        except Rejected as error:
            yield _skipped(f"images/{number}", error)
            continue
        key = f"{row['domain']}/{image_id}" if "domain" in row else image_id
        texts = captions.pop(image_id, [])
        if texts:
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


def open_karpathy(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """{"images": [{"filename", "split", "sentences": [{"raw"}]}]}; "filepath" is a folder."""
    folder, path = _folder(config, "karpathy"), _file(config.path, "karpathy")
    rows = _read(path, "karpathy", "images")["images"]
    splits = [row.get("split") if isinstance(row, dict) else None for row in rows]
    for part in split.split("+"):
        if part not in splits:
            known = {name for name in splits if isinstance(name, str)}
            raise UserError(f"{path}: no split {part!r}; {nearest(part, known)}")
    # A row without a split is counted in each split.
    chosen = [
        number
        for number, name in enumerate(splits)
        if not isinstance(name, str) or name in split.split("+")
    ]
    examples = (_karpathy_example(f"images/{number}", rows[number], folder) for number in chosen)
    description = {**describe_annotations("karpathy", [path]), "split": split}
    return ListSource(examples, len(chosen), description, num_shards, max_images)


def _karpathy_example(where: str, row: Any, folder: pathlib.Path) -> Counted:
    try:
        if not isinstance(part := _value(row, "split"), str):
            raise Rejected("split not text", f"found {part!r:.40}")
        name, sentences = _value(row, "filename"), _value(row, "sentences")
        if not isinstance(sentences, list):
            raise Rejected("sentences not a list", f"found {sentences!r:.40}")
        key = _id(row, next((field for field in ("cocoid", "imgid") if field in row), "filename"))
    except Rejected as error:
        return _skipped(where, error)
    if isinstance(name, str):
        name = os.path.join(str(row.get("filepath", "")), name)
    captions = [text.get("raw", text) if isinstance(text, dict) else text for text in sentences]
    return 1, _example(key, folder, name, captions)


def open_flickr30k(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """Lines "NAME.jpg#0<tab>caption"; or, under a headline, "NAME.jpg| 0| caption" or CSV."""
    del split
    folder, path = _folder(config, "flickr30k"), _file(config.path, "flickr30k")
    lines = path.read_bytes().removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    fields = _tab_fields
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
        except Rejected as error:
            unusable.append(_skipped(f"line {number}", error))
    images = (
        (len(texts), _example(os.path.splitext(name)[0], folder, name, texts))
        for name, texts in captions.items()
    )
    description = describe_annotations("flickr30k", [path])
    examples = itertools.chain(images, unusable)
    return ListSource(examples, len(numbered), description, num_shards, max_images)


def _tab_fields(line: bytes) -> tuple[bytes, bytes]:
    """(name of the image, caption) of "NAME.jpg#0<tab>caption"."""
    name, _, caption = line.partition(b"\t")
    return _both(name.rpartition(b"#")[0], caption, line)


def _fields(line: bytes, between: bytes, num_fields: int) -> tuple[bytes, bytes]:
    """(name of the image, caption), the first and the last field of a line."""
    fields = line.split(between, num_fields - 1)
    if len(fields) != num_fields or num_fields < 2:
        raise _not_both(line)
    caption = fields[-1]
    if between == b"," and caption.startswith(b'"'):
        text = caption.decode("utf-8", "surrogateescape").rstrip()
        try:
            caption = ",".join(next(csv.reader([text]))).encode("utf-8", "surrogateescape")
        except csv.Error:
            raise _not_both(line) from None
    return _both(fields[0], caption, line)


def _both(name: bytes, caption: bytes, line: bytes) -> tuple[bytes, bytes]:
    if not name.strip() or not caption.strip():
        raise _not_both(line)
    return name.strip(), caption


def _not_both(line: bytes) -> Rejected:
    return Rejected("line not an image and a caption", f"{line[:80]!r}")


def open_vqa(
    config: SourceConfig, split: str, num_shards: int, max_images: int | None
) -> ListSource:
    """Questions and answers as VQAv2 and OKVQA have them; the question becomes the prompt.

    `config.images` is a template with {image_id}.
    """
    del split
    questions_path = _file(config.questions, "vqa", "questions")
    path = _file(config.path, "vqa")
    questions = _read(questions_path, "vqa", "questions")["questions"]
    annotations = _read(path, "vqa", "annotations")["annotations"]
    images = _ImageOfId(config.images)
    description = describe_annotations("vqa", [questions_path, path])
    description["answers"] = config.answers
    return ListSource(
        _vqa_examples(questions, annotations, images, config.answers == "all"),
        len(questions) + len(annotations),
        description,
        num_shards,
        max_images,
    )


def _vqa_examples(
    questions: Sequence[Any], annotations: Sequence[Any], images: "_ImageOfId", all_answers: bool
) -> Iterator[Counted]:
    asked: dict[str, _Question] = {}
    unusable: list[Counted] = []
    for number, row in enumerate(questions):
        try:
            question_id = _id(row, "question_id")
            if question_id in asked:
                raise Rejected("duplicate question_id", question_id)
            asked[question_id] = _question(row)
        except Rejected as error:
            unusable.append(_skipped(f"questions/{number}", error))
    unanswered = dict.fromkeys(asked)
    for number, row in enumerate(annotations):
        try:
            question_id = _id(row, "question_id")
            if question_id not in asked:
                detail = f'no question has "question_id": {question_id}'
                raise Rejected("no such question", detail)
        except Rejected as error:
            unusable.append(_skipped(f"annotations/{number}", error))
            continue
        num_rows = 1 + (question_id in unanswered)
        unanswered.pop(question_id, None)
        yield num_rows, _vqa_example(question_id, asked[question_id], row, images, all_answers)
    yield from unusable
    for question_id in unanswered:
        detail = f'no annotation has "question_id": {question_id}'
        yield 1, Skipped(f"questions/{question_id}", "no answer", detail)


@dataclasses.dataclass(frozen=True)
class _Question:
    """`rejected` says why the question cannot be used, if so."""

    image_id: Any = None
    prompt: str = ""
    rejected: Rejected | None = None


def _question(row: Any) -> _Question:
    try:
        _id(row, "image_id")
        question = clean_caption(_value(row, "question"), what="question")
        return _Question(row["image_id"], QUESTION_PROMPT.format(question=question))
    except Rejected as error:
        return _Question(rejected=error)


def _vqa_example(
    question_id: str, question: _Question, row: Any, images: "_ImageOfId", all_answers: bool
) -> ImageText | Skipped:
    key = f"{question.image_id}/{question_id}"
    answers = []
    try:
        answers = _answers(row, all_answers)
        if question.rejected:
            raise question.rejected
        name = images.name(question.image_id)
    except Rejected as error:
        return Skipped(key, error.reason, error.detail, max(len(answers), 1))
    prompts = [question.prompt] * len(answers)
    return _example(key, images.folder, name, answers, prompts)


def _answers(row: Mapping[str, Any], all_answers: bool) -> list[Any]:
    """Returns all answers, or the one that most people gave."""
    found = _value(row, "answers")
    if not isinstance(found, list) or not found:
        raise Rejected("no answer", f'"answers" is {found!r:.40}')
    answers = [
        answer.get("answer", answer) if isinstance(answer, dict) else answer for answer in found
    ]
    if all_answers:
        return answers
    common = collections.Counter(answer for answer in answers if isinstance(answer, str))
    first = common.most_common(1)[0][0] if common else answers[0]
    return [row.get("multiple_choice_answer") or first]


class _ImageOfId:
    """Finds an image by its id, with a template that has {image_id}; `folder` holds all images.

    Raises:
      UserError: the template has no {image_id}, or cannot be filled in.
    """

    def __init__(self, template: str):
        self._template = os.path.expanduser(template)
        try:
            same = self._template.format(image_id=1) == self._template.format(image_id=2)
        except (KeyError, IndexError, ValueError, AttributeError):
            same = True
        if same:
            raise UserError(
                f"--config.source.images: found {template!r}, expected a path with {{image_id}}, "
                "such as images/COCO_val2014_{image_id:012d}.jpg"
            )
        self.folder = pathlib.Path(os.path.dirname(self._template.partition("{")[0]))

    def name(self, image_id: Any) -> str:
        """Returns the image's path; raises Rejected if the template does not accept the id."""
        for value in (image_id, _as_number(image_id)):
            try:
                return os.path.abspath(self._template.format(image_id=value))
            except ValueError:  # such as text where a number is needed
                pass
        raise Rejected("image_id not as in source.images", f"found {image_id!r:.40}")


def _as_number(value: Any) -> Any:
    return int(value) if str(value).isdecimal() else value


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
    path = pathlib.Path(os.path.expanduser(name))
    if not name or not path.is_file():
        raise UserError(
            f"--config.source.{key}: found {name!r}, expected a file of annotations of {what}"
        )
    return path


def _folder(config: SourceConfig, what: str) -> pathlib.Path:
    folder = pathlib.Path(os.path.expanduser(config.images))
    if not config.images or not folder.is_dir():
        raise UserError(
            f"--config.source.images: found {config.images!r}, expected a folder of "
            f"images for {what}"
        )
    return folder


def _value(row: Any, name: str) -> Any:
    """Returns `row[name]`; raises Rejected if the row lacks it."""
    if not isinstance(row, dict):
        raise Rejected("row not a JSON object", f"found {row!r:.40}")
    if name not in row:
        raise Rejected(f"no {name}", looked_for(name, row))
    return row[name]


def _id(row: Any, name: str) -> str:
    """Returns an id as text: "1", 1 and 1.0 are the same."""
    value = _value(row, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Rejected(f"{name} not text or a number", f"found {value!r:.40}")
    return str(value)


def _example(
    key: str, folder: pathlib.Path, name: Any, captions: Sequence[Any], prompts: Sequence[str] = ()
) -> ImageText | Skipped:
    try:
        return ImageText(key, inside(folder, name), captions, prompts)
    except Rejected as error:
        return Skipped(key, error.reason, error.detail, max(len(captions), 1))


def _skipped(where: str, error: Rejected) -> Counted:
    """Skips a row that holds nothing usable."""
    return 1, Skipped(where, error.reason, error.detail)
