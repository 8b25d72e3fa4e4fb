"""The training step of `synth2 train` without the loop around it, as benchmarks run it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.stages import train
from synth2_jax.training.metrics import Metrics
from synth2_jax.training.optimizer import Optimizer, OptimizerConfig, make_optimizer
from synth2_jax.training.train_state import Objective, create_train_state, state_layout
from synth2_jax.training.train_step import check_batch, compile_train_step


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained, by what, where, and in how many microbatches a step."""

    objective: Objective
    tx: Optimizer
    mesh: jax.sharding.Mesh
    microbatches: int = 1


def training_of(config: Any) -> Training:
    """Of a config of `synth2 train`, on all devices of this process."""
    optimizer = config_lib.build(OptimizerConfig, config.optimizer, "--config.optimizer")
    return Training(
        train.build(config)[1],
        make_optimizer(optimizer, config.train.steps),
        sharding.make_mesh(sharding.MeshConfig()),
        config.train.get("microbatches", 1),
    )


def random_params(objective: Objective) -> Any:
    """Parameters as a training begins with: speed does not depend on them."""
    return jax.jit(lambda key: nn.unbox(objective.init(key)["params"]))(jax.random.key(0))


class BareSteps:
    """Steps on one batch. A step takes its state's memory, so `state` goes from run to run."""

    def __init__(self, training: Training, batch: Mapping[str, np.ndarray]):
        objective, tx, mesh = training.objective, training.tx, training.mesh
        check_batch(batch, objective, mesh, training.microbatches)
        self.layout = state_layout(objective, tx, mesh)
        self.state = create_train_state(objective, tx, self.layout, seed=0)
        self._step = compile_train_step(
            objective, tx, self.layout, mesh, microbatches=training.microbatches
        )
        self._batch = sharding.put_batch(batch, mesh)

    def run(self, steps: int) -> Metrics:
        """The last step's metrics; nobody has waited for them."""
        for _ in range(steps):
            self.state, metrics = self._step(self.state, self._batch)
        return metrics
