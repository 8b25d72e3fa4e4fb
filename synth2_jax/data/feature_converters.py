"""Task features -> the batch that each model takes.

Text is tokenized here, in blocks: one call for each example would take longer than the rest of the
pipeline.

Examples keep `key` and `source` for messages and counts; the model does not get them.

Legend: B block of examples, N image tokens, H W pixels, T text tokens (targets), E width of stored
features.
"""

import abc
import functools
from collections.abc import Iterable, Mapping

import seqio

from synth2_jax.data.preprocessors import (
    BLOCK,
    FEATURES_BLOCK,
    Features,
    decode_text_features,
    map_blocks,
    normalize_images,
    text_targets,
)
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import UserError, nearest
from synth2_jax.text.vocabulary import END_OF_TURN, START_OF_TURN

_Spec = seqio.FeatureConverter.FeatureSpec
_TEXT = _Spec(tf.string, rank=0)
_TOKENS = _Spec(tf.int32)
_MASK = _Spec(tf.bool)
_IMAGE_SHAPE = (None, None, 3)
_PAIR = {"image_tokens": _TOKENS, "source": _TEXT, "key": _TEXT}  # features that stay the same
_IMAGE_PAIR = {"image": _Spec(tf.uint8, rank=3), "source": _TEXT, "key": _TEXT}

COMPANIONS = ("key", "source")


