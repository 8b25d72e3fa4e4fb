"""Losses of the VQ-GAN tokenizer and of its discriminator.

Every loss is (sum over images, number of images) in float32; sums of different hosts add up.

Legend: B batch, H W pixels, D channels, h w the discriminator's map, N image tokens, C codebook
width, K codebook size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from synth2_jax.config import check_choices, check_counts
from synth2_jax.errors import UserError
from synth2_jax.losses.perceptual import perceptual_distance
from synth2_jax.models.quantizer import codebook_statistics, count_codes

Loss = tuple[jax.Array, jax.Array]

RECONSTRUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"l1": jnp.abs, "l2": jnp.square}


@dataclasses.dataclass(frozen=True)
class VQLossConfig:
    """Weights of the tokenizer's losses; a term of weight 0 is not computed.

    MaskGIT's own: l2, commitment 0.25, entropy 0.1 at temperature 0.01, perceptual 0.1, adversarial
    0.1, R1 10. Its pixels are in [0, 1], ours in [-1, 1], so two weights differ for the same
    balance: our l2 is 4 times as large (`reconstruction_weight` 0.25), our squared gradient by
    pixels a quarter (`r1_weight` 40). The other terms do not depend on the range. The defaults
    leave out what needs a second network.

    Attributes:
      reconstruction: "l2" or "l1", of pixels in [-1, 1].
      reconstruction_weight: weight of its mean over pixels and channels.
      codebook_weight: weight of the loss that pulls codes to the encoder's outputs.
      commitment_weight: weight of the loss that pulls the encoder's outputs to the codes.
      entropy_weight: weight of the loss for decided images over a widely used codebook.
      entropy_temperature: divides the distances before their softmax.
      perceptual_weight: above 0 it needs VGG-16, `model.perceptual` and `pretrained.perceptual` of
        a training config.
      adversarial_weight: weight of the tokenizer's non-saturating loss; above 0 it needs a
        discriminator.
      adversarial_start: the first step of the tokenizer's and the discriminator's adversarial
        losses, 0 before it.
      r1_weight: weight of the discriminator's gradient penalty on real images (pixels in [-1, 1]).
    """

    reconstruction: Literal["l2", "l1"] = "l2"
    reconstruction_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    r1_weight: float = 0.0

    def __post_init__(self):
        check_choices(self, reconstruction=RECONSTRUCTIONS)
        names = [field.name for field in dataclasses.fields(self)]
        check_counts(self, *[name for name in names if name.endswith("_weight")], least=0)
        if self.entropy_temperature <= 0:
            raise UserError(
                f"entropy_temperature: found {self.entropy_temperature}, expected more than 0"
            )
        if self.r1_weight > 0 and self.adversarial_weight == 0:
            raise UserError("r1_weight: found above 0, expected 0 where `adversarial_weight` is 0")


def vq_loss(
    image_BHWD: jax.Array,
    reconstruction_BHWD: jax.Array,
    intermediates: dict[str, jax.Array],
    step: jax.Array | int,
    config: VQLossConfig,
    *,
    discriminator: Callable[[Any, jax.Array], jax.Array] | None = None,
    discriminator_params: Any = None,
    features: Callable[[jax.Array], Any] | None = None,
) -> dict[str, Loss]:
    """All losses and metrics of one batch.

    "loss" is the weighted sum of every term, the discriminator's included. The tokenizer's part
    sees `stop_gradient(discriminator_params)` and the discriminator's `stop_gradient(images)`, so

        grads = jax.grad(loss)({"tokenizer": ..., "discriminator": ...})

    holds each network's gradient of its own objective, and one optimizer update serves both.

    Also unweighted: `reconstruction, codebook, commitment` and, where their weights are above 0,
    `entropy, perceptual, adversarial, discriminator, r1, logits_real, logits_fake`; and
    `perplexity` and `codes_used` of the batch.

    Args:
      image_BHWD: f32 in [-1, 1].
      reconstruction_BHWD, intermediates: `VQTokenizer.__call__`'s.
      step: of training, i32[]; decides whether the adversarial terms have started.
      discriminator: (params, image) -> f32[B,h,w] logits; UserError if a weight needs it.
      features: of `perceptual_distance`; UserError if a weight needs them.
    """
    encoded_BNC, codes_BNC = intermediates["encoded_BNC"], intermediates["codes_BNC"]
    losses = {
        "reconstruction": reconstruction_loss(
            image_BHWD, reconstruction_BHWD, config.reconstruction
        ),
        # VQ-VAE, equation 3: the first moves codes only, the second the encoder only.
        "codebook": _per_image((codes_BNC - jax.lax.stop_gradient(encoded_BNC)) ** 2),
        "commitment": _per_image((encoded_BNC - jax.lax.stop_gradient(codes_BNC)) ** 2),
    }
    if config.entropy_weight > 0:
        losses["entropy"] = entropy_loss(intermediates["distances_BNK"], config.entropy_temperature)
    if config.perceptual_weight > 0:
        if features is None:
            raise UserError("perceptual_weight: found above 0 without a features function")
        losses["perceptual"] = perceptual_distance(features, image_BHWD, reconstruction_BHWD)
    if config.adversarial_weight > 0:
        if discriminator is None:
            raise UserError("adversarial_weight: found above 0 without a discriminator")
        real_and_fake = image_BHWD, reconstruction_BHWD
        losses |= _adversarial_losses(
            discriminator, discriminator_params, *real_and_fake, step, config
        )
    metrics = ("logits_real", "logits_fake")
    weights = {
        name: getattr(config, f"{name}_weight", 1.0) for name in losses if name not in metrics
    }
    total = sum(weight * losses[name][0] for name, weight in weights.items())
    counts_K = count_codes(intermediates["ids_BN"], intermediates["distances_BNK"].shape[-1])
    one = jnp.float32(1.0)
    statistics = {name: (value, one) for name, value in codebook_statistics(counts_K).items()}
    return {"loss": (total, jnp.float32(image_BHWD.shape[0])), **losses, **statistics}


def reconstruction_loss(
    image_BHWD: jax.Array, reconstruction_BHWD: jax.Array, kind: str = "l2"
) -> Loss:
    """Squared ("l2") or absolute ("l1") error, a mean over pixels and channels of each image."""
    difference = reconstruction_BHWD.astype(jnp.float32) - image_BHWD.astype(jnp.float32)
    return _per_image(RECONSTRUCTIONS[kind](difference))


def entropy_loss(distances_BNK: jax.Array, temperature: float) -> Loss:
    """Mean entropy of each token's soft choice minus the entropy of the mean choice.

    As in MaskGIT's code: low when each token is decided and the batch uses the codebook evenly. The
    value belongs to the batch; it is returned times B over B to add up like the other terms.
    """
    num_images, _, codebook_size = distances_BNK.shape
    logits_MK = -distances_BNK.astype(jnp.float32).reshape(-1, codebook_size) / temperature
    log_probs_MK = jax.nn.log_softmax(logits_MK)
    probs_MK = jnp.exp(log_probs_MK)
    token_entropy = -jnp.mean(jnp.sum(probs_MK * log_probs_MK, axis=-1))
    mean_K = jnp.mean(probs_MK, axis=0)
    batch_entropy = -jnp.sum(mean_K * jnp.log(mean_K + 1e-5))
    count = jnp.float32(num_images)
    return (token_entropy - batch_entropy) * count, count


def r1_penalty(discriminate: Callable[[jax.Array], jax.Array], image_BHWD: jax.Array) -> Loss:
    """Squared norm of the gradient, by each real image, of its mean logit (Mescheder et al. 2018).

    MaskGIT's form, without the factor 1/2; the mean over the map makes one weight serve any map.
    In `discriminate`, f32[B,H,W,3] -> logits f32[B,h,w], images do not influence each other.
    """

    def total_logit(image_BHWD: jax.Array) -> jax.Array:
        return jnp.sum(jnp.mean(discriminate(image_BHWD), axis=(1, 2)))

    gradient_BHWD = jax.grad(total_logit)(image_BHWD.astype(jnp.float32))
    return jnp.sum(gradient_BHWD**2), jnp.float32(image_BHWD.shape[0])


def _adversarial_losses(
    discriminator: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    real_BHWD: jax.Array,
    fake_BHWD: jax.Array,
    step: jax.Array | int,
    config: VQLossConfig,
) -> dict[str, Loss]:
    """Both sides' non-saturating losses (Goodfellow et al. 2014)."""
    started = (jnp.asarray(step) >= config.adversarial_start).astype(jnp.float32)

    def gated(loss: Loss) -> Loss:
        return started * loss[0], loss[1]

    # One batch of real and fake for the discriminator, and a pass of its own for the tokenizer,
    # whose gradient goes through the discriminator but stays out of its parameters.
    real_and_fake = jnp.concatenate([real_BHWD, jax.lax.stop_gradient(fake_BHWD)])
    real_Bhw, fake_Bhw = jnp.split(discriminator(params, real_and_fake), 2)
    fooled_Bhw = discriminator(jax.lax.stop_gradient(params), fake_BHWD)
    losses = {
        "adversarial": gated(_per_image(jax.nn.softplus(-fooled_Bhw))),
        "discriminator": gated(_per_image(jax.nn.softplus(-real_Bhw) + jax.nn.softplus(fake_Bhw))),
        "logits_real": _per_image(jax.lax.stop_gradient(real_Bhw)),
        "logits_fake": _per_image(jax.lax.stop_gradient(fake_Bhw)),
    }
    if config.r1_weight > 0:
        real_BHWD = jax.lax.stop_gradient(real_BHWD)
        losses["r1"] = gated(r1_penalty(lambda image: discriminator(params, image), real_BHWD))
    return losses


def _per_image(x: jax.Array) -> Loss:
    """Means over all axes but the first, as (sum over images, number of images)."""
    means_B = jnp.mean(x.astype(jnp.float32).reshape(x.shape[0], -1), axis=-1)
    return jnp.sum(means_B), jnp.float32(x.shape[0])
