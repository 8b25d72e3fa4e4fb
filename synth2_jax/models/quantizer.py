"""Vector quantizer: vectors -> nearest codes, with usage statistics and revival of dead codes.

Legend: B batch, N image tokens, C codebook width, K codebook size, R rows of the reservoir,
X candidate vectors, M any number of vectors.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.sharding import constrain


def _dot_products(x_MC: jax.Array, codebook_KC: jax.Array) -> jax.Array:
    # In float32 whatever the inputs are: which code is nearest must not depend on the dtype of the
    # activations, nor on the accelerator's default matrix precision.
    x_MC, codebook_KC = x_MC.astype(jnp.float32), codebook_KC.astype(jnp.float32)
    return jnp.einsum("MC,KC->MK", x_MC, codebook_KC, precision=jax.lax.Precision.HIGHEST)


def squared_distances(x_MC: jax.Array, codebook_KC: jax.Array) -> jax.Array:
    """f32[M,K], the squared Euclidean distance of every vector to every code."""
    dot_MK = _dot_products(x_MC, codebook_KC)
    norms_M1 = jnp.sum(x_MC.astype(jnp.float32) ** 2, axis=-1, keepdims=True)
    norms_K = jnp.sum(codebook_KC.astype(jnp.float32) ** 2, axis=-1)
    return norms_M1 - 2.0 * dot_MK + norms_K


def negative_dot_products(x_MC: jax.Array, codebook_KC: jax.Array) -> jax.Array:
    """f32[M,K], minus the dot product of every vector with every code."""
    return -_dot_products(x_MC, codebook_KC)


# How a vector finds its code: the code with the lowest value is chosen.
CODE_CHOICES = {"distance": squared_distances, "dot_product": negative_dot_products}


def l2_normalize(x: jax.Array) -> jax.Array:
    """`x` with unit length along the last axis (zero stays zero)."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


class Quantizer(nn.Module):
    """Nearest-code quantizer (VQ-VAE, van den Oord et al. 2017).

    `l2_normalize_codes` puts codes and inputs on the unit sphere. `code_choice` "dot_product"
    chooses the code with the largest dot product (IBQ, Shi et al. 2024).
    """

    codebook_size: int  # K
    embedding_dim: int  # C
    l2_normalize_codes: bool = False
    code_choice: Literal["distance", "dot_product"] = "distance"

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        init = nn.with_logical_partitioning(init, ("codebook", "embed"))
        self.codebook = self.param("codebook", init, (self.codebook_size, self.embedding_dim))

    def codes(self) -> jax.Array:
        """f32[K,C], the codebook's rows as they are compared and looked up."""
        return l2_normalize(self.codebook) if self.l2_normalize_codes else self.codebook

    def embed(self, ids_BN: jax.Array) -> jax.Array:
        """f32[B,N,C], the code of every id; NaN where an id is K or more (a mask id)."""
        x_BNC = jnp.take(self.codes(), ids_BN, axis=0, mode="fill")
        return constrain(x_BNC, "batch", "image_tokens", None)

    def __call__(
        self, encoded_BNC: jax.Array, *, quantize: jax.Array | bool = True
    ) -> dict[str, jax.Array]:
        """Quantizes, unless `quantize`, bool[], is false: then vectors pass as they are.

        Codes drawn from an encoder that has learned something for a few steps need far fewer steps
        than codes that learn along with it (Lancucki et al. 2020).

        Returns:
          ids_BN: i32, the chosen code; the lowest id among equally near ones.
          encoded_BNC: f32, the input as it was compared (normalized if codes are).
          codes_BNC: f32, the chosen rows, differentiable with respect to the codebook.
          quantized_BNC: f32, the same values with the straight-through gradient: the identity with
            respect to `encoded_BNC`, nothing to the codebook.
          distances_BNK: f32, squared distances, or minus the dot products, for the entropy loss.
        """
        encoded_BNC = encoded_BNC.astype(jnp.float32)
        if self.l2_normalize_codes:
            encoded_BNC = l2_normalize(encoded_BNC)
        flat_MC = encoded_BNC.reshape(-1, self.embedding_dim)
        distances_MK = CODE_CHOICES[self.code_choice](flat_MC, self.codes())
        ids_BN = jnp.argmin(distances_MK, axis=-1).reshape(encoded_BNC.shape[:-1]).astype(jnp.int32)
        codes_BNC = self.embed(ids_BN)
        # Written so that the value is the code to the last bit: decode(ids) then gives exactly the
        # reconstruction of training. `encoded + stop_gradient(codes - encoded)` would round.
        offset_BNC = encoded_BNC - jax.lax.stop_gradient(encoded_BNC)
        quantized_BNC = jax.lax.stop_gradient(codes_BNC) + offset_BNC
        quantized_BNC = jnp.where(quantize, quantized_BNC, encoded_BNC)
        codes_BNC = jnp.where(quantize, codes_BNC, jax.lax.stop_gradient(encoded_BNC))
        return {
            "ids_BN": ids_BN,
            "encoded_BNC": encoded_BNC,
            "codes_BNC": codes_BNC,
            "quantized_BNC": quantized_BNC,
            "distances_BNK": distances_MK.reshape(*ids_BN.shape, self.codebook_size),
        }


