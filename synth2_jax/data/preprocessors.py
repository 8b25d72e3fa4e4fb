"""From records to task features, and from task features to what a model reads.

Functions on datasets work on blocks of examples, because TensorFlow spends more on calling a
function once an example than on the example itself; they keep order and number of the examples.

Legend: B block of examples, N image tokens, H W pixels, P prompt tokens, T text tokens.
"""

from collections.abc import Callable, Mapping

from synth2_jax.data import records
from synth2_jax.data.tensorflow_cpu import tf

BLOCK = 128
# Fixed rather than tuned at run time: results that wait in a block are part of the saved position.
PARALLEL_BLOCKS = 2

Features = Mapping[str, tf.Tensor]


def map_blocks(
    dataset: tf.data.Dataset, function: Callable[[Features], Features]
) -> tf.data.Dataset:
    """Maps examples by a function that takes them in blocks: features [...] become [B, ...]."""
    return dataset.batch(BLOCK).map(function, num_parallel_calls=PARALLEL_BLOCKS).unbatch()


def decode_pairs(dataset: tf.data.Dataset, *, prompt: str) -> tf.data.Dataset:
    """Serialized pairs (see `records`) -> the features of `tasks.pair_features`.

    A pair's own prompt comes before `prompt`.
    """
    description = _description(prompt, records.IMAGE_TOKENS)

    def decode(serialized_B: tf.Tensor) -> Features:
        features = tf.io.parse_example(serialized_B, description)
        tokens_BN = tf.io.decode_raw(features["image_tokens"], tf.uint16, little_endian=True)
        return {
            **features,
            "image_tokens": tf.cast(tokens_BN, tf.int32),
        }

    return map_blocks(dataset, decode)


def decode_image_pairs(dataset: tf.data.Dataset, *, prompt: str) -> tf.data.Dataset:
    """As `decode_pairs`, of pairs that hold images: u8[H,W,3] in place of the tokens."""
    description = _description(prompt, records.IMAGE)

    def decode(serialized_B: tf.Tensor) -> Features:
        features = tf.io.parse_example(serialized_B, description)
        images = tf.map_fn(
            lambda png: tf.io.decode_png(png, channels=3),
            features[records.IMAGE],
            fn_output_signature=tf.TensorSpec((None, None, 3), tf.uint8),
        )
        return {**features, records.IMAGE: images}

    return map_blocks(dataset, decode)


def _description(prompt: str, picture: str) -> dict[str, tf.io.FixedLenFeature]:
    fields = (picture, *records.FIELDS)
    description = {field: tf.io.FixedLenFeature([], tf.string) for field in fields}
    description[records.PROMPT] = tf.io.FixedLenFeature([], tf.string, default_value=prompt)
    return description


def normalize_images(images: tf.Tensor) -> tf.Tensor:
    """u8[...] in 0..255 -> f32[...] in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def text_targets(
    prompts: tf.RaggedTensor, captions: tf.RaggedTensor, length: int, eos_id: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """prompt + caption + eos, padded with 0; a caption too long loses its end, not its eos.

    Args:
      prompts: i32[B, (P)]
      captions: i32[B, (any)], without eos.
      length: T.
      eos_id: end of sentence.

    Returns:
      text_tokens i32[B,T]; text_mask bool[B,T], true on all but padding; loss_mask bool[B,T],
      true on caption and eos. A row whose prompt leaves no room has at most its eos there.
    """
    ids = tf.concat([prompts, captions], axis=1)[:, : length - 1]
    ids = tf.concat([ids, tf.fill([ids.nrows(), 1], eos_id)], axis=1)
    text_mask_BT = tf.sequence_mask(ids.row_lengths(), length)
    prompt_mask_BT = tf.sequence_mask(prompts.row_lengths(), length)
    text_tokens_BT = ids.to_tensor(0, shape=[None, length])
    return text_tokens_BT, text_mask_BT, text_mask_BT & ~prompt_mask_BT
