"""Gemma 3 (arXiv 2503.19786), text only, as a language model with our hook for cross-attention.

The layers are those of the package `gemma` (google-deepmind/gemma), so that what is fixed there
comes along; ours are the residual stream around them, the names of their parameters' axes and the
cache. As in the package, parameters and activations have one dtype, norms and softmax too; what
was released is bfloat16. The package needs TensorFlow, through its own dependencies: it is imported
where a model is first made or run.

B batch, T text tokens, D width, V vocabulary, S cache length.
"""

import dataclasses
import functools
import importlib
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.layers import lora
from synth2_jax.layers.attention import KeysValues
from synth2_jax.layers.stack import Stack, check_stack
from synth2_jax.models import parameter_shapes as shapes
from synth2_jax.models.language_model import LanguageModel, check_rotary
from synth2_jax.sharding import constrain
from synth2_jax.text.vocabulary import PAD_ID, Vocabulary

# Logical names of the package's parameters, by the end of their paths. None is an axis over the
# matrices that it keeps in one array: query, key and value, or gate and up.
_AXES = {
    "input_embedding": ("vocab", "embed"),
    "attn/q_einsum/w": ("heads", "embed", "kv"),
    "attn/kv_einsum/w": (None, "heads", "embed", "kv"),
    "attn/qkv_einsum/w": (None, "heads", "embed", "kv"),
    "attn/attn_vec_einsum/w": ("heads", "kv", "embed"),
    "attn/_query_norm/scale": ("kv",),
    "attn/_key_norm/scale": ("kv",),
    "mlp/gating_einsum": (None, "mlp", "embed"),
    "mlp/linear": ("mlp", "embed"),
    "scale": ("embed",),
}
# The axes of a matrix that are its inputs.
_INPUTS = {
    "attn/q_einsum/w": ("embed",),
    "attn/kv_einsum/w": ("embed",),
    "attn/qkv_einsum/w": ("embed",),
    "attn/attn_vec_einsum/w": ("heads", "kv"),
    "mlp/gating_einsum": ("embed",),
    "mlp/linear": ("mlp",),
}
_AXES |= lora.axes_of_adapters(_AXES, _INPUTS)


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes of a Gemma 3; RELEASED has those of 270M, 1B and 4B parameters.

    Attributes:
      num_kv_heads: heads of keys and values, a divisor of `num_heads`.
      sliding_window: how many tokens, itself included, a token sees in a local layer.
      local_layers: between each two global layers, which see all tokens; the first ones are local.
      local_rope_max_wavelength, global_rope_max_wavelength: longest wavelength of rotary positions.
      global_rope_scale: positions are divided by it in global layers.
      query_dim: queries are divided by its square root; None for `head_dim`.
      bos_id: what a text starts with, in the place of our 0.
      dtype: parameters and activations.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    sliding_window: int
    local_layers: int = 5
    local_rope_max_wavelength: float = 10_000.0
    global_rope_max_wavelength: float = 1_000_000.0
    global_rope_scale: float = 1.0
    query_dim: int | None = None
    bos_id: int = 2
    dtype: str = "bfloat16"
    remat: str = "none"

    def __post_init__(self):
        check_stack(self, "vocab_size", "num_kv_heads", "sliding_window", "query_dim", "bos_id")
        config_lib.check_counts(self, "local_layers", least=0)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_kv_heads: found {self.num_kv_heads}, expected a divisor of "
                f"`num_heads`, {self.num_heads}"
            )
        check_rotary(self)

    @property
    def scan_layers(self) -> bool:
        """Local and global layers take turns, and a scan has layers of one kind."""
        return False

    def is_global(self, layer: int) -> bool:
        """Returns whether layer `layer`, from 0, sees all tokens."""
        return layer % (self.local_layers + 1) == self.local_layers

    def check_vocabulary(self, vocabulary: Vocabulary, where: str) -> None:
        """Raises UserError where the vocabulary is not the one that the model was trained with."""
        vocabulary.check_table(self.vocab_size, where)
        if vocabulary.bos_id != self.bos_id:
            raise UserError(
                f"{where}.bos_id: found {self.bos_id}, expected {vocabulary.bos_id}, the start of "
                f"sentence of {vocabulary.path}"
            )

    def make(self) -> "Gemma":
        """The model."""
        return Gemma(self)


_GEMMA_3 = functools.partial(GemmaConfig, vocab_size=262_144, head_dim=256)
_SMALL = functools.partial(_GEMMA_3, num_heads=4, num_kv_heads=1, sliding_window=512)
_LARGE = functools.partial(_GEMMA_3, sliding_window=1024, global_rope_scale=8.0)
# The sizes that were released, as the package has them.
RELEASED = {
    "270m": _SMALL(num_layers=18, embed_dim=640, mlp_dim=2048),
    "1b": _SMALL(num_layers=26, embed_dim=1152, mlp_dim=6912),
    "4b": _LARGE(num_layers=34, embed_dim=2560, num_heads=8, num_kv_heads=4, mlp_dim=10_240),
}


