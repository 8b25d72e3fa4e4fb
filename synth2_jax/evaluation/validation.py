"""Evaluation during training: losses on held-out data, and a VLM's scores on its captions.

With `train.ema_decay` it is the moving average of the parameters that is measured: what later
stages take.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import pipeline
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError, in_section
from synth2_jax.evaluation.scorer import CaptionScorer, EvaluateConfig
from synth2_jax.training import metrics as metrics_lib
from synth2_jax.training.train_state import Objective, TrainState
from synth2_jax.training.train_step import check_batch, step_rngs


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Settings of the evaluation at each `train.eval_every`.

    Attributes:
      data: for the losses on held-out data; None for none.
      num_batches: of it.
      captions: for a VLM's CIDEr on images with references; None for none.
    """

    data: DataConfig | None = None
    num_batches: int = 4
    captions: EvaluateConfig | None = None

    def __post_init__(self):
        config_lib.check_counts(self, "num_batches")


class Validator:
    """Measures a state in training.

    A mistake in its sections is a UserError when it is made: before training. `text_encoder` made
    the stored features of the captions; None without any.
    """

    def __init__(
        self,
        cfg: ValidationConfig,
        objective: Objective,
        trained_on: DataConfig,
        built_on: Mapping[str, str],
        text_encoder: Mapping[str, Any] | None,
        mesh: Mesh,
        rules: sharding.AxisRules,
    ):
        self._cfg, self._mesh = cfg, mesh
        self._held_out = functools.partial(
            *(pipeline.eval_batches, cfg.data, objective.batches),
            tokenizer_fingerprint=built_on.get("tokenizer"),
            text_encoder=text_encoder,
            limits=objective.limits,
            layout=sharding.data_layout(mesh),
        )

        @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
        def losses(state: TrainState, batch, number):
            rngs = step_rngs(state.rng, number)  # each batch has its own masks, the same each time
            with sharding.constraints(mesh, rules):
                params = state.averaged_params()
                return objective.loss(params, batch, rngs, state.step, train=False)[0]

        self._losses, self._scorer = losses, None
        if cfg.captions:
            with in_section("validation.captions"):
                self._scorer = CaptionScorer(
                    objective, cfg.captions, trained_on, built_on.get("tokenizer", ""), mesh, rules
                )
        if cfg.data:
            key, size = "--config.validation.data", cfg.data.batch_size * cfg.data.images_per_text
            with in_section("validation"):
                first = next(self._full_batches(), None)
            if first is None:
                raise UserError(f"{key}: fewer examples than the {size} of one batch")
            check_batch(first, objective, mesh, where=key)

    def _full_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Up to `num_batches`, and none that any process only fills up: its filling would count."""
        for batch in itertools.islice(self._held_out(), self._cfg.num_batches):
            if not sharding.over_devices(jnp.all, np.bool_(batch.pop("valid").all())):
                return
            yield batch

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Scalars by name, "validation/loss" and others."""
        scalars, merged = {}, {}
        if self._cfg.data:
            with in_section("validation"):
                for number, batch in enumerate(self._full_batches()):
                    batch = sharding.put_batch(batch, self._mesh)
                    found = self._losses(state, batch, np.int32(number))
                    merged = metrics_lib.merge(merged, found) if merged else found
            scalars |= metrics_lib.to_scalars(merged)
        if self._scorer:
            with in_section("validation.captions"):
                scalars |= self._scorer.scores(state.averaged_params())
        return {f"validation/{name}": value for name, value in scalars.items()}
