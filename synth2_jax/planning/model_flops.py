"""FLOPs of a step by formula: what the model needs, whatever the compiler makes of it.

Counted are products of matrices, 2 FLOPs a multiplication, attention in full (a causal mask saves
nothing here, as it saves nothing in the compiled program). Backward, a trained matrix costs its
forward pass twice, for its own gradient and its input's; a frozen one that a gradient passes
through costs it once, and a frozen one that none passes nothing. Rematerialization is not counted:
it is waste that the ratio to the compiled FLOPs shows. Nor are a convolution's products with the
zeros around the image. A tokenizer's are counted in its traced program, the others by formula.

Legend: B batch rows, N image tokens, T text tokens, L latents, S sampling steps.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax.layers.lora import is_adapter
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.models.parameter_shapes import parameter_shapes
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig
from synth2_jax.planning.hlo import products_along
from synth2_jax.sampling.guidance import GuidanceConfig, guidance_scales
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.training.objectives import (
    GeneratorObjective,
    LanguageModelObjective,
    VLMObjective,
)
from synth2_jax.training.tasks import GeneratorTask, LanguageModelTask, VLMTask
from synth2_jax.training.train_state import split_params

_OBJECTIVES: Mapping[type, Any] = {
    GeneratorTask: GeneratorObjective,
    VLMTask: VLMObjective,
    LanguageModelTask: LanguageModelObjective,
}


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one batch."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.forward * times, self.backward * times)


def train_step(task: object, batch_size: int) -> Flops | None:
    """Counts one training step of a task's model; None where there is no formula.

    There is none of a tokenizer, and none where `model.freeze` leaves less than a whole part, or a
    part that is never pretrained.
    """
    if getattr(task, "freeze", None) and not _freezes_whole_parts(task):
        return None
    match task:
        case GeneratorTask():
            return _generator(task, batch_size)
        case VLMTask():
            total = _vlm(task, batch_size)
            if task.image_space == "pixel":
                num_images = batch_size * task.images_per_text
                total += decode_images(task.tokenizer, num_images)
                total += encode_images(task.tokenizer, num_images)
            return total
        case LanguageModelTask():
            return _language_model(task.language_model, batch_size, task.text_length, trained=True)
    return None


def _freezes_whole_parts(task: Any) -> bool:
    if type(task) not in _OBJECTIVES:
        return False
    objective = _OBJECTIVES[type(task)](task)
    _, frozen = split_params(objective.boxed_shapes, objective.frozen)
    parts = [part.path for name, part in objective.parts.items() if objective.is_frozen(name)]
    return all(path.startswith(tuple(f"{part}/" for part in parts)) for path in frozen)


def sample(
    task: GeneratorTask, batch_size: int, sampler: ParallelDecodeConfig, guidance: GuidanceConfig
) -> Flops:
    """Counts sampling of `batch_size` images: captions once, the transformer at each of S steps.

    A guided step costs two rows an image.
    """
    guided_steps = int((guidance_scales(guidance, sampler.num_steps) != 0).sum())
    text_rows = batch_size * (2 if guided_steps else 1)
    once = _text_encoder(task, batch_size) + _code_features(task)
    once += _caption_keys_values(task, text_rows)
    steps = _maskgit(task, batch_size) * (sampler.num_steps + guided_steps)
    return Flops((once + steps).forward)


def encode_images(config: VQTokenizerConfig, batch_size: int) -> Flops:
    """Counts encoding of `batch_size` images: the encoder, and the distances to all codes."""
    return _of_tokenizer(config, "encode") * batch_size


def decode_images(config: VQTokenizerConfig, batch_size: int) -> Flops:
    """Counts decoding of `batch_size` images from their ids."""
    return _of_tokenizer(config, "decode") * batch_size


def caption(
    config: VLMConfig, batch_size: int, prompt_length: int, decode: TextDecodeConfig
) -> Flops:
    """Counts `batch_size` captions that all have `decode.max_length` tokens.

    What is read of the image once, the prompt in one go, then a token of every beam at a time, each
    against the whole cache; of the prompt only the last input's logits, for the first token.
    """
    lm = config.language_model
    rows = batch_size * (decode.num_beams if decode.method == "beam" else 1)
    num_keys = prompt_length + decode.max_length
    once = _resampler(config, batch_size) + _image_keys_values(config, batch_size)
    once += _gated_cross_attention(config, batch_size, prompt_length + 1)
    once += _decoder(lm, batch_size, prompt_length + 1, num_keys, trained=False)
    token = _gated_cross_attention(config, rows, 1)
    token += _decoder(lm, rows, 1, num_keys, trained=False) + _head(lm, rows, trained=False)
    steps = token * (decode.max_length - 1)
    return Flops((once + _head(lm, batch_size, trained=False) + steps).forward)


def _generator(task: GeneratorTask, batch: int) -> Flops:
    total = Flops() if task.stored_text_features else _text_encoder(task, batch)
    total += _caption_keys_values(task, batch)
    return total + _code_features(task) + _maskgit(task, batch)


def _text_encoder(task: GeneratorTask, batch: int) -> Flops:
    config, length = task.generator.text_encoder, task.text_length
    trained = _trains_text_encoder(task)
    inner = config.num_heads * config.head_dim
    mlp = (3 if config.gated_mlp else 2) * config.embed_dim * config.mlp_dim
    weights = 4 * config.embed_dim * inner + mlp
    layer = _matrix(batch * length, weights, trained=trained, input_grad=trained)
    layer += _attention(batch, length, length, inner, input_grad=trained)
    return layer * config.num_layers


def _trains_text_encoder(task: GeneratorTask) -> bool:
    frozen = GeneratorObjective(task).is_frozen("text_encoder")
    return not (task.stored_text_features or frozen)


def _caption_keys_values(task: GeneratorTask, batch: int) -> Flops:
    """The projection of the caption's features, and every layer's keys and values of them."""
    config, text_width = task.generator.maskgit, task.generator.text_encoder.embed_dim
    inner = config.num_heads * config.head_dim
    tokens = batch * task.text_length
    trained = _trains_text_encoder(task)
    projection = _matrix(tokens, text_width * config.embed_dim, input_grad=trained)
    return projection + _matrix(tokens, 2 * config.embed_dim * inner) * config.num_layers


def _maskgit(task: GeneratorTask, batch: int) -> Flops:
    config = task.generator.maskgit
    inner, width = config.num_heads * config.head_dim, config.embed_dim
    tokens = batch * config.num_tokens
    layer = _matrix(tokens, 6 * width * inner + 2 * width * config.mlp_dim)
    layer += _attention(batch, config.num_tokens, config.num_tokens, inner)
    layer += _attention(batch, config.num_tokens, task.text_length, inner)
    total = layer * config.num_layers + _matrix(tokens, width * config.codebook_size)
    if config.token_embedding == "codebook":
        channels = task.tokenizer.embedding_dim  # of the codes, which are frozen
        total += _matrix(tokens, channels * width, input_grad=False)
    return total


def _code_features(task: GeneratorTask) -> Flops:
    """The head's vectors, where they are computed from the codes; they depend on no image."""
    config, channels = task.generator.maskgit, task.tokenizer.embedding_dim
    if config.token_embedding != "codebook":
        return Flops()
    hidden = _matrix(config.codebook_size, channels * config.mlp_dim, input_grad=False)
    return hidden + _matrix(config.codebook_size, config.mlp_dim * config.embed_dim)


