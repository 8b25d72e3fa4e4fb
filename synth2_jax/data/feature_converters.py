"""Task features -> the batch that each model takes.

Text is tokenized here, in blocks: one call for each example would take longer than the rest of the
pipeline. Examples keep `key` and `source` for messages and counts; the model does not get them.

Legend: B block of examples, N image tokens, H W pixels, T text tokens, E width of stored features.
"""

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

COMPANIONS = ("key", "source")

_Spec = seqio.FeatureConverter.FeatureSpec
_SPECS = {
    **dict.fromkeys(("key", "source", "prompt", "caption"), _Spec(tf.string, rank=0)),
    **dict.fromkeys(("image_tokens", "text_tokens"), _Spec(tf.int32)),
    **dict.fromkeys(("text_mask", "loss_mask"), _Spec(tf.bool)),
    "is_synthetic": _Spec(tf.bool, rank=0),
    "image": _Spec(tf.uint8, rank=3),
    "normalized_image": _Spec(tf.float32, rank=3),
    "text_features": _Spec(tf.bfloat16, rank=2),
}
# {model: names of (task features, model features)}. Masks are true on caption and end token; the
# generator's text has no prompt. `is_synthetic` is for metrics only.
_FEATURES = {
    "tokenizer": ("image", "image"),
    "language_model": ("prompt caption key", "text_tokens loss_mask key"),
    "generator": (
        "image_tokens source key caption",
        "image_tokens source key text_tokens text_mask",
    ),
    "vlm": (
        "image_tokens source key prompt caption",
        "image_tokens source key text_tokens loss_mask is_synthetic",
    ),
}
MODELS = tuple(_FEATURES)


class BlockConverter(seqio.FeatureConverter):
    """Converts blocks of examples. The length of the task feature "caption" is T."""

    PACKING_FEATURE_DTYPES = None

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
        block = FEATURES_BLOCK if "text_features" in self.TASK_FEATURES else BLOCK
        return map_blocks(ds, lambda b: self._convert_block(b, task_feature_lengths), block)

    def _convert_block(self, block: Features, lengths: Mapping[str, int]) -> Features:
        """{task feature: [B, ...]} -> {model feature: [B, ...]}."""
        made = dict(block)
        if "image_tokens" in block:
            shape = (None, lengths["image_tokens"])
            made["image_tokens"] = tf.ensure_shape(block["image_tokens"], shape)
        if "image" in block:
            made["image"] = tf.ensure_shape(block["image"], (None, None, None, 3))
            if self.MODEL_FEATURES["image"].dtype == tf.float32:
                made["image"] = normalize_images(made["image"])
        if "caption" in block:
            made |= self._text(block, lengths["caption"])
        if "text_features" in block:
            made["text_features"] = decode_text_features(
                block["text_features"], made["text_mask"], lengths["text_features"], block["key"]
            )
        if "is_synthetic" in self.MODEL_FEATURES:
            made["is_synthetic"] = block["source"] == "synthetic"
        return {name: made[name] for name in self.MODEL_FEATURES}

    def _text(self, block: Features, length: int) -> Features:
        captions = self._vocabulary.encode_tf(block["caption"])
        # Many examples have the same prompt: each prompt is tokenized once a block.
        distinct, index_B = tf.unique(block.get("prompt", tf.zeros_like(block["caption"])))
        prompts = tf.gather(self._vocabulary.encode_tf(distinct), index_B)
        ends_B = tf.gather(self._ends(distinct), index_B)
        text = text_targets(prompts, captions, length, ends_B)
        return dict(zip(("text_tokens", "text_mask", "loss_mask"), text, strict=True))

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


def converter_class(
    model_name: str, features: Iterable[str] = (), *, encoded: bool = False
) -> type[BlockConverter]:
    """Returns the converter class for a model and tasks with these features.

    Tasks with images in place of tokens give images, which the training step tokenizes. `encoded`
    adds the stored features of the captions, zero after each caption, to a generator's batch.

    Raises:
      UserError: an unknown model.
    """
    if model_name not in _FEATURES:
        raise UserError(
            f"--config.model_name: no batches for {model_name!r}; {nearest(model_name, MODELS)}"
        )
    return _converter_class(
        model_name, "image" in features and "image_tokens" not in features, encoded
    )


@functools.cache
def _converter_class(model_name: str, from_images: bool, encoded: bool) -> type[BlockConverter]:
    task, model = (
        {name: _SPECS[name] for name in names.split()} for names in _FEATURES[model_name]
    )
    if model_name == "tokenizer":
        model["image"] = _SPECS["normalized_image"]
    if encoded:
        task["text_features"], model["text_features"] = _SPECS["caption"], _SPECS["text_features"]
    for features in (task, model):
        if from_images and features.pop("image_tokens", None):
            features["image"] = _SPECS["image"]
    members = {"TASK_FEATURES": task, "MODEL_FEATURES": model}
    return type("Converter", (BlockConverter,), members)
