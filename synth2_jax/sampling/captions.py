"""Image embeddings -> captions by the VLM, and prompts -> captions by the bare language model.

Legend: B batch, N image tokens, C codebook width, P prompt tokens, T generated tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from synth2_jax.models.language_model import LanguageModel, init_cache, shift_right
from synth2_jax.models.vlm import VLM
from synth2_jax.sampling.text_decode import TextDecodeConfig, decode


def make_caption(
    model: VLM, prompt_tokens: list[int], config: TextDecodeConfig
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns `(params, image_embeddings_BNC) -> (ids_BT, scores_B)`, to be jitted.

    Every image gets the same prompt; nucleus decoding is for text alone (`make_write`).
    """

    def caption(params, image_embeddings_BNC):
        variables = {"params": params}
        visual = model.apply(variables, image_embeddings_BNC, method="visual")
        batch_size = image_embeddings_BNC.shape[0]
        prompts_BP = jnp.broadcast_to(
            jnp.asarray(prompt_tokens, jnp.int32), (batch_size, len(prompt_tokens))
        )

        def step(tokens_BT, cache):
            return model.apply(variables, tokens_BT, cache, visual, method="step")

        return _decode_after(step, model.config.language_model, prompts_BP, config, None)

    return caption


def make_write(
    model: LanguageModel, config: TextDecodeConfig
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns `(params, prompts_BP, keys_B) -> (ids_BT, scores_B)`, to be jitted; one key a row."""

    def write(params, prompts_BP, keys_B):
        def step(tokens_BT, cache):
            return model.apply({"params": params}, tokens_BT, cache, method="step")

        return _decode_after(step, model.config, prompts_BP, config, keys_B)

    return write


def _decode_after(step, language_model, prompts_BP, config, keys_B):
    """Puts the prompts into the cache in one go, then decodes."""
    batch_size, prompt_length = prompts_BP.shape
    cache = init_cache(language_model, batch_size, prompt_length + config.max_length)
    # The inputs are the start token and the prompt, of which the last is fed with what it predicts.
    inputs = jnp.concatenate([shift_right(prompts_BP), prompts_BP[:, -1:]], axis=1)
    logits_BPV, cache = step(inputs, cache)

    def step_fn(tokens_B, cache):
        logits, cache = step(tokens_B[:, None], cache)
        return logits[:, 0], cache

    return decode(step_fn, logits_BPV[:, -1], cache, config, keys_B=keys_B)
