"""Captions -> image tokens: the generator, guidance and parallel decoding put together.

B batch, N image tokens, T text tokens, K codebook size, C codebook width, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax

from synth2_jax.models.maskgit import Generator, TextKeysValues
from synth2_jax.sampling.guidance import GuidanceConfig, guidance_scales, guided
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, parallel_decode

GenerateFn = Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def make_generate(
    model: Generator, sampler: ParallelDecodeConfig, guidance: GuidanceConfig
) -> GenerateFn:
    """Returns `(params, codebook_KC, text_tokens_BT, text_mask_BT, keys_B) -> ids_BN`.

    To be jitted. The captions' keys and values are computed once a sample; a step without guidance
    has no unconditional pass.
    """
    maskgit = model.config.maskgit
    is_guided = guidance_scales(guidance, sampler.num_steps).any()

    def generate(params, codebook_KC, text_tokens_BT, text_mask_BT, keys_B):
        variables = {"params": params}
        method = "encode_text_and_null" if is_guided else "encode_text"
        text = model.apply(variables, text_tokens_BT, text_mask_BT, method=method)
        count = len(text_tokens_BT)
        keys_values = jax.tree.map(lambda x_LB: x_LB[:, :count], text.keys_values)
        captions = TextKeysValues(keys_values, text.mask_BT[:count])

        def logits_of(text):
            return lambda ids: model.apply(variables, ids, text, codebook_KC, method="logits")

        logits_fn_S = guided(
            logits_of(text), logits_of(captions), guidance, num_steps=sampler.num_steps
        )
        return parallel_decode(
            logits_fn_S,
            keys_B,
            num_tokens=maskgit.num_tokens,
            mask_id=maskgit.mask_id,
            config=sampler,
        )

    return generate
