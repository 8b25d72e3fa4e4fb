"""VQ-GAN tokenizer: images <-> token ids <-> codebook embeddings.

The architecture is MaskGIT's VQ-GAN (google-research/maskgit; Esser et al. 2021 without attention),
after an optional space-to-depth stage. That stage serves laptops: strided and
full-resolution convolutions are slow in XLA on CPU, and it needs neither. Esser's own VQ-GAN
(taming-transformers), and diffusers' after it, is the same network with other choices:
`interop.taming` lists them.

Legend: B batch, H W pixels (or grid cells), D channels, N image tokens, C codebook width,
K codebook size.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.config import check_choices, check_counts, check_layers
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import MultiHeadAttention
from synth2_jax.models import parameter_shapes as shapes
from synth2_jax.models import quantizer
from synth2_jax.models.convolutions import (
    average_pool,
    cells_a_side,
    convolution,
    depth_to_space,
    group_norm,
    space_to_depth,
    upsample,
)
from synth2_jax.models.quantizer import CODE_CHOICES, Quantizer

STATS = "codebook_stats"
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"swish": nn.swish, "relu": nn.relu}
DOWNSAMPLINGS = ("average_pool", "conv", "conv_3x3")


@dataclasses.dataclass(frozen=True)
class VQTokenizerConfig:
    """Size and shape of a `VQTokenizer`; the defaults are MaskGIT's, with Muse's 8192 codes.

    Attributes:
      image_size: height and width in pixels.
      patch_size: factor of a space-to-depth stage around the network; 1 for none.
      filters: channels at the first level.
      channel_multipliers: channels of each level, in `filters`; each level after the first halves
        the resolution.
      num_res_blocks: residual blocks a level, and as many again at the lowest resolution.
      num_middle_blocks: number of these last ones; None for num_res_blocks.
      extra_decoder_blocks: how many more residual blocks the decoder has a level.
      attention_levels: levels, 0 being the highest resolution, with self-attention over the grid
        after each residual block.
      middle_attention: whether it follows the first middle block.
      kernel_size: size of convolutions at a constant resolution; with 1 a token sees only its own
        patch, and what group norms' statistics tell of the others.
      use_bias: whether the residual blocks' and the encoder's first convolutions have a bias; the
        others have one.
      shortcut_from_input: whether a residual block's shortcut, where channels change, starts from
        its input. In MaskGIT's released code and weights it starts from what is added to it.
      latent_channels: channels of the encoder's last convolution, which one of 1x1 brings to C and
        back to them before the decoder; None where the encoder ends in a 1x1 convolution.
      embedding_dim: C.
      codebook_size: K; at most 65536, as ids are stored in 16 bits.
      norm_groups: groups of the group norms; must divide every level's channels.
      activation: "swish" or "relu".
      downsampling: "average_pool" (MaskGIT's default), or a convolution of stride 2: "conv" (4x4)
        or "conv_3x3" (padded to the right and below alone).
      pixel_range: pixel values inside the network, [-1, 1] outside; MaskGIT's weights need (0, 1).
      l2_normalize_codes: compare directions only, on the unit sphere.
      code_choice: "distance" chooses the nearest code, "dot_product" the code with the largest dot
        product (IBQ).
      usage_decay: decay per batch of the moving average of how often codes are used.
      reservoir_size: recent encoder outputs kept as candidates for revival.
      revive_share: a code used less than this share of uniform use is dead; 0 revives none.
      dtype: activations of the decoder, and in training of the encoder. All else is float32.
    """

    image_size: int = 256
    patch_size: int = 1
    filters: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_middle_blocks: int | None = None
    extra_decoder_blocks: int = 0
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = False
    kernel_size: int = 3
    use_bias: bool = False
    shortcut_from_input: bool = False
    latent_channels: int | None = None
    embedding_dim: int = 256
    codebook_size: int = 8192
    norm_groups: int = 32
    activation: Literal["swish", "relu"] = "swish"
    downsampling: Literal["average_pool", "conv", "conv_3x3"] = "average_pool"
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    l2_normalize_codes: bool = False
    code_choice: Literal["distance", "dot_product"] = "distance"
    usage_decay: float = 0.99
    reservoir_size: int = 1024
    revive_share: float = 0.02
    dtype: str = "float32"

    def __post_init__(self):
        dtype_of(self.dtype, "dtype")
        sizes = ("filters", "kernel_size", "embedding_dim", "norm_groups", "reservoir_size")
        check_counts(self, *sizes, "latent_channels")
        check_counts(self, "codebook_size", most=65536)
        check_layers(self, "num_middle_blocks")
        check_layers(self, "num_res_blocks", "extra_decoder_blocks", least=0)
        cells_a_side(self)
        check_choices(self, activation=ACTIVATIONS, downsampling=DOWNSAMPLINGS)
        check_choices(self, code_choice=CODE_CHOICES)
        levels = [*range(len(self.channel_multipliers))]
        if not set(self.attention_levels) <= set(levels):
            raise UserError(
                f"attention_levels: found {self.attention_levels}, expected some of {levels}"
            )
        for multiplier, channels in zip(self.channel_multipliers, self.channels, strict=True):
            if channels % self.norm_groups:
                raise UserError(
                    f"norm_groups: found {self.norm_groups}, expected a divisor of the channels of "
                    f"each level (`filters` x {multiplier} are {channels})"
                )
        if self.pixel_range[0] >= self.pixel_range[1]:
            raise UserError(f"pixel_range: found {self.pixel_range}, expected (low, high)")

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return [self.filters * multiplier for multiplier in self.channel_multipliers]

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image."""
        return cells_a_side(self)

    @property
    def num_tokens(self) -> int:
        """N, tokens an image, in row-major order of the grid."""
        return self.grid_size**2


def _norm(config: VQTokenizerConfig, name: str) -> nn.GroupNorm:
    return group_norm(config.norm_groups, name=name, dtype=config.dtype)


class AttentionBlock(nn.Module):
    """Adds self-attention of one head over the cells of the grid, after a group norm."""

    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        """[B,H,W,D] -> [B,H,W,D]."""
        B, H, W, D = x_BHWD.shape
        dtype = dtype_of(self.config.dtype)
        attention = MultiHeadAttention(1, D, D, dtype, use_bias=True, name="self_attention")
        y_BND = _norm(self.config, "norm")(x_BHWD).reshape(B, H * W, D)
        return x_BHWD + attention(y_BND, deterministic=True).reshape(B, H, W, D)


class ResBlock(nn.Module):
    """Group norm, activation, 3x3 convolution, twice; a 1x1 shortcut where channels change."""

    config: VQTokenizerConfig
    filters: int

    @nn.compact
    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        """[B,H,W,any] -> [B,H,W,filters]."""
        cfg = self.config
        conv = functools.partial(convolution, dtype=cfg.dtype, use_bias=cfg.use_bias)
        y = x_BHWD
        for i in range(2):
            y = ACTIVATIONS[cfg.activation](_norm(cfg, f"norm_{i}")(y))
            y = conv(self.filters, cfg.kernel_size, name=f"conv_{i}")(y)
        if x_BHWD.shape[-1] == self.filters:
            return x_BHWD + y
        source = x_BHWD if cfg.shortcut_from_input else y
        return conv(self.filters, 1, name="shortcut")(source) + y


def _block(
    config: VQTokenizerConfig,
    numbers: Iterator[int],
    x_BHWD: jax.Array,
    filters: int,
    *,
    attention: bool,
) -> jax.Array:
    """The next residual block and, under the same number, the attention behind it."""
    number = next(numbers)
    x_BHWD = ResBlock(config, filters, name=f"block_{number}")(x_BHWD)
    return AttentionBlock(config, name=f"attention_{number}")(x_BHWD) if attention else x_BHWD


def _middle(config: VQTokenizerConfig, numbers: Iterator[int], x_BHWD: jax.Array) -> jax.Array:
    """The blocks at the lowest resolution."""
    for i in range(config.num_middle_blocks or config.num_res_blocks):
        attention = config.middle_attention and i == 0
        x_BHWD = _block(config, numbers, x_BHWD, config.channels[-1], attention=attention)
    return x_BHWD


class Encoder(nn.Module):
    """Image -> grid of vectors. Blocks are numbered in the order they are applied."""

    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, image_BHWD: jax.Array, *, dtype: str) -> jax.Array:
        """f32[B,H,W,3] -> f[B,grid,grid,C], with activations of this dtype."""
        cfg = dataclasses.replace(self.config, dtype=dtype)
        conv = functools.partial(convolution, dtype=dtype, use_bias=True)
        numbers = itertools.count()
        x = space_to_depth(image_BHWD.astype(dtype_of(dtype)), cfg.patch_size)
        x = convolution(
            cfg.filters, cfg.kernel_size, name="conv_in", dtype=dtype, use_bias=cfg.use_bias
        )(x)
        for level, filters in enumerate(cfg.channels):
            if level > 0 and cfg.downsampling == "average_pool":
                x = average_pool(x)
            elif level > 0:
                kernel_size = 4 if cfg.downsampling == "conv" else 3
                name = f"downsample_{level - 1}"
                x = conv(cfg.channels[level - 1], kernel_size, name=name, stride=2)(x)
            for _ in range(cfg.num_res_blocks):
                x = _block(cfg, numbers, x, filters, attention=level in cfg.attention_levels)
        x = _middle(cfg, numbers, x)
        x = ACTIVATIONS[cfg.activation](_norm(cfg, "norm_out")(x))
        if cfg.latent_channels is None:
            return conv(cfg.embedding_dim, 1, name="conv_out")(x)
        x = conv(cfg.latent_channels, cfg.kernel_size, name="conv_out")(x)
        return conv(cfg.embedding_dim, 1, name="quant_conv")(x)