def initial_statistics(
    codebook_size: int, embedding_dim: int, reservoir_size: int
) -> dict[str, nn.LogicallyPartitioned]:
    """The statistics of a codebook that has seen nothing, with their logical axis names.

    `usage` f32[K] is a moving average of how often each code is chosen in a batch; `reservoir`
    f32[R,C] are recent vectors from before quantization, the candidates of `revive_dead_codes`.
    """
    usage_K, reservoir_RC = jnp.zeros(codebook_size), jnp.zeros((reservoir_size, embedding_dim))
    return {
        "usage": nn.LogicallyPartitioned(usage_K, ("codebook",)),
        "reservoir": nn.LogicallyPartitioned(reservoir_RC, (None, "embed")),
    }


def seen_codes(
    quantized: dict[str, jax.Array], quantize: jax.Array | bool, reservoir_size: int
) -> dict[str, jax.Array]:
    """Returns a microbatch's part of `update_statistics`: counts and at most R vectors.

    `quantized` is what `Quantizer` returned, given this `quantize`; without, no code is counted.
    """
    *_, codebook_size = quantized["distances_BNK"].shape
    counts_K = count_codes(quantized["ids_BN"], codebook_size)
    encoded_BNC = jax.lax.stop_gradient(quantized["encoded_BNC"])
    flat_MC = encoded_BNC.reshape(-1, encoded_BNC.shape[-1])
    return {
        "counts_K": jnp.where(quantize, counts_K, 0.0),
        "vectors_XC": _spread_rows(flat_MC, min(flat_MC.shape[0], reservoir_size)),
    }


def update_statistics(
    stats: dict[str, jax.Array], seen: dict[str, jax.Array], usage_decay: float
) -> dict[str, jax.Array]:
    """The statistics after one batch, `seen` of its P microbatches: counts_PK and vectors_PXC.

    `usage_decay` is per batch.
    """
    counts_K = jnp.sum(seen["counts_K"], axis=0)
    vectors_MC = seen["vectors_XC"].reshape(-1, stats["reservoir"].shape[1])
    # The first batch sets the averages instead of entering them with weight 1 - decay, so codes
    # that it does not use are dead at once: this is what starts the codebook from the data.
    first = jnp.sum(stats["usage"]) == 0
    mixed_K = usage_decay * stats["usage"] + (1.0 - usage_decay) * counts_K
    usage_K = jnp.where(first, counts_K, mixed_K)
    reservoir_size = stats["reservoir"].shape[0]
    rows_RC = _spread_rows(vectors_MC, reservoir_size)
    num_new = min(vectors_MC.shape[0], reservoir_size)
    kept_RC = jnp.concatenate([rows_RC[:num_new], stats["reservoir"]])[:reservoir_size]
    return {
        "usage": jnp.where(jnp.any(counts_K > 0), usage_K, stats["usage"]),
        "reservoir": jnp.where(first, rows_RC, kept_RC),
    }