def _vlm(task: VLMTask, batch: int) -> Flops:
    config, length, num_images = task.vlm, task.row_length, batch * task.images_per_text
    total = _resampler(config, num_images) + _image_keys_values(config, num_images)
    total += _gated_cross_attention(config, batch, length, task.images_per_text)
    trained = not VLMObjective(task).is_frozen("language_model")
    total += _language_model(config.language_model, batch, length, trained=trained)
    return total + _adapters(config, batch * length)


def _adapters(config: VLMConfig, tokens: int) -> Flops:
    """The products with A and B of LoRA; those with the frozen matrices are counted before."""
    if config.lora is None:
        return Flops()
    image = (1, config.num_image_tokens, config.image_embedding_dim), jnp.float32
    shapes = parameter_shapes(VLM(config), image, ((1, 1), jnp.int32), deterministic=True)
    weights = (math.prod(leaf.shape) for path, leaf in shapes.items() if is_adapter(path))
    return _matrix(tokens, sum(weights))


def _image_keys_values(config: VLMConfig, batch: int) -> Flops:
    """Every cross-attention block's keys and values of the latents."""
    lm, resampler = config.language_model, config.resampler
    weights = 2 * resampler.embed_dim * lm.num_heads * lm.head_dim
    num_blocks = lm.num_layers // config.cross_attention_every
    return _matrix(batch * resampler.num_latents, weights) * num_blocks


