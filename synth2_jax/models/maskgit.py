"""Text-to-image generator: a transformer that fills in masked image tokens (Muse, MaskGIT).

Each layer attends over the image tokens, then over the caption, then applies an MLP. The caption's
keys and values do not depend on the image, so the sampler computes them once and takes all its
steps with them.

Legend: B batch, N image tokens, V codebook size (logits; K in parameter and codebook shapes), C
codebook width, T text tokens, E text width, D width, L layers.
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from synth2_jax.config import check_choices, check_counts
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import KeysValues
from synth2_jax.layers.dropout import Dropout
from synth2_jax.layers.embeddings import LearnedPositions, TokenEmbedding
from synth2_jax.layers.linear import Linear
from synth2_jax.layers.masks import key_mask
from synth2_jax.layers.mlp import MLP, gelu
from synth2_jax.layers.norms import RMSNorm
from synth2_jax.layers.stack import StackConfig
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from synth2_jax.sharding import constrain

TOKEN_EMBEDDINGS = ("learned", "codebook")

# Standard deviation of the first logits: the first loss is then ln(V) + 0.03, a number users check.
_LOGITS_STDDEV = 0.25


@dataclasses.dataclass(frozen=True)
class MaskGITConfig(StackConfig):
    """Sizes and variants of the generator.

    Attributes:
      codebook_size: V; image token ids are 0 .. V - 1, and V itself is the mask id.
      num_tokens: N.
      token_embedding: "learned", a table of the generator's own; or "codebook": inputs and logits
        are learned functions of the tokenizer's codes (`VQTokenizer.codes`, what a VLM embeds), so
        that a code that is rare in the pairs inherits what was learned for similar codes.
      codebook_noise: with "codebook", standard deviation of the noise on the output's codebook
        vectors in training (their own is 1 over all): the head must then treat similar codes alike.
      tied_head: with "learned", whether the table gives the logits too.
      qk_norm: normalize queries and keys, for stability at scale.
    """

    codebook_size: int
    num_tokens: int
    token_embedding: str = "learned"
    codebook_noise: float = 0.0
    tied_head: bool = True
    qk_norm: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "codebook_size", "num_tokens")
        check_choices(self, token_embedding=TOKEN_EMBEDDINGS)
        if self.codebook_noise and self.token_embedding != "codebook":
            raise UserError(
                f"codebook_noise: found {self.codebook_noise}, expected 0 without "
                "`token_embedding`=codebook"
            )

    @property
    def mask_id(self) -> int:
        """The input id of a masked position."""
        return self.codebook_size


@flax.struct.dataclass
class TextKeysValues:
    """The captions for the layers: k_LBTHK, v_LBTHK, and which text tokens are seen."""

    keys_values: KeysValues
    mask_BT: jax.Array


class MaskGITBlock(nn.Module):
    """Pre-norm self-attention over the image, cross-attention to the text, MLP."""

    config: MaskGITConfig

    def setup(self):
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        self.self_attention_norm = RMSNorm(dtype)
        self.self_attention = cfg.attention(qk_norm=cfg.qk_norm)
        self.cross_attention_norm = RMSNorm(dtype)
        self.cross_attention = cfg.attention(qk_norm=cfg.qk_norm)
        self.mlp_norm = RMSNorm(dtype)
        self.mlp = MLP(cfg.mlp_dim, dtype, dropout_rate=cfg.dropout_rate)
        self.dropout = Dropout(cfg.dropout_rate)

    def text_keys_values(self, text_BTD) -> KeysValues:
        return self.cross_attention.keys_values(text_BTD)

    def __call__(self, x_BND, text_keys_values, text_mask_B11T, *, deterministic: bool):
        text = {"keys_values": text_keys_values, "mask": text_mask_B11T}
        for norm, layer, arguments in (
            (self.self_attention_norm, self.self_attention, {}),
            (self.cross_attention_norm, self.cross_attention, text),
            (self.mlp_norm, self.mlp, {}),
        ):
            y_BND = layer(norm(x_BND), **arguments, deterministic=deterministic)
            x_BND = x_BND + self.dropout(y_BND, deterministic=deterministic)
        return x_BND, None


class CodebookEmbedding(nn.Module):
    """Input embeddings and output features of codes, computed from their codebook vectors."""

    embed_dim: int
    hidden_dim: int
    noise: float
    init_stddev: float
    dtype: jnp.dtype

    def setup(self):
        self.input = Linear(
            (self.embed_dim,), ("conv_in", "embed"), self.dtype, init_scale=self.init_stddev**2
        )
        # Not linear: logits that are linear in the codebook vector could never prefer a code inside
        # the convex hull.
        hidden = (self.hidden_dim,)
        self.output_hidden = Linear(hidden, ("conv_in", "mlp"), self.dtype, use_bias=True)
        # Half of the hidden variance passes the GELU; the factor makes up for it.
        self.output = Linear(
            (self.embed_dim,), ("mlp", "embed"), self.dtype, init_scale=2 * self.init_stddev**2
        )

    def __call__(self, ids_BN: jax.Array, codebook_KC: jax.Array) -> jax.Array:
        """[B, N, D] of ids below K."""
        x_BNC = jnp.take(_standardized(codebook_KC), ids_BN, axis=0)
        x_BNC = constrain(x_BNC, "batch", "image_tokens", None)
        return constrain(self.input(x_BNC), "batch", "image_tokens", None)

    def attend(self, x_BND: jax.Array, codebook_KC: jax.Array, *, deterministic: bool) -> jax.Array:
        """f32[B, N, K]."""
        codes_KC = _standardized(codebook_KC)
        if self.noise and not deterministic:
            codes_KC += self.noise * jax.random.normal(self.make_rng("dropout"), codes_KC.shape)
        features_KD = self.output(gelu(self.output_hidden(codes_KC)))
        logits_BNK = jnp.einsum(
            "BND,KD->BNK", x_BND, features_KD, preferred_element_type=jnp.float32
        )
        return constrain(logits_BNK, "batch", "image_tokens", "codebook")


def _standardized(codebook_KC: jax.Array) -> jax.Array:
    """Mean 0 a channel, variance 1 over all: codebooks differ in scale by orders of magnitude."""
    codebook_KC = codebook_KC.astype(jnp.float32)
    codebook_KC = codebook_KC - jnp.mean(codebook_KC, axis=0, keepdims=True)
    return codebook_KC * jax.lax.rsqrt(jnp.mean(jnp.square(codebook_KC)) + 1e-12)


class MaskGIT(nn.Module):
    """Partly masked image tokens and a caption's keys and values -> logits of every token."""

    config: MaskGITConfig

    def setup(self):
        cfg = self.config
        dtype = dtype_of(cfg.dtype)
        width = (cfg.embed_dim,)
        stddev = _LOGITS_STDDEV * cfg.embed_dim**-0.5  # of everything that is added at the input
        normal = nn.initializers.normal(stddev)
        if cfg.token_embedding == "codebook":
            self.code_embedding = CodebookEmbedding(
                cfg.embed_dim, cfg.mlp_dim, cfg.codebook_noise, stddev, dtype
            )
        else:
            # The mask has a vector of its own, so that the table keeps a size that meshes divide.
            self.token_embedding = TokenEmbedding(
                cfg.codebook_size, cfg.embed_dim, dtype, stddev, axis_name="codebook"
            )
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("codebook",))
            self.logits_bias = self.param("logits_bias", zeros, (cfg.codebook_size,))
            if not cfg.tied_head:
                self.head = Linear(
                    (cfg.codebook_size,),
                    ("embed", "codebook"),
                    dtype,
                    output_dtype=jnp.float32,
                    init_scale=_LOGITS_STDDEV**2,
                )
        embed = functools.partial(nn.with_logical_partitioning, names=("embed",))
        self.mask_embedding = self.param("mask_embedding", embed(normal), width)
        self.null_caption = self.param("null_caption", embed(nn.initializers.normal(1.0)), width)
        self.positions = LearnedPositions(cfg.num_tokens, dtype, stddev, axis_name="image_tokens")
        self.embedding_norm = RMSNorm(dtype)
        self.embedding_dropout = Dropout(cfg.dropout_rate)
        # The kernel's two widths need two names; "mlp" is the one that splits over the tensor axis.
        self.text_projection = Linear(width, ("mlp", "embed"), dtype)
        self.text_norm = RMSNorm(dtype)
        self.decoder = cfg.stack(MaskGITBlock)
        self.final_norm = RMSNorm(dtype)

    def text_keys_values(
        self, text_BTE: jax.Array, text_mask_BT: jax.Array, drop_B: jax.Array | None = None
    ) -> TextKeysValues:
        """Every layer's keys and values of the text encoder's output, once for all sampling steps.

        Rows of `drop_B` (bool), and rows without a token in `text_mask_BT` (bool), get the learned
        null caption in the caption's place (classifier-free guidance).
        """
        no_text_B = ~jnp.any(text_mask_BT, axis=1)
        drop_B = no_text_B if drop_B is None else drop_B.astype(bool) | no_text_B
        text_BTD = self.text_projection(text_BTE)
        null_11D = self.null_caption.astype(text_BTD.dtype)[None, None]
        text_BTD = self.text_norm(jnp.where(drop_B[:, None, None], null_11D, text_BTD))
        first_1T = jnp.arange(text_mask_BT.shape[1])[None] == 0
        mask_BT = jnp.where(drop_B[:, None], first_1T, text_mask_BT.astype(bool))
        return TextKeysValues(self.decoder.map("text_keys_values", text_BTD), mask_BT)

    def __call__(
        self,
        ids_BN: jax.Array,
        text_keys_values: TextKeysValues,
        codebook_KC: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """f32[B, N, V] of `ids_BN`, i32, `config.mask_id` where masked.

        `codebook_KC` is `VQTokenizer.codes`'; only token_embedding="codebook" needs it.
        """
        cfg = self.config
        if cfg.token_embedding == "codebook" and codebook_KC is None:
            raise ValueError('token_embedding="codebook" needs the codebook_KC argument')
        masked_BN = ids_BN == cfg.mask_id
        codes_BN = jnp.where(masked_BN, 0, ids_BN)
        if cfg.token_embedding == "codebook":
            x_BND = self.code_embedding(codes_BN, codebook_KC)
        else:
            x_BND = self.token_embedding(codes_BN)
        mask_11D = self.mask_embedding.astype(x_BND.dtype)[None, None]
        x_BND = self.positions(jnp.where(masked_BN[..., None], mask_11D, x_BND))
        # As in MaskGIT: without it the first layers drown the small embeddings.
        x_BND = self.embedding_dropout(self.embedding_norm(x_BND), deterministic=deterministic)
        x_BND, _ = self.decoder(
            x_BND,
            key_mask(text_keys_values.mask_BT),
            scanned=text_keys_values.keys_values,
            deterministic=deterministic,
        )
        x_BND = self.final_norm(x_BND)
        if cfg.token_embedding == "codebook":
            # No bias for each code: it could only learn how frequent the code is in the pairs.
            return self.code_embedding.attend(x_BND, codebook_KC, deterministic=deterministic)
        logits_BNV = self.token_embedding.attend(x_BND) if cfg.tied_head else self.head(x_BND)
        return logits_BNV + self.logits_bias[None, None]


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The whole generator.

    Attributes:
      text_encoder: reads the caption.
      maskgit: the image transformer.
    """

    text_encoder: TextEncoderConfig
    maskgit: MaskGITConfig


class Generator(nn.Module):
    """Caption token ids and partly masked image token ids -> logits of every image token.

    To sample: `encode_text` (or `encode_text_and_null` for guidance) once, then `logits` at each
    step.
    """

    config: GeneratorConfig

    def setup(self):
        self.text_encoder = TextEncoder(self.config.text_encoder)
        self.maskgit = MaskGIT(self.config.maskgit)

    def __call__(
        self,
        ids_BN: jax.Array,
        text_tokens_BT: jax.Array,
        text_mask_BT: jax.Array,
        drop_B: jax.Array,
        codebook_KC: jax.Array | None = None,
        text_features_BTE: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """f32[B, N, V]; arguments as in `encode_text` and `logits`."""
        captions = (text_tokens_BT, text_mask_BT, drop_B, text_features_BTE)
        text = self.encode_text(*captions, deterministic=deterministic)
        return self.logits(ids_BN, text, codebook_KC, deterministic=deterministic)

    def encode_text(
        self,
        text_tokens_BT: jax.Array,
        text_mask_BT: jax.Array,
        drop_B: jax.Array | None = None,
        text_features_BTE: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> TextKeysValues:
        """Captions -> every layer's keys and values; rows with `drop_B` get the null caption.

        With `text_features_BTE`, what a frozen text encoder has made of the captions before, the
        encoder is not called and needs no parameters.
        """
        if text_features_BTE is None:
            text_features_BTE = self.text_encoder(
                text_tokens_BT, text_mask_BT, deterministic=deterministic
            )
        return self.maskgit.text_keys_values(text_features_BTE, text_mask_BT, drop_B)

    def encode_text_and_null(
        self, text_tokens_BT: jax.Array, text_mask_BT: jax.Array
    ) -> TextKeysValues:
        """2B rows for `sampling.guidance.guided`: B captions, then B null captions."""
        text_BTE = self.text_encoder(text_tokens_BT, text_mask_BT, deterministic=True)
        text_BTE, mask_BT = (jnp.concatenate([x, x]) for x in (text_BTE, text_mask_BT))
        drop_B = jnp.arange(mask_BT.shape[0]) >= text_tokens_BT.shape[0]
        return self.maskgit.text_keys_values(text_BTE, mask_BT, drop_B)

    def logits(
        self,
        ids_BN: jax.Array,
        text_keys_values: TextKeysValues,
        codebook_KC: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """f32[B, N, V] of ids, `config.maskgit.mask_id` where masked; see `MaskGIT.__call__`."""
        return self.maskgit(ids_BN, text_keys_values, codebook_KC, deterministic=deterministic)