def count_codes(ids: jax.Array, codebook_size: int) -> jax.Array:
    """f32[K], how often each code is in `ids` (any shape)."""
    return jnp.zeros(codebook_size, jnp.float32).at[ids.reshape(-1)].add(1.0)


def codebook_statistics(counts_K: jax.Array) -> dict[str, jax.Array]:
    """`perplexity` (K when use is uniform, 1 when collapsed) and `codes_used` (share of K).

    The counts are of a batch or of a whole data set, from `count_codes`.
    """
    probs_K = counts_K / jnp.maximum(jnp.sum(counts_K), 1.0)
    entropy = -jnp.sum(jnp.where(probs_K > 0, probs_K * jnp.log(jnp.maximum(probs_K, 1e-30)), 0.0))
    return {"perplexity": jnp.exp(entropy), "codes_used": jnp.mean(counts_K > 0)}


def revive_dead_codes(
    codebook_KC: jax.Array,
    usage_K: jax.Array,
    encoded_XC: jax.Array,
    key: jax.Array,
    threshold: jax.Array | float,
    *,
    l2_normalize_codes: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(codebook, usage, i32[] replaced): a random candidate for each code used below `threshold`.

    Candidates far from every code in use are likelier (k-means++, Arthur & Vassilvitskii 2007):
    drawn uniformly, most would be copies of the few commonest patches, and die again. No candidate
    is taken twice unless there are more dead codes than candidates. A revived code gets the mean
    usage, and so has time to prove itself.

    `encoded_XC` are outputs of the encoder, unit vectors with `l2_normalize_codes`, where only the
    directions of codes count. A code exactly at `threshold`, in the unit of `usage_K`, lives.
    """
    num_candidates = encoded_XC.shape[0]
    dead_K = usage_K < threshold
    codes_KC = l2_normalize(codebook_KC) if l2_normalize_codes else codebook_KC
    distances_XK = squared_distances(encoded_XC, codes_KC)
    nearest_X = jnp.min(jnp.where(dead_K, jnp.inf, distances_XK), axis=-1)
    log_weights_X = jnp.log(jnp.clip(nearest_X, 1e-12, 1e12))
    # Gumbel top-k: sampling without replacement, in proportion to the weights.
    order_X = jnp.argsort(-(log_weights_X + jax.random.gumbel(key, (num_candidates,))))
    rank_K = jnp.cumsum(dead_K) - 1
    drawn_KC = encoded_XC[order_X[rank_K % num_candidates]].astype(codebook_KC.dtype)
    revived_KC = jnp.where(dead_K[:, None], drawn_KC, codebook_KC)
    revived_K = jnp.where(dead_K, jnp.maximum(jnp.mean(usage_K), threshold), usage_K)
    return revived_KC, revived_K, jnp.sum(dead_K, dtype=jnp.int32)


def _spread_rows(x_MC: jax.Array, num_rows: int) -> jax.Array:
    """f32[num_rows,C]: distinct rows from all over `x_MC`, repeating once M are used up.

    Steps by about M / golden ratio, made coprime with M: every M steps visit every row once, and
    few rows already meet all images and all positions (a plain stride may meet one position only).
    """
    num_vectors = x_MC.shape[0]
    stride = max(1, round(num_vectors * 0.6180339887))
    while math.gcd(stride, num_vectors) != 1:
        stride += 1
    # 64-bit on the host: row * stride overflows 32 bits for large batches.
    rows = np.arange(num_rows, dtype=np.int64) * stride % num_vectors
    return x_MC[rows.astype(np.int32)]