class Decoder(nn.Module):
    """Grid of codes -> image; the encoder's mirror image, with nearest-neighbour upsampling."""

    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, quantized_BHWC: jax.Array) -> jax.Array:
        """f[B,grid,grid,C] -> f32[B,H,W,3]."""
        cfg = self.config
        conv = functools.partial(convolution, dtype=cfg.dtype, use_bias=True)
        numbers = itertools.count()
        x = quantized_BHWC.astype(dtype_of(cfg.dtype))
        if cfg.latent_channels is not None:
            x = conv(cfg.latent_channels, 1, name="post_quant_conv")(x)
        x = conv(cfg.channels[-1], cfg.kernel_size, name="conv_in")(x)
        x = _middle(cfg, numbers, x)
        for i, (level, filters) in enumerate(reversed([*enumerate(cfg.channels)])):
            for _ in range(cfg.num_res_blocks + cfg.extra_decoder_blocks):
                x = _block(cfg, numbers, x, filters, attention=level in cfg.attention_levels)
            if level > 0:
                x = conv(filters, 3, name=f"upsample_{i}")(upsample(x))
        x = ACTIVATIONS[cfg.activation](_norm(cfg, "norm_out")(x))
        x = conv(3 * cfg.patch_size**2, cfg.kernel_size, name="conv_out")(x)
        return depth_to_space(x, cfg.patch_size).astype(jnp.float32)


