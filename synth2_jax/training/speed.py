"""Steps a second of several objectives, measured side by side on the same batch."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from synth2_jax import sharding
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import Optimizer
from synth2_jax.training.train_state import Objective
from synth2_jax.training.train_step import make_train_step


def interleaved_seconds(
    runs: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, float]:
    """Median wall time of each run, whose result is waited for; a first call is not counted.

    A round calls each in turn, so that all meet the same noise.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def steps_per_second(
    objectives: Mapping[str, Objective],
    tx: Optimizer,
    batch: Mapping[str, np.ndarray],
    *,
    rounds: int = 10,
    steps_per_round: int = 3,
) -> dict[str, float]:
    """The median over rounds; a round runs each objective in turn.

    Only ratios between the entries mean something on a machine that others use too.
    """
    mesh = sharding.make_mesh(sharding.MeshConfig())
    placed = sharding.put_batch(batch, mesh)
    steps, states = {}, {}
    for name, objective in objectives.items():
        layout = train_state.state_layout(objective, tx, mesh)
        states[name] = train_state.create_train_state(objective, tx, layout, seed=0)
        steps[name] = jax.jit(make_train_step(objective, tx), donate_argnums=0)

    def run(name: str) -> train_state.TrainState:
        for _ in range(steps_per_round):
            states[name], _ = steps[name](states[name], placed)
        return states[name]

    runs = {name: functools.partial(run, name) for name in objectives}
    seconds = interleaved_seconds(runs, rounds=rounds)
    return {name: steps_per_round / taken for name, taken in seconds.items()}
