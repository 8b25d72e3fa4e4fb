"""Image embeddings -> captions by the VLM, and prompts -> captions by the bare language model.

B batch, I images a text, N image tokens, C codebook width, P prompt tokens, T generated tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from synth2_jax.models.language_model import LanguageModel, init_cache
from synth2_jax.models.vlm import VLM
from synth2_jax.sampling.text_decode import TextDecodeConfig, decode
from synth2_jax.text.vocabulary import EOS_ID, PAD_ID


def make_caption(
    model: VLM, prompt_tokens: list[int], config: TextDecodeConfig, eos_id: int = EOS_ID
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns `(params, image_embeddings_BNC) -> (ids_BT, scores_B)`, to be jitted.

    Every image gets the same prompt; nucleus decoding is for text alone (`make_write`). `eos_id`
    ends a caption: what `Vocabulary.end_id` says of the prompt.
    """

    def caption(params, image_embeddings_BNC):
        variables = {"params": params}
        visual = model.apply(variables, image_embeddings_BNC, method="visual")
        batch_size = image_embeddings_BNC.shape[0]
        prompt_P = jnp.asarray(prompt_tokens, jnp.int32)
        prompts_BP = jnp.broadcast_to(prompt_P, (batch_size, len(prompt_tokens)))

        def step(tokens_BT, cache):
            return model.apply(variables, tokens_BT, cache, visual, method="step")

        return _decode_after(step, model.config.language_model, prompts_BP, config, eos_id, None)

    return caption


def make_prompted_caption(
    model: VLM, config: TextDecodeConfig, eos_id: int = EOS_ID
) -> Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns `(params, image_embeddings_BINC, inputs_BP, image_of_text_BP, length) -> (ids_BT,
    scores_B)`, to be jitted.

    Every image has a prompt of its own, with images between its words where it is few-shot. The
    first `length` i32[] of each row of `inputs_BP`, start tokens included, count;
    `image_of_text_BP` is `VLM.__call__`'s. What is generated reads the last image.
    """

    def caption(params, image_embeddings_BINC, inputs_BP, image_of_text_BP, length):
        variables = {"params": params}
        visual = model.apply(variables, image_embeddings_BINC, method="visual")
        num_images = image_embeddings_BINC.shape[1]

        def step(tokens_BT, cache, image_of_text_BT):
            return model.apply(variables, tokens_BT, cache, visual, image_of_text_BT, method="step")

        def read_last(tokens_BT, cache):
            return step(tokens_BT, cache, jnp.full_like(tokens_BT, num_images))

        batch_size, num_inputs = inputs_BP.shape
        held = num_inputs + config.max_length - 1
        cache = init_cache(model.config.language_model, batch_size, held)
        _, cache = step(inputs_BP, cache, image_of_text_BP)
        # Back to the last input that counts: what is cached behind it is hidden until it is
        # overwritten, and unused logits of the whole prompt are not computed.
        cache = cache.replace(index=jnp.asarray(length, jnp.int32) - 1)
        last_B1 = jax.lax.dynamic_slice_in_dim(inputs_BP, length - 1, 1, axis=1)
        logits_B1V, cache = read_last(last_B1, cache)
        return _decode(read_last, logits_B1V[:, 0], cache, config, eos_id, None)

    return caption


def make_write(
    model: LanguageModel, config: TextDecodeConfig, eos_id: int = EOS_ID
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns `(params, prompts_BP, keys_B) -> (ids_BT, scores_B)`, to be jitted; one key a row."""

    def write(params, prompts_BP, keys_B):
        def step(tokens_BT, cache):
            return model.apply({"params": params}, tokens_BT, cache, method="step")

        return _decode_after(step, model.config, prompts_BP, config, eos_id, keys_B)

    return write


def _decode_after(step, language_model, prompts_BP, config, eos_id, keys_B):
    """Puts the prompts into the cache in one go, then decodes."""
    batch_size, prompt_length = prompts_BP.shape
    cache = init_cache(language_model, batch_size, prompt_length + config.max_length)
    # The start token and the prompt. The last of them goes in by itself: the logits of the others
    # are not used, and so are not computed. An empty prompt has no others.
    inputs = jnp.pad(prompts_BP, ((0, 0), (1, 0)), constant_values=PAD_ID)
    if prompt_length:
        _, cache = step(inputs[:, :-1], cache)
    logits_B1V, cache = step(inputs[:, -1:], cache)
    return _decode(step, logits_B1V[:, 0], cache, config, eos_id, keys_B)


def _decode(step, logits_BV, cache, config, eos_id, keys_B):
    """Goes on from a cache that holds the prompt, one token a row at a time."""

    def step_fn(tokens_B, cache):
        logits, cache = step(tokens_B[:, None], cache)
        return logits[:, 0], cache

    return decode(step_fn, logits_BV, cache, config, keys_B=keys_B, eos_id=eos_id)