class VQTokenizer(nn.Module):
    """Encoder, nearest-code quantizer and decoder (MaskGIT, Chang et al. 2022, section 3.1).

    Images are f32[B,H,W,3] in [-1, 1]. Decoded images are not clipped, so that gradients survive:
    clip where pixels are stored or shown.
    """

    config: VQTokenizerConfig

    def setup(self):
        cfg = self.config
        self.encoder = Encoder(cfg)
        self.quantizer = Quantizer(
            cfg.codebook_size, cfg.embedding_dim, cfg.l2_normalize_codes, cfg.code_choice
        )
        self.decoder = Decoder(cfg)

    def __call__(
        self, image_BHWD: jax.Array, *, deterministic: bool, quantize: jax.Array | bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(reconstruction f32[B,H,W,3], what `Quantizer` returns), which also explains `quantize`.

        In training (not `deterministic`) the encoder's activations have the config's dtype.
        """
        encoded_BNC = self._encode(image_BHWD, exact=deterministic)
        intermediates = self.quantizer(encoded_BNC, quantize=quantize)
        return self._decode(intermediates["quantized_BNC"]), intermediates

    def encode(self, image_BHWD: jax.Array) -> jax.Array:
        """f32[B,H,W,3] in [-1, 1] -> i32[B,N], row-major.

        The encoder runs in float32 at the highest matrix precision, whatever the config's dtype and
        the accelerator's default: ids must not depend on the batch that an image is in (in bfloat16
        2.5 % differ between batches of 1 and 256), nor on the accelerator.
        """
        return self.quantizer(self._encode(image_BHWD, exact=True))["ids_BN"]

    def codes(self) -> jax.Array:
        """f32[K,C], the codes as `embed` looks them up: unit vectors with `l2_normalize_codes`."""
        return self.quantizer.codes()

    def embed(self, ids_BN: jax.Array) -> jax.Array:
        """i32[B,N] -> f32[B,N,C], the image embedding; NaN for an id outside the codebook."""
        return self.quantizer.embed(ids_BN)

    def decode(self, ids_BN: jax.Array) -> jax.Array:
        """i32[B,N] -> f32[B,H,W,3], nominally in [-1, 1]."""
        return self._decode(self.embed(ids_BN))

    def _encode(self, image_BHWD: jax.Array, *, exact: bool) -> jax.Array:
        cfg = self.config
        expected = (cfg.image_size, cfg.image_size, 3)
        if image_BHWD.shape[1:] != expected:
            raise ValueError(f"image: found shape {image_BHWD.shape}, expected (B, *{expected})")
        low, high = cfg.pixel_range
        pixels_BHWD = (image_BHWD + 1.0) * ((high - low) / 2.0) + low
        if exact:
            with jax.default_matmul_precision("highest"):
                encoded_BHWC = self.encoder(pixels_BHWD, dtype="float32")
        else:
            encoded_BHWC = self.encoder(pixels_BHWD, dtype=cfg.dtype)
        return encoded_BHWC.reshape(-1, cfg.num_tokens, cfg.embedding_dim)

    def _decode(self, quantized_BNC: jax.Array) -> jax.Array:
        cfg = self.config
        grid = (cfg.grid_size, cfg.grid_size, cfg.embedding_dim)
        low, high = cfg.pixel_range
        return (self.decoder(quantized_BNC.reshape(-1, *grid)) - low) * (2.0 / (high - low)) - 1.0


def parameter_shapes(config: VQTokenizerConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The tokenizer's parameters by "/"-joined path; computes nothing."""
    image = ((1, config.image_size, config.image_size, 3), jnp.float32)
    return shapes.parameter_shapes(VQTokenizer(config), image, deterministic=True)


