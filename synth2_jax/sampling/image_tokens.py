"""Captions -> image tokens: the generator, guidance and parallel decoding put together.

Legend: B batch, N image tokens, T text tokens, K codebook size, C codebook width.
"""

from collections.abc import Callable
from typing import Any

import jax

from synth2_jax.models.maskgit import Generator
from synth2_jax.sampling.guidance import GuidanceConfig, guided
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, parallel_decode

GenerateFn = Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def make_generate(
    model: Generator, sampler: ParallelDecodeConfig, guidance: GuidanceConfig
) -> GenerateFn:
    """Returns `(params, codebook_KC, text_tokens_BT, text_mask_BT, keys_B) -> ids_BN`.

    To be jitted. The captions' keys and values are computed once a sample; with a guidance scale
    of 0 there is no unconditional pass.
    """
    maskgit = model.config.maskgit

    def generate(params, codebook_KC, text_tokens_BT, text_mask_BT, keys_B):
        variables = {"params": params}
        method = "encode_text_and_null" if guidance.scale else "encode_text"
        text = model.apply(variables, text_tokens_BT, text_mask_BT, method=method)

        def model_logits(ids):
            return model.apply(variables, ids, text, codebook_KC, method="logits")

        if guidance.scale:
            logits_fn = guided(model_logits, guidance, num_steps=sampler.num_steps)
        else:
            logits_fn = lambda ids_BN, step: model_logits(ids_BN)  # noqa: E731
        return parallel_decode(
            logits_fn,
            keys_B,
            num_tokens=maskgit.num_tokens,
            mask_id=maskgit.mask_id,
            config=sampler,
        )

    return generate
