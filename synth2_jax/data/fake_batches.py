"""Random batches in the shapes of an objective, to test speed, sharding and resume without data."""

from collections.abc import Mapping

import jax
import numpy as np

from synth2_jax.sharding import ALL_ROWS, DataLayout


class FakeBatches:
    """An endless iterator of random batches; batch i depends on (seed, i) only.

    Integers are in [2, limit), clear of pad and eos, and those of `image_of_text` in [0, limit).
    Floats are uniform in [-1, 1). Booleans are true half of the time, and always at the start of a
    row, so that each row has a token to learn.

    Args:
      spec: {name: ShapeDtypeStruct} of a whole batch, from `objective.batch_spec(batch_size)`.
      seed: of the batches.
      limits: {name: limit} of the integers, such as the vocabulary size; 16 where missing.
      layout: which rows of each batch this process takes; all processes draw the same batch.
    """

    def __init__(
        self,
        spec: Mapping[str, jax.ShapeDtypeStruct],
        seed: int = 0,
        limits: Mapping[str, int] | None = None,
        layout: DataLayout = ALL_ROWS,
    ):
        self._spec, self._seed, self._index = dict(spec), seed, 0
        self._limits, self._layout = dict(limits or {}), layout

    def __iter__(self) -> "FakeBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self._seed, self._index))
        self._index += 1
        return {name: self._random(rng, name) for name in sorted(self._spec)}

    def get_state(self) -> bytes:
        """Returns the number of batches drawn, in decimal."""
        return str(self._index).encode()

    def set_state(self, state: bytes) -> None:
        """Resumes where `get_state` was called."""
        self._index = int(state)

    def restart(self, state: bytes, step: int) -> str:
        """Resumes with the next batch: batches are the same on any mesh."""
        del step
        self.set_state(state)
        return "resuming the data exactly"

    def _random(self, rng: np.random.Generator, name: str) -> np.ndarray:
        shape, dtype = self._spec[name].shape, np.dtype(self._spec[name].dtype)
        if dtype == np.bool_:
            array = rng.random(shape) < 0.5
            array[..., :1] = True
        elif np.issubdtype(dtype, np.integer):
            limit = self._limits.get(name, 16)
            least = 0 if name == "image_of_text" else min(2, limit - 1)
            array = rng.integers(least, limit, shape, dtype=dtype)
        else:
            array = rng.uniform(-1, 1, shape).astype(dtype)
        return array[self._layout.rows(shape[0])]