def initial_model_state(config: VQTokenizerConfig) -> dict:
    """{"codebook_stats": ...} of a tokenizer that has seen nothing, boxed."""
    sizes = (config.codebook_size, config.embedding_dim, config.reservoir_size)
    return {STATS: {"quantizer": quantizer.initial_statistics(*sizes)}}


def used_model_state(model_state: dict) -> dict:
    """Returns unboxed `initial_model_state` of a trained codebook: all codes were used alike."""
    stats = model_state[STATS]["quantizer"]
    stats = {**stats, "usage": jnp.ones_like(stats["usage"])}
    return {**model_state, STATS: {"quantizer": stats}}


def update_codebook(
    params: dict, model_state: dict, seen: dict, key: jax.Array, config: VQTokenizerConfig
) -> tuple[dict, dict, jax.Array]:
    """(params, model_state, i32[] revived): counts a batch and revives the dead codes.

    To be called after the optimizer's update, with unboxed `params` and a fresh `key` each step.
    `seen` is `quantizer.seen_codes` of each of the batch's microbatches, stacked. A code is dead
    below `revive_share` of the mean usage.
    """
    stats = quantizer.update_statistics(model_state[STATS]["quantizer"], seen, config.usage_decay)
    codebook_KC, usage_K, num_revived = quantizer.revive_dead_codes(
        params["quantizer"]["codebook"],
        stats["usage"],
        stats["reservoir"],
        key,
        config.revive_share * jnp.mean(stats["usage"]),
        l2_normalize_codes=config.l2_normalize_codes,
    )
    params = {**params, "quantizer": {**params["quantizer"], "codebook": codebook_KC}}
    stats = {**stats, "usage": usage_K}
    return params, {**model_state, STATS: {"quantizer": stats}}, num_revived


_NORMALIZED = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1


def normalized(images: jax.Array) -> jax.Array:
    """u8[...] in 0..255 -> f32[...] in [-1, 1].

    Looked up, so that the same pixels are the same floats in every program: compilers round a
    division as they like, and a last bit decides between two codes.
    """
    return jnp.asarray(_NORMALIZED)[images]
