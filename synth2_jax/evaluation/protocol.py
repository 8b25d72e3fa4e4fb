"""Protocols of evaluation: captions or answers, zero- or few-shot (Flamingo, appendix B.1).

Few-shot, the text before an image's own prompt holds examples, each with its image:

    <image 1> Output: a dog. <end> <image 2> Output: two cats. <end> <image> Output:

In the place of Flamingo's <image> stands the start token with which every text begins in training,
and <end> is the end of sentence, or of the turn in a chat format. "Zero-shot" in Flamingo's tables
has two examples in the text whose images are left out; `text_shots` makes these.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from synth2_jax.config import check_seeds
from synth2_jax.data.references import ReferencedImage, read_references
from synth2_jax.errors import UserError, naming, nearest
from synth2_jax.scoring.vqa import load_stemmer
from synth2_jax.text.vocabulary import PAD_ID, Vocabulary

TASKS = ("caption", "vqa")


@dataclasses.dataclass(frozen=True)
class ProtocolConfig:
    """A protocol: what is asked for, and after which examples.

    Attributes:
      task: "caption"; or "vqa", where each image's prompt is a question and its references are the
        answers of people (`synth2 tokenize` with config.source.answers=all).
      shots: examples with their images before each image's prompt.
      text_shots: examples without images in the place of these (Flamingo's zero-shot: 2).
      support: folder of pairs that examples are drawn from, such as a part of the training split.
      support_images: the first so many of it (Flamingo: 2048).
      same_examples: whether all images have the same examples; else each has its own.
      by_domain: whether captions of images whose keys begin with the same NAME/ are scored apart
        too, against document frequencies of their own (NoCaps).
      stem_answers: whether answers and references are compared by their words' stems (OK-VQA).
      seed: of the draw.
    """

    task: str = "caption"
    shots: int = 0
    text_shots: int = 0
    support: str = ""
    support_images: int = 2048
    same_examples: bool = False
    by_domain: bool = False
    stem_answers: bool = False
    seed: int = 0

    def __post_init__(self):
        check_seeds(self, "seed")
        if self.task not in TASKS:
            raise UserError(f"task: unknown {self.task!r}; {nearest(self.task, TASKS)}")
        for name in ("shots", "text_shots"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: found {getattr(self, name)}, expected at least 0")
        if self.shots and self.text_shots:
            raise UserError(
                f"text_shots: found {self.text_shots}, expected 0 with `shots`={self.shots}: "
                "examples have images or have none"
            )
        if self.num_examples and not self.support:
            raise UserError("support: found none, expected a folder of pairs to draw examples from")
        if self.support_images <= self.num_examples:
            raise UserError(
                f"support_images: found {self.support_images}, expected more than the "
                f"{self.num_examples} examples"
            )
        if self.stem_answers:
            if self.task != "vqa":
                raise UserError(f"stem_answers: found True, expected False with `task`={self.task}")
            load_stemmer()  # a package that is missing comes to light now

    @property
    def num_examples(self) -> int:
        """In the text of each image."""
        return self.shots or self.text_shots

    def describe(self) -> str:
        """Returns the beginning of a text on one line, which tells few-shot results apart."""
        if self.shots:
            return f"{self.shots}-shot: examples with their images before each image"
        if self.text_shots:
            return f"zero-shot as Flamingo has it: {self.text_shots} examples without their images"
        return "zero-shot: no examples"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The beginning of one image's text.

    Attributes:
      inputs: ids: for each example start token, prompt, caption, end; then start token and prompt
        of the image itself.
      image_of_text: which image each of them reads, 1 to len(images), or 0 for none.
      images: tokens i32[N] of each; the image itself is the last.
    """

    inputs: tuple[int, ...]
    image_of_text: tuple[int, ...]
    images: tuple[np.ndarray, ...]


def is_plain(config: ProtocolConfig, images: Sequence[ReferencedImage]) -> bool:
    """Returns whether all images have just the prompt of the model's training."""
    return not config.num_examples and not any(image.prompt for image in images)


def make_prompts(
    images: Sequence[ReferencedImage],
    config: ProtocolConfig,
    vocabulary: Vocabulary,
    prompt: str,
    tokenizer_fingerprint: str,
) -> list[Prompt]:
    """One `Prompt` an image. `prompt` is that of images that have none of their own.

    Raises:
      UserError: too few images to draw from, or images of another tokenizer.
    """
    support: list[ReferencedImage] = []
    if config.num_examples:
        with naming("--config.protocol.support", config.support):
            support = read_references(config.support, tokenizer_fingerprint, config.support_images)
        if len(support) <= config.num_examples:  # one of them may be the image itself
            raise UserError(
                f"--config.protocol.support={config.support}: found {len(support)} images, "
                f"expected more than the {config.num_examples} examples"
            )

    def text(image: ReferencedImage) -> list[int]:
        return vocabulary.encode(image.prompt or prompt)

    prompts = []
    for number, image in enumerate(images):
        rng = np.random.default_rng([config.seed, 0 if config.same_examples else number])
        examples = _draw(support, image.key, config.num_examples, rng)
        shown = [example.image_tokens for example in examples] if config.shots else []
        inputs, image_of_text = [], []
        for place, example in enumerate(examples, start=1):
            start = text(example)
            caption = vocabulary.encode(_reference(example, config.task, rng))
            chunk = [PAD_ID, *start, *caption, vocabulary.end_id(start)]
            inputs += chunk
            image_of_text += [place if config.shots else 0] * len(chunk)
        chunk = [PAD_ID, *text(image)]
        inputs += chunk
        image_of_text += [len(shown) + 1] * len(chunk)
        prompts.append(Prompt(tuple(inputs), tuple(image_of_text), (*shown, image.image_tokens)))
    return prompts


def _draw(
    support: Sequence[ReferencedImage], key: str, count: int, rng: np.random.Generator
) -> list[ReferencedImage]:
    """`count` images in random order, none of them the image of `key` itself."""
    if not count:
        return []
    drawn = (support[i] for i in rng.choice(len(support), count + 1, replace=False))
    return [image for image in drawn if image.key != key][:count]


def _reference(image: ReferencedImage, task: str, rng: np.random.Generator) -> str:
    """One of the image's captions; of answers the one that most people gave, the first of these."""
    if task == "vqa":
        return collections.Counter(image.references).most_common(1)[0][0]
    return image.references[rng.integers(len(image.references))]