def _gated_cross_attention(
    config: VLMConfig, batch: int, length: int, images_per_text: int = 1
) -> Flops:
    """All blocks, without the image's keys and values."""
    lm = config.language_model
    inner, width = lm.num_heads * lm.head_dim, lm.embed_dim
    block = _matrix(batch * length, 2 * width * inner + 2 * width * lm.mlp_dim)
    block += _attention(batch, length, images_per_text * config.resampler.num_latents, inner)
    return block * (lm.num_layers // config.cross_attention_every)


def _resampler(vlm: VLMConfig, batch: int) -> Flops:
    config, num_tokens = vlm.resampler, vlm.num_image_tokens
    inner, width, latents = config.num_heads * config.head_dim, config.embed_dim, config.num_latents
    layer = _matrix(batch * latents, 2 * width * inner + 2 * width * config.mlp_dim)
    layer += _matrix(batch * (num_tokens + latents), 2 * width * inner)
    layer += _attention(batch, latents, num_tokens + latents, inner)
    projection = _matrix(batch * num_tokens, vlm.image_embedding_dim * width, input_grad=False)
    return projection + layer * config.num_layers


def _language_model(
    config: LanguageModelConfig, batch: int, length: int, *, trained: bool
) -> Flops:
    """A frozen one passes the gradient on to the cross-attention between its layers."""
    layers = _decoder(config, batch, length, length, trained=trained)
    return layers + _head(config, batch * length, trained=trained)


def _decoder(
    config: LanguageModelConfig, batch: int, length: int, num_keys: int, *, trained: bool
) -> Flops:
    """The layers, on `length` tokens that see `num_keys`."""
    inner, width = config.num_heads * config.head_dim, config.embed_dim
    attention = 2 * width * (inner + config.num_kv_heads * config.head_dim)
    layer = _matrix(batch * length, attention + 3 * width * config.mlp_dim, trained=trained)
    layer += _attention(batch, length, num_keys, inner)
    return layer * config.num_layers


def _head(config: LanguageModelConfig, tokens: int, *, trained: bool) -> Flops:
    return _matrix(tokens, config.embed_dim * config.vocab_size, trained=trained)


def _matrix(tokens: int, weights: int, *, trained: bool = True, input_grad: bool = True) -> Flops:
    """`tokens` vectors times matrices of `weights` entries in all."""
    forward = 2.0 * tokens * weights
    return Flops(forward, forward * (trained + input_grad))


def _attention(
    batch: int, queries: int, keys: int, width: int, *, input_grad: bool = True
) -> Flops:
    """Logits and weighted sums; `width` is that of all heads."""
    forward = 4.0 * batch * queries * keys * width
    return Flops(forward, 2 * forward * input_grad)


@functools.cache
def _of_tokenizer(config: VQTokenizerConfig, method: str) -> Flops:
    """Forward, of one image: what the tokenizer's program asks for before it is compiled."""
    model = VQTokenizer(config)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, config.num_tokens), jnp.int32)
    init = functools.partial(model.init, deterministic=True)
    variables = nn.unbox(jax.eval_shape(init, jax.random.key(0), image))
    apply = jax.make_jaxpr(functools.partial(model.apply, method=method))
    return Flops(_products(apply(variables, image if method == "encode" else ids).jaxpr))


def _products(jaxpr: Any) -> float:
    total = 0.0
    for line in jaxpr.eqns:
        params, shapes = line.params, [value.aval.shape for value in (*line.invars, *line.outvars)]
        if line.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
        elif line.primitive.name == "conv_general_dilated":
            total += _convolution(params, *shapes)
        for value in params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += _products(inside) * params.get("length", 1)  # the rounds of a scan
    return total


def _convolution(
    params: Mapping[str, Any], x: Sequence[int], kernel: Sequence[int], y: Sequence[int]
) -> float:
    """2 H_out W_out k^2 C_in C_out an image, less what falls on the padding."""
    left, right, out = params["dimension_numbers"]  # batch or C_out, C, then the places
    windows = (params[n] for n in ("window_strides", "padding", "lhs_dilation", "rhs_dilation"))
    products = 2.0 * x[left[0]] * kernel[right[0]] * kernel[right[1]]
    for axis, (stride, (low, _), base, dilation) in enumerate(zip(*windows, strict=True), start=2):
        sizes = x[left[axis]], kernel[right[axis]], y[out[axis]]
        products *= products_along(*sizes, stride, low, base, dilation)
    return products
