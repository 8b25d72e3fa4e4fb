"""The smallest thing that can be trained: it exercises every part of training in milliseconds.

B batch, I inputs, M hidden units, O outputs.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_state import Params, TrainState, create_train_state, state_layout

NUM_INPUTS = 8
NUM_HIDDEN = 16
NUM_OUTPUTS = 4


class ToyModel(nn.Module):
    """Two linear layers, the second with a bias."""

    @nn.compact
    def __call__(self, x_BI: jax.Array) -> jax.Array:
        uniform = nn.initializers.lecun_uniform()
        hidden_BM = nn.Dense(
            NUM_HIDDEN,
            use_bias=False,
            kernel_init=nn.with_logical_partitioning(uniform, ("embed", "mlp")),
            name="encoder",
        )(x_BI)
        return nn.Dense(
            NUM_OUTPUTS,
            kernel_init=nn.with_logical_partitioning(uniform, ("mlp", "vocab")),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
            name="head",
        )(hidden_BM)


class ToyObjective:
    """Regression on noisy inputs, with a running sum of its targets as model_state.

    Args:
      frozen: patterns of parameters that are not trained, such as "^encoder/".
      noise: half width of the uniform noise on the inputs, from the stream "noise".
    """

    def __init__(self, frozen: Sequence[str] = (), noise: float = 0.1):
        self.frozen = tuple(frozen)
        self._noise = noise
        self._model = ToyModel()

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = self._model.init(key, jnp.zeros((1, NUM_INPUTS)))["params"]
        return {"params": params, "usage": {"target_sum": jnp.zeros(NUM_OUTPUTS)}}

    def loss(
        self,
        params: Params,
        batch: Mapping[str, jax.Array],
        rngs: Mapping[str, jax.Array],
        step: jax.Array,
        *,
        train: bool,
    ) -> tuple[dict[str, tuple[jax.Array, jax.Array]], dict[str, Any]]:
        del step
        x_BI, y_BO = batch["x"], batch["y"]
        if train:
            width = self._noise
            noise_BI = jax.random.uniform(rngs["noise"], x_BI.shape, minval=-width, maxval=width)
            x_BI = x_BI + noise_BI
        error_BO = self._model.apply({"params": params}, x_BI) - y_BO
        metrics = {"loss": (jnp.sum(error_BO**2), jnp.float32(y_BO.size))}
        return metrics, {"target_sum": jnp.sum(y_BO, axis=0)}

    def after_update(
        self, params: Params, model_state: dict[str, Any], seen: dict[str, Any], rng: jax.Array
    ) -> tuple[Params, dict[str, Any]]:
        del rng
        target_sum = model_state["usage"]["target_sum"] + jnp.sum(seen["target_sum"], axis=0)
        return params, {"usage": {"target_sum": target_sum}}

    def loaded_state(self, model_state: dict[str, Any], loaded: Set[str]) -> dict[str, Any]:
        del loaded
        return model_state

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "x": jax.ShapeDtypeStruct((batch_size, NUM_INPUTS), jnp.float32),
            "y": jax.ShapeDtypeStruct((batch_size, NUM_OUTPUTS), jnp.float32),
        }


def toy_state(
    toy: Any = None, optimizer: str = "adamw", seed: int = 1, **options: Any
) -> tuple[TrainState, TrainState]:
    """Returns (layout, state) of a new run on one device; options go to `create_train_state`."""
    toy = toy or ToyObjective()
    tx = make_optimizer(OptimizerConfig(name=optimizer))
    layout = state_layout(toy, tx, one_device_mesh())
    return layout, create_train_state(toy, tx, layout, seed, **options)


def one_device_mesh() -> Mesh:
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
