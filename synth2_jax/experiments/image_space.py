"""Compares a VLM's training speed fed from embeddings and fed through pixels."""

from collections.abc import Mapping
from typing import Any

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.speed import steps_per_second


def speed_by_space(
    model: Mapping[str, Any], batch_size: int, *, rounds: int = 10
) -> dict[str, float]:
    """Steps a second, {"embedding", "pixel"}, of the `model` section of a VLM's config."""
    objectives = {
        space: make_objective("vlm", {**model, "image_space": space})
        for space in ("embedding", "pixel")
    }
    embedding = objectives["embedding"]
    limits = {"image_tokens": embedding.task.tokenizer.codebook_size}
    batch = next(FakeBatches(embedding.batch_spec(batch_size), limits=limits))
    return steps_per_second(objectives, make_optimizer(OptimizerConfig()), batch, rounds=rounds)
