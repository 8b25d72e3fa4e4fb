"""VQ-GAN tokenizer: images <-> token ids <-> codebook embeddings.

The architecture is MaskGIT's VQ-GAN (google-research/maskgit; Esser et al. 2021 without attention),
after an optional space-to-depth stage. One class serves the paper's 256-pixel tokenizer and a
32-pixel one for a laptop: strided and full-resolution convolutions are slow in XLA on CPU, and a
space-to-depth stage needs neither. Esser's own VQ-GAN (taming-transformers), and diffusers' after
it, is the same network with other choices: `interop.taming` lists them.

Legend: B batch, H W pixels (or grid cells), D channels, N image tokens, C codebook width,
K codebook size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from synth2_jax.config import check_choices, check_counts, check_layers
from synth2_jax.config import dtype as dtype_of
from synth2_jax.errors import UserError
from synth2_jax.layers.attention import MultiHeadAttention
from synth2_jax.models import quantizer
from synth2_jax.models.quantizer import CODE_CHOICES, Quantizer

STATS = "codebook_stats"

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"swish": nn.swish, "relu": nn.relu}
DOWNSAMPLINGS = ("average_pool", "conv", "conv_3x3")


@dataclasses.dataclass(frozen=True)
class VQTokenizerConfig:
    """Size and shape of a `VQTokenizer`; the defaults are MaskGIT's, with Muse's 8192 codes.

    Attributes:
      image_size: height and width in pixels.
      patch_size: factor of the space-to-depth stage in front of the encoder and of its inverse
        behind the decoder; 1 for none.
      filters: channels at the first level.
      channel_multipliers: channels of each level, times `filters`; every level after the first
        halves the resolution.
      num_res_blocks: residual blocks a level, and as many again at the lowest resolution.
      num_middle_blocks: of these last ones; None for num_res_blocks.
      extra_decoder_blocks: how many more residual blocks the decoder has a level.
      attention_levels: levels, from 0 at the highest resolution, at which self-attention over all
        cells of the grid follows each residual block.
      middle_attention: whether it follows the first middle block.
      kernel_size: of the convolutions at a constant resolution; with 1 a token sees its own patch,
        and of the others only what the group norms' statistics tell.
      use_bias: whether every convolution has a bias. Without, those of the residual blocks and the
        encoder's first have none.
      shortcut_from_input: whether the shortcut of a residual block, where channels change, is a
        function of the block's input. It is one of what is added to it in MaskGIT's released code,
        and its weights are right that way alone.
      latent_channels: of the encoder's last convolution, which another of 1x1 brings to C, and
        back to it in front of the decoder; None where the encoder ends in a 1x1 convolution.
      embedding_dim: C.
      codebook_size: K; at most 65536, as ids are stored in 16 bits.
      norm_groups: groups of the group norms; must divide every level's channels.
      activation: "swish" or "relu".
      downsampling: "average_pool" (MaskGIT's default), or a convolution of stride 2: "conv" (4x4)
        or "conv_3x3" (padded to the right and below alone).
      pixel_range: the range of pixel values inside the network. Images are [-1, 1] outside in any
        case; MaskGIT's released weights need (0, 1) here.
      l2_normalize_codes: compare directions only, on the unit sphere.
      code_choice: "distance" chooses the nearest code, "dot_product" the code with the largest dot
        product (IBQ).
      usage_decay: decay per batch of the moving average of how often codes are used; a batch in
        microbatches is one batch.
      reservoir_size: recent encoder outputs kept as candidates for revival.
      revive_share: a code used less than this share of uniform use is dead; 0 revives none.
      dtype: of the decoder's activations, and in training of the encoder's. Parameters, distances
        and outputs are float32, and so is the encoder outside of training (see `encode`).
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
        check_counts(self, *sizes)
        check_counts(self, "latent_channels")
        check_layers(self, "num_middle_blocks")
        check_layers(self, "num_res_blocks", "extra_decoder_blocks", least=0)
        check_levels(self.image_size, self.patch_size, self.channel_multipliers)
        check_choices(self, activation=ACTIVATIONS, downsampling=DOWNSAMPLINGS)
        check_choices(self, code_choice=CODE_CHOICES)
        levels = range(len(self.channel_multipliers))
        if not set(self.attention_levels) <= set(levels):
            raise UserError(
                f"attention_levels: found {self.attention_levels}, expected some of {[*levels]}"
            )
        for multiplier in self.channel_multipliers:
            if self.filters * multiplier % self.norm_groups:
                raise UserError(
                    f"norm_groups: found {self.norm_groups}, expected a divisor of the channels of "
                    f"each level (`filters` x {multiplier} are {self.filters * multiplier})"
                )
        if not 1 <= self.codebook_size <= 65536:
            raise UserError(f"codebook_size: found {self.codebook_size}, expected 1 to 65536")
        if self.pixel_range[0] >= self.pixel_range[1]:
            raise UserError(f"pixel_range: found {self.pixel_range}, expected (low, high)")

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // (self.patch_size * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def num_tokens(self) -> int:
        """N, tokens an image, in row-major order of the grid."""
        return self.grid_size**2


def check_levels(image_size: int, patch_size: int, channel_multipliers: tuple[int, ...]) -> None:
    """Raises UserError unless the patches and the halvings divide the image evenly."""
    for name, value in (("image_size", image_size), ("patch_size", patch_size)):
        if value < 1:
            raise UserError(f"{name}: found {value}, expected at least 1")
    if min(channel_multipliers, default=0) < 1:
        raise UserError(
            f"channel_multipliers: found {channel_multipliers}, expected at least one level, "
            "each at least 1"
        )
    factor = patch_size * 2 ** (len(channel_multipliers) - 1)
    if image_size % factor:
        raise UserError(
            f"image_size: found {image_size}, expected a multiple of {factor} (`patch_size` "
            f"{patch_size} and {len(channel_multipliers) - 1} halvings)"
        )


def space_to_depth(x_BHWD: jax.Array, patch_size: int) -> jax.Array:
    """[B,H,W,D] -> [B,H/p,W/p,p*p*D]; channels in order row, column, D."""
    B, H, W, D = x_BHWD.shape
    p = patch_size
    x = x_BHWD.reshape(B, H // p, p, W // p, p, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H // p, W // p, p * p * D)


def depth_to_space(x_BHWD: jax.Array, patch_size: int) -> jax.Array:
    """[B,H,W,p*p*D] -> [B,H*p,W*p,D], the inverse of `space_to_depth`."""
    B, H, W, D = x_BHWD.shape
    p = patch_size
    x = x_BHWD.reshape(B, H, W, p, p, D // p**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H * p, W * p, D // p**2)


def average_pool(x_BHWD: jax.Array) -> jax.Array:
    """[B,H,W,D] -> [B,H/2,W/2,D], means of 2x2 cells."""
    B, H, W, D = x_BHWD.shape
    return x_BHWD.reshape(B, H // 2, 2, W // 2, 2, D).mean(axis=(2, 4))


def upsample(x_BHWD: jax.Array) -> jax.Array:
    """[B,H,W,D] -> [B,2H,2W,D], every cell repeated 2x2."""
    return jnp.repeat(jnp.repeat(x_BHWD, 2, axis=1), 2, axis=2)


def convolution(
    features: int, kernel_size: int, *, name: str, dtype: str, use_bias: bool, stride: int = 1
) -> nn.Conv:
    """Returns a square convolution whose parameters carry logical axis names.

    The kernel's window gets no name (None, replicated): Flax refuses a name that occurs twice.
    """
    kernel_names = (None, None, "conv_in", "conv_out")
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        use_bias=use_bias,
        dtype=dtype_of(dtype),
        param_dtype=jnp.float32,
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), kernel_names),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )


def _group_norm(config: VQTokenizerConfig, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(
        config.norm_groups,
        dtype=dtype_of(config.dtype),
        param_dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )


class AttentionBlock(nn.Module):
    """Adds self-attention of one head over the cells of the grid, after a group norm."""

    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        """[B,H,W,D] -> [B,H,W,D]."""
        B, H, W, D = x_BHWD.shape
        attention = MultiHeadAttention(
            1, D, D, dtype_of(self.config.dtype), use_bias=True, name="self_attention"
        )
        y_BND = _group_norm(self.config, "norm")(x_BHWD).reshape(B, H * W, D)
        return x_BHWD + attention(y_BND, deterministic=True).reshape(B, H, W, D)


class ResBlock(nn.Module):
    """Group norm, activation, 3x3 convolution, twice; a 1x1 shortcut where channels change."""

    config: VQTokenizerConfig
    filters: int

    @nn.compact
    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        """[B,H,W,any] -> [B,H,W,filters]."""
        activation = ACTIVATIONS[self.config.activation]
        conv_args = {"dtype": self.config.dtype, "use_bias": self.config.use_bias}
        y = x_BHWD
        for i in range(2):
            y = activation(_group_norm(self.config, f"norm_{i}")(y))
            y = convolution(self.filters, self.config.kernel_size, name=f"conv_{i}", **conv_args)(y)
        if x_BHWD.shape[-1] == self.filters:
            return x_BHWD + y
        source = x_BHWD if self.config.shortcut_from_input else y
        return convolution(self.filters, 1, name="shortcut", **conv_args)(source) + y


def _block(
    config: VQTokenizerConfig, x_BHWD: jax.Array, number: int, filters: int, *, attention: bool
) -> jax.Array:
    """A residual block and, under the same number, the attention behind it."""
    x_BHWD = ResBlock(config, filters, name=f"block_{number}")(x_BHWD)
    if attention:
        x_BHWD = AttentionBlock(config, name=f"attention_{number}")(x_BHWD)
    return x_BHWD


class Encoder(nn.Module):
    """Image -> grid of vectors. Blocks are numbered in the order they are applied."""

    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, image_BHWD: jax.Array, *, dtype: str) -> jax.Array:
        """f[B,H,W,3] -> f[B,grid,grid,C], with activations of this dtype."""
        cfg = dataclasses.replace(self.config, dtype=dtype)
        biased = {"dtype": cfg.dtype, "use_bias": True}
        x = space_to_depth(image_BHWD.astype(dtype_of(cfg.dtype)), cfg.patch_size)
        x = convolution(
            cfg.filters, cfg.kernel_size, name="conv_in", dtype=cfg.dtype, use_bias=cfg.use_bias
        )(x)
        filters = [cfg.filters * multiplier for multiplier in cfg.channel_multipliers]
        num_blocks = 0
        for level in range(len(filters)):
            if level > 0 and cfg.downsampling == "average_pool":
                x = average_pool(x)
            elif level > 0:
                name = f"downsample_{level - 1}"
                kernel_size = 4 if cfg.downsampling == "conv" else 3
                x = convolution(filters[level - 1], kernel_size, name=name, stride=2, **biased)(x)
            for _ in range(cfg.num_res_blocks):
                attention = level in cfg.attention_levels
                x = _block(cfg, x, num_blocks, filters[level], attention=attention)
                num_blocks += 1
        for i in range(cfg.num_middle_blocks or cfg.num_res_blocks):
            attention = cfg.middle_attention and i == 0
            x = _block(cfg, x, num_blocks, filters[-1], attention=attention)
            num_blocks += 1
        x = ACTIVATIONS[cfg.activation](_group_norm(cfg, "norm_out")(x))
        if cfg.latent_channels is None:
            return convolution(cfg.embedding_dim, 1, name="conv_out", **biased)(x)
        x = convolution(cfg.latent_channels, cfg.kernel_size, name="conv_out", **biased)(x)
        return convolution(cfg.embedding_dim, 1, name="quant_conv", **biased)(x)


class Decoder(nn.Module):
    """Grid of codes -> image; the encoder's mirror image, with nearest-neighbour upsampling."""

    config: VQTokenizerConfig

    @nn.compact
    def __call__(self, quantized_BHWC: jax.Array) -> jax.Array:
        """f[B,grid,grid,C] -> f32[B,H,W,3]."""
        cfg = self.config
        biased = {"dtype": cfg.dtype, "use_bias": True}
        filters = [cfg.filters * multiplier for multiplier in cfg.channel_multipliers]
        x = quantized_BHWC.astype(dtype_of(cfg.dtype))
        if cfg.latent_channels is not None:
            x = convolution(cfg.latent_channels, 1, name="post_quant_conv", **biased)(x)
        x = convolution(filters[-1], cfg.kernel_size, name="conv_in", **biased)(x)
        num_blocks = 0
        for i in range(cfg.num_middle_blocks or cfg.num_res_blocks):
            attention = cfg.middle_attention and i == 0
            x = _block(cfg, x, num_blocks, filters[-1], attention=attention)
            num_blocks += 1
        for i, level in enumerate(reversed(range(len(filters)))):
            for _ in range(cfg.num_res_blocks + cfg.extra_decoder_blocks):
                attention = level in cfg.attention_levels
                x = _block(cfg, x, num_blocks, filters[level], attention=attention)
                num_blocks += 1
            if level > 0:
                x = upsample(x)
                x = convolution(filters[level], 3, name=f"upsample_{i}", **biased)(x)
        x = ACTIVATIONS[cfg.activation](_group_norm(cfg, "norm_out")(x))
        x = convolution(3 * cfg.patch_size**2, cfg.kernel_size, name="conv_out", **biased)(x)
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
            codebook_size=cfg.codebook_size,
            embedding_dim=cfg.embedding_dim,
            l2_normalize_codes=cfg.l2_normalize_codes,
            code_choice=cfg.code_choice,
        )
        self.decoder = Decoder(cfg)

    def __call__(
        self, image_BHWD: jax.Array, *, deterministic: bool, quantize: jax.Array | bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes, quantizes and decodes.

        Args:
          image_BHWD: f32[B,H,W,3] in [-1, 1].
          deterministic: false in training, where the encoder's activations have the config's dtype.
          quantize: see `Quantizer`.

        Returns:
          reconstruction f32[B,H,W,3], and what `Quantizer` returns: `ids_BN`, `encoded_BNC`,
          `codes_BNC`, `quantized_BNC`, `distances_BNK`.
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
        encoded_BNC = self._encode(image_BHWD, exact=True)
        return self.quantizer(encoded_BNC)["ids_BN"]

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
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    init = functools.partial(VQTokenizer(config).init, deterministic=True)
    variables = nn.unbox(jax.eval_shape(init, jax.random.key(0), image))
    return traverse_util.flatten_dict(variables["params"], sep="/")


def initial_model_state(config: VQTokenizerConfig) -> dict:
    """{"codebook_stats": ...} of a tokenizer that has seen nothing, boxed."""
    stats = quantizer.initial_statistics(
        config.codebook_size, config.embedding_dim, config.reservoir_size
    )
    return {STATS: {"quantizer": stats}}


def update_codebook(
    params: dict, model_state: dict, seen: dict, key: jax.Array, config: VQTokenizerConfig
) -> tuple[dict, dict, jax.Array]:
    """Counts a batch and revives the dead codes; to be called after the optimizer's update.

    Args:
      params: the tokenizer's parameters (unboxed); not changed in place.
      model_state: {"codebook_stats": ...}; not changed in place.
      seen: of each of the batch's microbatches, stacked; see `quantizer.seen_codes`.
      key: PRNG key, a fresh one each step.
      config: the tokenizer's; a code is dead below `revive_share` of the mean usage.

    Returns:
      params, model_state, and i32[] how many codes were revived.
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
