"""FLOPs of a step by formula: what the model needs, whatever the compiler makes of it.

Counted are products of matrices, 2 FLOPs a multiplication, attention in full (a causal mask saves
nothing here, as it saves nothing in the compiled program). Backward, a trained matrix costs its
forward pass twice, for its own gradient and its input's; a frozen one that a gradient passes
through costs it once, and a frozen one that none passes nothing. Rematerialization is not counted:
it is waste that the ratio to the compiled FLOPs shows.

Legend: B batch rows, N image tokens, T text tokens, L latents, S sampling steps.
"""

import dataclasses

from synth2_jax.errors import UserError
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.models.maskgit import MaskGITConfig
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.training.objectives import (
    GeneratorTask,
    LanguageModelTask,
    VLMTask,
)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one batch."""

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
    """Of one training step of a task's model; None for a tokenizer, for which there is no formula.

    Raises:
      UserError: a VLM in pixel space, whose convolutions have no formula.
    """
    if isinstance(task, GeneratorTask):
        return _generator(task, batch_size)
    if isinstance(task, VLMTask):
        if task.image_space == "pixel":
            raise UserError("config.model.image_space: found 'pixel', expected 'embedding'")
        return _vlm(task, batch_size)
    if isinstance(task, LanguageModelTask):
        return _language_model(task.language_model, batch_size, task.text_length, trained=True)
    return None


def sample(
    task: GeneratorTask, batch_size: int, sampler: ParallelDecodeConfig, guidance: GuidanceConfig
) -> Flops:
    """Of the tokens of `batch_size` images: captions once, the transformer at each of S steps."""
    rows = batch_size * (2 if guidance.scale else 1)
    config, text = task.generator.maskgit, task.generator.text_encoder
    once = _text_encoder(text, batch_size, task.text_length, trained=False)
    once += _caption_keys_values(config, text.embed_dim, rows, task.text_length, input_grad=False)
    once += _code_features(task)
    steps = _maskgit(config, rows, task) * sampler.num_steps
    return Flops((once + steps).forward)


def _generator(task: GeneratorTask, batch: int) -> Flops:
    config, text = task.generator.maskgit, task.generator.text_encoder
    trained = not task.freeze_text_encoder
    total = Flops()
    if not task.stored_text_features:
        total += _text_encoder(text, batch, task.text_length, trained=trained)
    total += _caption_keys_values(
        config, text.embed_dim, batch, task.text_length, input_grad=trained
    )
    return total + _code_features(task) + _maskgit(config, batch, task)


def _text_encoder(config: TextEncoderConfig, batch: int, length: int, *, trained: bool) -> Flops:
    inner = config.num_heads * config.head_dim
    mlp = (3 if config.gated_mlp else 2) * config.embed_dim * config.mlp_dim
    weights = 4 * config.embed_dim * inner + mlp
    layer = _matrix(batch * length, weights, trained=trained, input_grad=trained)
    layer += _attention(batch, length, length, inner, input_grad=trained)
    return layer * config.num_layers


def _caption_keys_values(
    config: MaskGITConfig, text_width: int, batch: int, length: int, *, input_grad: bool
) -> Flops:
    """The projection of the caption's features, and every layer's keys and values of them."""
    inner = config.num_heads * config.head_dim
    tokens = batch * length
    projection = _matrix(tokens, text_width * config.embed_dim, input_grad=input_grad)
    return projection + _matrix(tokens, 2 * config.embed_dim * inner) * config.num_layers


def _maskgit(config: MaskGITConfig, batch: int, task: GeneratorTask) -> Flops:
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
    config, lm = task.vlm, task.vlm.language_model
    length, latents = task.text_length, config.resampler.num_latents
    inner, width = lm.num_heads * lm.head_dim, lm.embed_dim
    gated = _matrix(batch * length, 2 * width * inner + 2 * width * lm.mlp_dim)
    gated += _matrix(batch * latents, 2 * config.resampler.embed_dim * inner)
    gated += _attention(batch, length, latents, inner)
    total = _resampler(config.resampler, batch, config.num_image_tokens, config.image_embedding_dim)
    total += gated * (lm.num_layers // config.cross_attention_every)
    return total + _language_model(lm, batch, length, trained=False)


def _resampler(config: ResamplerConfig, batch: int, num_tokens: int, channels: int) -> Flops:
    inner, width, latents = config.num_heads * config.head_dim, config.embed_dim, config.num_latents
    layer = _matrix(batch * latents, 2 * width * inner + 2 * width * config.mlp_dim)
    layer += _matrix(batch * (num_tokens + latents), 2 * width * inner)
    layer += _attention(batch, latents, num_tokens + latents, inner)
    projection = _matrix(batch * num_tokens, channels * width, input_grad=False)
    return projection + layer * config.num_layers


def _language_model(
    config: LanguageModelConfig, batch: int, length: int, *, trained: bool
) -> Flops:
    """A frozen one passes the gradient on to the cross-attention between its layers."""
    inner, width = config.num_heads * config.head_dim, config.embed_dim
    tokens = batch * length
    attention = 2 * width * (inner + config.num_kv_heads * config.head_dim)
    weights = attention + 3 * width * config.mlp_dim
    layer = _matrix(tokens, weights, trained=trained)
    layer += _attention(batch, length, length, inner)
    head = _matrix(tokens, width * config.vocab_size, trained=trained)
    return layer * config.num_layers + head


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
