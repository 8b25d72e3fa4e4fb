"""`synth2 inspect MIXTURE`: the tasks of a mixture, and ten of its examples as a picture.

    synth2 inspect my_mixture --modules=my_tasks --tokenizer=workdir/demo/tokenizer
    synth2 inspect real_synthetic --config=configs/scenes/vlm.py:mixture \\
        --config.data.folders.real=... --config.data.folders.synthetic=...

Legend: B examples, N image tokens, H W pixels.
"""

import io
import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synth2_jax import config as config_lib
from synth2_jax.data import pipeline
from synth2_jax.data.caption_text import CaptionLimits, clean_caption
from synth2_jax.data.skipped import SkipError
from synth2_jax.errors import UserError
from synth2_jax.files import write_bytes
from synth2_jax.inert_text import inert
from synth2_jax.loading.run import Trained

NUM_SHOWN = 10
_COLUMNS, _SIDE, _MARGIN, _LINE, _LINES = 5, 160, 12, 14, 4


def show(
    config: Any, mixture: str, modules: str = "", tokenizer: str = "", output: str = ""
) -> None:
    """Prints the tasks of a mixture and its first examples, and draws those that have images.

    Args:
      config: of a training, or None; `data` and `pretrained.tokenizer` are read.
      mixture: the name of a task or mixture, which `modules`, separated by commas, register.
      tokenizer: path of the tokenizer that made the image tokens: a training run, an export or a
        third-party checkpoint.
      output: the PNG file; "" for MIXTURE.png in the current folder.

    Raises:
      UserError: no such mixture, modules that fail, or as `pictures`.
    """
    sections = {} if config is None else config
    data, pretrained = (dict(sections.get(name) or {}) for name in ("data", "pretrained"))
    data |= {"mixture": mixture} | ({"modules": modules} if modules else {})
    cfg = config_lib.build(pipeline.DataConfig, data, "--config.data")
    described = pipeline.describe(cfg)
    examples = pipeline.first_examples(cfg, NUM_SHOWN)
    images = pictures(examples, tokenizer or pretrained.get("tokenizer", ""))
    # All was read: an error is printed alone, not after half of the answer.
    print("\n".join(_lines(described)))
    for example in examples:
        print("  " + "  ".join(_shown(name, value) for name, value in sorted(example.items())))
    if images is None:
        print("no picture is drawn: give --tokenizer=WORKDIR, the run that made the image tokens")
        return
    path = pathlib.Path(output or f"{mixture}.png")
    captions, sources = (
        [str(example.get(name, "")) for example in examples] for name in ("caption", "source")
    )
    picture = io.BytesIO()
    contact_sheet(images, captions, sources).save(picture, "PNG")
    write_bytes(path, picture.getvalue())
    print(f"{len(images)} examples in {path}")


def _lines(found: Mapping[str, Any]) -> list[str]:
    features, tasks = found["features"], found["tasks"]
    width = max(map(len, features))
    lines = [f"{found['kind']} {found['name']!r}, split {found['split']!r}", "features:"]
    lines += [f"  {name:<{width}}  {text}" for name, text in sorted(features.items())]
    lines.append("tasks:")
    width = max(len(task["name"]) for task in tasks)
    for task in tasks:
        share = f"{task['share']:6.1%}" if task["share"] is not None else "scheduled"
        size = "unknown number of" if task["examples"] is None else f"{task['examples']:,}"
        size = f"{size} examples in {task['shards']} shards"
        lines.append(f"  {task['name']:<{width}}  {share}  {size}")
    return lines


def _shown(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{name}={value.dtype}{list(value.shape)}"
    return f"{name}={inert(str(value), 72)!r}"


def pictures(examples: Sequence[Mapping[str, Any]], tokenizer: str) -> np.ndarray | None:
    """Images u8[examples, H, W, 3]; None when nothing turns the examples into pixels.

    Raises:
      UserError: no tokenizer there, or it did not make the image tokens.
    """
    if all("image" in example for example in examples):
        return np.stack([example["image"] for example in examples])
    if not tokenizer or not all("image_tokens" in example for example in examples):
        return None
    from synth2_jax.loading.tokenizing import decode_images

    ids_BN = np.stack([example["image_tokens"] for example in examples])
    trained = _load_tokenizer(tokenizer, ids_BN.shape[1])
    config = trained.objective.task.tokenizer
    if ids_BN.max() >= config.codebook_size:
        raise UserError(
            f"{tokenizer}: has {config.codebook_size} codes, but the image tokens go up "
            f"to {ids_BN.max()}. Give the tokenizer that made them."
        )
    return decode_images(trained, ids_BN, len(ids_BN))


def _load_tokenizer(path: str, num_tokens: int) -> Trained:
    """A third-party checkpoint does not hold the size of its images; it follows from num_tokens."""
    from synth2_jax.loading.trained import load_tokenizer, others_reader

    size = {}
    if reader := others_reader(path, "tokenizer"):
        config = reader.tokenizer_config(path)
        size["image_size"] = config.image_size // config.grid_size * math.isqrt(num_tokens)
    trained = load_tokenizer(path, **size)
    made = trained.objective.task.tokenizer.num_tokens
    if made != num_tokens:
        raise UserError(
            f"{path}: makes {made} tokens of an image (the mixture has {num_tokens}). "
            "Give the tokenizer that made the image tokens."
        )
    return trained


def contact_sheet(
    images: np.ndarray, captions: Sequence[str], sources: Sequence[str]
) -> Image.Image:
    """Pictures u8[num, H, W, 3] in rows of five, each with its source and its caption below."""
    height = _SIDE + _LINE * (_LINES + 1) + _MARGIN
    rows = -(-len(images) // _COLUMNS)
    size = (_COLUMNS * (_SIDE + _MARGIN) + _MARGIN, rows * height + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, (image, caption, source) in enumerate(zip(images, captions, sources, strict=True)):
        left = _MARGIN + index % _COLUMNS * (_SIDE + _MARGIN)
        top = _MARGIN + index // _COLUMNS * height
        # Not smoothed: a pixel of a small picture should be seen as one.
        picture = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        draw.rectangle((left - 1, top - 1, left + _SIDE, top + _SIDE), outline="#cccccc")
        draw.text((left, top + _SIDE + 2), source, fill="#888888", font=font)
        lines = textwrap.wrap(_one_line(caption), 27, max_lines=_LINES, placeholder="...")
        for number, line in enumerate(lines, start=1):
            draw.text((left, top + _SIDE + 2 + number * _LINE), line, fill="black", font=font)
    return sheet


def _one_line(caption: str) -> str:
    try:
        return clean_caption(caption, CaptionLimits(max_chars=100_000))
    except SkipError as error:
        return f"({error.reason})"
