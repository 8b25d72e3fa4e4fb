"""From records to task features, and from task features to what a model reads.

Functions on datasets work on blocks of examples, because one call for each example would take
longer than the work itself. They keep the order and the number of examples.

Legend: B block of examples, P prompt tokens, T text tokens, t of a caption, E width of features.
"""

from collections.abc import Callable, Mapping

from synth2_jax.data import records
from synth2_jax.data.tensorflow_cpu import tf

BLOCK = 128
# For examples with features of captions: 64 tokens of width 4096 are half a megabyte.
FEATURES_BLOCK = 8
# Constant, not tuned at run time: results that wait in a block are part of the saved position.
PARALLEL_BLOCKS = 2

Features = Mapping[str, tf.Tensor]


def map_blocks(
    dataset: tf.data.Dataset, function: Callable[[Features], Features], block: int = BLOCK
) -> tf.data.Dataset:
    """Maps examples by a function that takes them in blocks: features [...] become [B, ...]."""
    return dataset.batch(block).map(function, num_parallel_calls=PARALLEL_BLOCKS).unbatch()


def decode_pairs(
    dataset: tf.data.Dataset, *, prompt: str, text_features: bool = False, images: bool = False
) -> tf.data.Dataset:
    """Serialized pairs (see `records`) -> the features of `tasks.pair_features`.

    `prompt` is for pairs without their own prompt. With `text_features` these are read too; they
    stay bytes until they are in a batch, because their lengths differ. With `images` the pairs hold
    images u8[H,W,3] in place of image tokens.
    """
    picture = records.IMAGE if images else records.IMAGE_TOKENS
    fields = (picture, *records.FIELDS, *((records.TEXT_FEATURES,) if text_features else ()))
    description = {field: tf.io.FixedLenFeature([], tf.string) for field in fields}
    description[records.PROMPT] = tf.io.FixedLenFeature([], tf.string, default_value=prompt)

    def decode(serialized_B: tf.Tensor) -> Features:
        features = tf.io.parse_example(serialized_B, description)
        if images:
            pictures = tf.map_fn(
                lambda png: tf.io.decode_png(png, channels=3),
                features[picture],
                fn_output_signature=tf.TensorSpec((None, None, 3), tf.uint8),
            )
        else:
            tokens_BN = tf.io.decode_raw(features[picture], tf.uint16, little_endian=True)
            pictures = tf.cast(tokens_BN, tf.int32)
        return {**features, picture: pictures}

    return map_blocks(dataset, decode, FEATURES_BLOCK if text_features and not images else BLOCK)


def normalize_images(images: tf.Tensor) -> tf.Tensor:
    """u8[...] in 0..255 -> f32[...] in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def decode_text_features(
    stored_B: tf.Tensor, text_mask_BT: tf.Tensor, width: int, keys_B: tf.Tensor
) -> tf.Tensor:
    """Returns the features bf16[B,T,E], zero after each caption, from bytes of bf16[t,E].

    `text_mask_BT` is true on the t tokens of each caption. An InvalidArgumentError names the keys
    of the examples whose number of bytes is wrong.
    """
    num_tokens_B = tf.reduce_sum(tf.cast(text_mask_BT, tf.int32), axis=1)
    fits_B = tf.strings.length(stored_B) == 2 * width * num_tokens_B
    unfit_B = tf.boolean_mask(keys_B, ~fits_B)
    message = f"stored text features have another length than their caption, of width {width}, at"
    tf.debugging.Assert(tf.reduce_all(fits_B), [message, unfit_B])
    length = text_mask_BT.shape[1]
    bits = tf.io.decode_raw(stored_B, tf.uint16, fixed_length=2 * width * length)
    return tf.bitcast(tf.reshape(bits, [-1, length, width]), tf.bfloat16)


def text_targets(
    prompts: tf.RaggedTensor, captions: tf.RaggedTensor, length: int, ends_B: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Joins prompt, caption and end token, padded with 0; cuts long captions before the end token.

    `ends_B` is the end token i32 of each caption: end of sentence, or end of the turn that its
    prompt opens.

    Returns:
      text_tokens i32[B,T]; text_mask bool[B,T], true on all but padding; loss_mask bool[B,T],
      true on caption and end. If the prompt fills a row, at most its end token is there.
    """
    ids = tf.concat([prompts, captions], axis=1)[:, : length - 1]
    ids = tf.concat([ids, ends_B[:, None]], axis=1)
    text_mask_BT = tf.sequence_mask(ids.row_lengths(), length)
    prompt_mask_BT = tf.sequence_mask(prompts.row_lengths(), length)
    text_tokens_BT = ids.to_tensor(0, shape=[None, length])
    return text_tokens_BT, text_mask_BT, text_mask_BT & ~prompt_mask_BT