class Gemma(LanguageModel):
    """Text tokens to logits of the next ones, by the layers of the package `gemma`.

    A start token 0, as `language_model.shift_right` gives it, is read as `config.bos_id`.
    Parameters: the package's own, below "embedder", "decoder/layers_I/block" and "final_norm".
    """

    config: GemmaConfig

    def setup(self):
        cfg, package = self.config, gemma_nn()
        named = functools.partial(_named, dtype=config_lib.dtype(cfg.dtype))
        embedder = named(package.Embedder, methods=("encode", "decode"))
        self.embedder = embedder(vocab_size=cfg.vocab_size, embed_dim=cfg.embed_dim)
        self.decoder = _Decoder(
            functools.partial(_Layer, cfg), cfg.num_layers, cfg.scan_layers, cfg.remat
        )
        self.final_norm = named(package.RMSNorm)()

    def _embedded(self, input_tokens_BT: jax.Array, deterministic: bool) -> jax.Array:
        del deterministic
        # Padding too becomes bos; it stands on the right, where nothing before it sees it.
        ids_BT = jnp.where(input_tokens_BT == PAD_ID, self.config.bos_id, input_tokens_BT)
        return constrain(self.embedder.encode(ids_BT), "batch", "length", None)

    def _logits(self, x_BTD: jax.Array) -> jax.Array:
        logits_BTV = self.embedder.decode(self.final_norm(x_BTD)).astype(jnp.float32)
        return constrain(logits_BTV, "batch", "length", "vocab")


class _Decoder(Stack):
    """A stack that tells each layer its number."""

    def setup(self):
        self.layers = [self.block(i) for i in range(self.num_layers)]


class _Layer(nn.Module):
    """Layer `number` of the package, called as a layer of ours is."""

    config: GemmaConfig
    number: int

    def setup(self):
        cfg, package = self.config, gemma_nn()
        is_global = cfg.is_global(self.number)
        block = _named(package.Block, dtype=config_lib.dtype(cfg.dtype))
        self.block = block(
            num_heads=cfg.num_heads,
            num_kv_heads=cfg.num_kv_heads,
            embed_dim=cfg.embed_dim,
            head_dim=cfg.head_dim,
            hidden_dim=cfg.mlp_dim,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
            use_qk_norm=True,
            attn_type=(
                package.AttentionType.GLOBAL if is_global else package.AttentionType.LOCAL_SLIDING
            ),
            sliding_window_size=cfg.sliding_window,
            query_pre_attn_scalar=(cfg.query_dim or cfg.head_dim) ** -0.5,
            rope_base_frequency=(
                cfg.global_rope_max_wavelength if is_global else cfg.local_rope_max_wavelength
            ),
            rope_scale_factor=cfg.global_rope_scale if is_global else 1.0,
            transpose_gating_einsum=True,
        )

    def __call__(
        self,
        x_BTD: jax.Array,
        cached: KeysValues | None,
        mask_TS: jax.Array,
        positions_1T: jax.Array,
        *,
        deterministic: bool,
    ) -> tuple[jax.Array, KeysValues | None]:
        """A `language_model.DecoderBlock` without dropout."""
        del deterministic
        batch_size = x_BTD.shape[0]

        def for_all_rows(one):
            return jnp.broadcast_to(one, (batch_size, *one.shape[-1:]))

        cache = None
        if cached is not None:
            k_BSHK, v_BSHK = cached
            # Where the cache holds nothing yet, the mask hides it.
            cache = {
                "k": k_BSHK,
                "v": v_BSHK,
                "positions": for_all_rows(jnp.arange(k_BSHK.shape[1])),
                "end_index": jnp.broadcast_to(positions_1T[0, 0], (batch_size,)),
            }
        cache, x_BTD = self.block(x_BTD, for_all_rows(positions_1T), cache, mask_TS[None])
        return x_BTD, None if cache is None else (cache["k"], cache["v"])


def gemma_nn() -> ModuleType:
    """The package's layers, `gemma.gm.nn`; UserError if it cannot be imported."""
    try:
        package = importlib.import_module("gemma.gm.nn")
        if not hasattr(package, "Block"):  # which is imported only now
            raise ImportError("it has no gemma.gm.nn.Block: is it older than 3.3?")
        return package
    except ImportError as error:
        raise UserError(
            f"gemma: cannot be imported ({error}), needed for a Gemma language model; "
            "pip install 'synth2-jax[gemma]'"
        ) from error


def parameter_shapes(config: GemmaConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes by path of the parameter."""
    return shapes.parameter_shapes(config.make(), ((1, 1), jnp.int32), deterministic=True)


def _named(
    module: type[nn.Module], *, dtype: jnp.dtype, methods: tuple[str, ...] = ("__call__",)
) -> type[nn.Module]:
    """The package's module, its parameters in `dtype` and with names of their axes."""

    def box(key_path: Any, leaf: jax.Array) -> nn.LogicallyPartitioned:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        axes = [names for end, names in _AXES.items() if f"/{path}".endswith(f"/{end}")]
        if not axes or len(axes[0]) != leaf.ndim:
            raise UserError(f"gemma: its parameter {path} {list(leaf.shape)} is not known here")
        # Adapters are trained by steps that bfloat16 would lose.
        leaf = leaf if lora.is_adapter(path) else leaf.astype(dtype)
        return nn.LogicallyPartitioned(leaf, axes[0])

    return nn.map_variables(
        module,
        "params",
        trans_in_fn=nn.unbox,
        # Unboxed: of a second method, the first has boxed its parameters.
        trans_out_fn=lambda params: jax.tree_util.tree_map_with_path(box, nn.unbox(params)),
        init=True,
        methods=methods,
    )