class _BlockConverter(seqio.FeatureConverter):
    """Converts blocks of examples. The length of the task feature "caption" is T."""

    PACKING_FEATURE_DTYPES = None
    BLOCK = BLOCK

    def __init__(self, vocabulary: seqio.Vocabulary | None = None):
        # SeqIO checks lengths by a call per example; `_convert_block` fixes the shapes instead.
        super().__init__(pack=False, apply_length_check=False)
        self._vocabulary = vocabulary

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Returns {model feature: length}: 0 for a scalar, else the task's or the caption's."""
        text_length = task_feature_lengths.get("caption")
        return {
            name: task_feature_lengths.get(name, text_length) if spec.rank else 0
            for name, spec in self.MODEL_FEATURES.items()
        }

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        return map_blocks(
            ds, lambda block: self._convert_block(block, task_feature_lengths), self.BLOCK
        )

    @abc.abstractmethod
    def _convert_block(self, block: Features, lengths: Mapping[str, int]) -> Features:
        """{task feature: [B, ...]} -> {model feature: [B, ...]}."""

    def _text(self, block: Features, length: int, *, prompted: bool) -> tuple[tf.Tensor, ...]:
        captions = self._vocabulary.encode_tf(block["caption"])
        # Many examples have the same prompt: each prompt is tokenized once a block.
        distinct, index_B = tf.unique(
            block["prompt"] if prompted else tf.zeros_like(block["caption"])
        )
        prompts = tf.gather(self._vocabulary.encode_tf(distinct), index_B)
        return text_targets(prompts, captions, length, tf.gather(self._ends(distinct), index_B))

    def _ends(self, prompts: tf.Tensor) -> tf.Tensor:
        """Returns the end token i32[B] for the text after each prompt, see `Vocabulary.end_id`."""
        ends = tf.fill(tf.shape(prompts), self._vocabulary.eos_id)
        pieces = self._vocabulary.tokenizer
        end_of_turn = pieces.piece_to_id(END_OF_TURN)
        if end_of_turn == pieces.unk_id():
            return ends
        closed = f"(?s){START_OF_TURN}.*?{END_OF_TURN}"
        opened = tf.strings.regex_full_match(
            tf.strings.regex_replace(prompts, closed, ""), f"(?s).*{START_OF_TURN}.*"
        )
        return tf.where(opened, end_of_turn, ends)


def _pair(block: Features, lengths: Mapping[str, int]) -> Features:
    """Returns the features of `_PAIR` or `_IMAGE_PAIR` with fixed shapes."""
    if "image" in block:
        image = tf.ensure_shape(block["image"], (None, *_IMAGE_SHAPE))
        return {"image": image, "source": block["source"], "key": block["key"]}
    image_tokens_BN = tf.ensure_shape(block["image_tokens"], (None, lengths["image_tokens"]))
    return {"image_tokens": image_tokens_BN, "source": block["source"], "key": block["key"]}


class TokenizerConverter(_BlockConverter):
    """{image f32[H,W,3] in [-1, 1]}."""

    TASK_FEATURES = {"image": _Spec(tf.uint8, rank=3)}
    MODEL_FEATURES = {"image": _Spec(tf.float32, rank=3)}

    def _convert_block(self, block, lengths):
        return {"image": normalize_images(tf.ensure_shape(block["image"], (None, *_IMAGE_SHAPE)))}


class LanguageModelConverter(_BlockConverter):
    """{text_tokens i32[T], loss_mask bool[T]}."""

    TASK_FEATURES = {"prompt": _TEXT, "caption": _TEXT, "key": _TEXT}
    MODEL_FEATURES = {"text_tokens": _TOKENS, "loss_mask": _MASK, "key": _TEXT}

    def _convert_block(self, block, lengths):
        text_tokens_BT, _, loss_mask_BT = self._text(block, lengths["caption"], prompted=True)
        return {"text_tokens": text_tokens_BT, "loss_mask": loss_mask_BT, "key": block["key"]}


class GeneratorConverter(_BlockConverter):
    """{image_tokens i32[N], text_tokens i32[T], text_mask bool[T]}: caption and eos, no prompt."""

    TASK_FEATURES = {**_PAIR, "caption": _TEXT}
    MODEL_FEATURES = {**_PAIR, "text_tokens": _TOKENS, "text_mask": _MASK}

    def _convert_block(self, block, lengths):
        text_tokens_BT, text_mask_BT, _ = self._text(block, lengths["caption"], prompted=False)
        return {**_pair(block, lengths), "text_tokens": text_tokens_BT, "text_mask": text_mask_BT}


class EncodedGeneratorConverter(GeneratorConverter):
    """The same and text_features bf16[T,E], zero after the caption."""

    BLOCK = FEATURES_BLOCK
    TASK_FEATURES = {**GeneratorConverter.TASK_FEATURES, "text_features": _TEXT}
    MODEL_FEATURES = {
        **GeneratorConverter.MODEL_FEATURES,
        "text_features": _Spec(tf.bfloat16, rank=2),
    }

    def _convert_block(self, block, lengths):
        batch = super()._convert_block(block, lengths)
        stored_B, width = block["text_features"], lengths["text_features"]
        features = decode_text_features(stored_B, batch["text_mask"], width, block["key"])
        return {**batch, "text_features": features}


class VLMConverter(_BlockConverter):
    """{image_tokens i32[N], text_tokens i32[T], loss_mask bool[T], is_synthetic bool}."""

    TASK_FEATURES = {**_PAIR, "prompt": _TEXT, "caption": _TEXT}
    MODEL_FEATURES = {
        **_PAIR,
        "text_tokens": _TOKENS,
        "loss_mask": _MASK,
        "is_synthetic": _Spec(tf.bool, rank=0),
    }

    def _convert_block(self, block, lengths):
        text_tokens_BT, _, loss_mask_BT = self._text(block, lengths["caption"], prompted=True)
        return {
            **_pair(block, lengths),
            "text_tokens": text_tokens_BT,
            "loss_mask": loss_mask_BT,
            "is_synthetic": block["source"] == "synthetic",
        }


@functools.cache
def _from_images(cls: type[_BlockConverter]) -> type[_BlockConverter]:
    """Makes a converter of pairs that hold images: the training step turns them into tokens."""

    def swap(features: Mapping[str, _Spec]) -> dict[str, _Spec]:
        return {**_IMAGE_PAIR, **{k: v for k, v in features.items() if k not in _PAIR}}

    features = {
        "TASK_FEATURES": swap(cls.TASK_FEATURES),
        "MODEL_FEATURES": swap(cls.MODEL_FEATURES),
    }
    return type(f"{cls.__name__}FromImages", (cls,), features)


CONVERTERS = {
    "tokenizer": TokenizerConverter,
    "language_model": LanguageModelConverter,
    "generator": GeneratorConverter,
    "vlm": VLMConverter,
}


def converter_class(
    model_name: str, features: Iterable[str] = (), *, encoded: bool = False
) -> type[_BlockConverter]:
    """Returns the converter class for a model and tasks with these features.

    Args:
      model_name: "tokenizer", "language_model", "generator" or "vlm".
      features: of the tasks.
      encoded: whether the model, a generator, reads stored features of the captions.

    Raises:
      UserError: an unknown model.
    """
    if model_name not in CONVERTERS:
        raise UserError(
            f"model {model_name!r}: no batches for it; {nearest(model_name, CONVERTERS)}"
        )
    cls = EncodedGeneratorConverter if encoded else CONVERTERS[model_name]
    if "image" in features and "image_tokens" not in features and "source" in cls.TASK_FEATURES:
        return _from_images(cls)
    return cls
