"""Steps a second of several objectives, measured side by side on the same batch."""

import statistics
import time
from collections.abc import Mapping

import jax
import numpy as np

from synth2_jax import sharding
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import Optimizer
from synth2_jax.training.train_state import Objective
from synth2_jax.training.train_step import make_train_step


def steps_per_second(
    objectives: Mapping[str, Objective],
    tx: Optimizer,
    batch: Mapping[str, np.ndarray],
    *,
    rounds: int = 10,
    steps_per_round: int = 3,
) -> dict[str, float]:
    """The median over rounds; a round runs each objective in turn, so that all meet the same noise.

    Only ratios between the entries mean something on a machine that others use too.
    """
    mesh = sharding.make_mesh(sharding.MeshConfig())
    placed = sharding.put_batch(batch, mesh)
    steps, states = {}, {}
    for name, objective in objectives.items():
        layout = train_state.state_layout(objective, tx, mesh)
        states[name] = train_state.create_train_state(objective, tx, layout, seed=0)
        steps[name] = jax.jit(make_train_step(objective, tx), donate_argnums=0)
        states[name], _ = steps[name](states[name], placed)  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(rounds):
        for name in objectives:
            jax.block_until_ready(states[name])
            start = time.perf_counter()
            for _ in range(steps_per_round):
                states[name], _ = steps[name](states[name], placed)
            jax.block_until_ready(states[name])
            seconds[name].append((time.perf_counter() - start) / steps_per_round)
    return {name: 1 / statistics.median(times) for name, times in seconds.items()}
