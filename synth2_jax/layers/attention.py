"""Multi-head attention with keys and values that can be computed apart, and a key-value cache.

B batch, T queries, S keys, D width, H heads, K head dim, L layers.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from synth2_jax.layers import fused_attention
from synth2_jax.layers.dropout import Dropout
from synth2_jax.layers.embeddings import apply_rope
from synth2_jax.layers.linear import Linear
from synth2_jax.layers.norms import RMSNorm
from synth2_jax.sharding import constrain

KeysValues = tuple[jax.Array, jax.Array]  # k_BSHK, v_BSHK

_HIDDEN = -1e30  # finite: a row that sees nothing must not make NaN, in the gradient either


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens decoded so far, for all layers and rows at once."""

    keys_LBSHK: jax.Array
    values_LBSHK: jax.Array
    index: jax.Array  # i32[], tokens held so far, the same for all rows

    @property
    def max_length(self) -> int:
        """S: how many tokens fit."""
        return self.keys_LBSHK.shape[2]


def write_keys_values(held: KeysValues, new: KeysValues, index: jax.Array) -> KeysValues:
    """One layer's cache (S long) with `new` (T long) written at positions index .. index + T - 1.

    The caller keeps index + T <= S: a traced index cannot be checked here.
    """
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(h_BSHK, n_BTHK.astype(h_BSHK.dtype), index, axis=1)
        for h_BSHK, n_BTHK in zip(held, new, strict=True)
    )


def dot_product_attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    dropout: Dropout | None = None,
    deterministic: bool = True,
) -> jax.Array:
    """[B, T, H, K]. `mask` and `bias` broadcast to [B, H, T, S]; softmax in float32.

    A query that sees no key gets zeros, where a plain softmax would average everything it must
    not see (Flamingo's text before an image). On a GPU a fused kernel does the work where it can.
    """
    drops = dropout is not None and dropout.rate > 0 and not deterministic
    if bias is None and not drops and fused_attention.fits(q_BTHK, k_BSHK):
        return fused_attention.fused_attention(q_BTHK, k_BSHK, v_BSHK, mask)
    logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    if bias is not None:
        logits_BHTS = logits_BHTS + bias.astype(jnp.float32)
    if mask is not None:
        mask = jnp.expand_dims(mask, range(4 - mask.ndim))
        logits_BHTS = jnp.where(mask, logits_BHTS, _HIDDEN)
    probs_BHTS = jax.nn.softmax(logits_BHTS)
    if mask is not None:
        probs_BHTS = jnp.where(mask, probs_BHTS, 0.0)
    if dropout is not None:
        probs_BHTS = dropout(probs_BHTS, deterministic=deterministic)
    return jnp.einsum("BHTS,BSHK->BTHK", probs_BHTS.astype(v_BSHK.dtype), v_BSHK)


class MultiHeadAttention(nn.Module):
    """Attention of x over itself, or over keys and values computed before.

    Cross-attention: `attention(x, keys_values=attention.keys_values(source))`; the pair can be
    kept as long as `source` stays the same. Decoding: write `keys_values(x)` into a cache and pass
    the cache (`write_keys_values`).

    `scale_queries` divides the logits by sqrt(K); without it (T5) the query's initializer is
    smaller by as much. `qk_norm` normalizes queries and keys a head (RMS, learned scale).
    """

    num_heads: int
    head_dim: int
    embed_dim: int  # D of the output
    dtype: jnp.dtype = jnp.float32
    scale_queries: bool = True
    dropout_rate: float = 0.0
    qk_norm: bool = False
    use_bias: bool = False
    rope_max_wavelength: float = 10_000.0

    def setup(self):
        linear = functools.partial(Linear, dtype=self.dtype, use_bias=self.use_bias)
        heads, names = (self.num_heads, self.head_dim), ("embed", "heads", "kv")
        query_scale = 1.0 if self.scale_queries else 1.0 / self.head_dim
        self.query = linear(heads, names, init_scale=query_scale)
        self.key, self.value = linear(heads, names), linear(heads, names)
        self.out = linear((self.embed_dim,), ("heads", "kv", "embed"))
        if self.qk_norm:
            self.query_norm = RMSNorm(self.dtype, axis_name="kv")
            self.key_norm = RMSNorm(self.dtype, axis_name="kv")
        self.dropout = Dropout(self.dropout_rate)

    def keys_values(
        self, source_BSD: jax.Array, *, positions_BS: jax.Array | None = None
    ) -> KeysValues:
        """k_BSHK, v_BSHK of a source; with positions the keys are rotated (RoPE)."""
        k_BSHK = _by_heads(self.key(source_BSD))
        if self.qk_norm:
            k_BSHK = self.key_norm(k_BSHK)
        if positions_BS is not None:
            k_BSHK = apply_rope(k_BSHK, positions_BS, max_wavelength=self.rope_max_wavelength)
        return k_BSHK, _by_heads(self.value(source_BSD))

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        keys_values: KeysValues | None = None,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        deterministic: bool,
    ) -> jax.Array:
        """[B, T, D]. Without `keys_values` x attends to itself.

        mask: bool, broadcastable to [B, H, T, S]; a query without a visible key gets zeros
        (before the output bias). bias: added to the logits, broadcastable likewise.
        positions_BT: of x, for RoPE; one row serves all.
        """
        if keys_values is None:
            keys_values = self.keys_values(x_BTD, positions_BS=positions_BT)
        q_BTHK = _by_heads(self.query(x_BTD))
        if self.qk_norm:
            q_BTHK = self.query_norm(q_BTHK)
        if positions_BT is not None:
            q_BTHK = apply_rope(q_BTHK, positions_BT, max_wavelength=self.rope_max_wavelength)
        if self.scale_queries:
            q_BTHK = q_BTHK * self.head_dim**-0.5
        options = {"dropout": self.dropout, "deterministic": deterministic}
        out_BTHK = dot_product_attention(q_BTHK, *keys_values, mask=mask, bias=bias, **options)
        return self.out(_by_heads(out_BTHK))


def _by_heads(x_BTHK: jax.Array) -> jax.Array:
    return constrain(x_BTHK, "batch", "length", "heads", "kv")
