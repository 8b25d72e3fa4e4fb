"""Images to token ids and back, by a loaded tokenizer."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from synth2_jax.loading.run import Trained
from synth2_jax.progress import Progress
from synth2_jax.sampling.batches import in_batches
from synth2_jax.sampling.pixels import make_decode, make_encode


def encode_images(trained: Trained, images: np.ndarray, batch_size: int, label: str) -> np.ndarray:
    """Returns token ids i32[num, N] of images u8[num, H, W, 3]."""
    return _in_batches(make_encoder(trained), images, batch_size, label)


def make_encoder(trained: Trained) -> Callable[[np.ndarray], jax.Array]:
    """Returns a jitted function, images u8[B,H,W,3] -> token ids i32[B,N]."""
    return _jitted(make_encode, trained)


def decode_images(trained: Trained, ids: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Returns pictures u8[num, H, W, 3] of token ids, by any model with a tokenizer in it."""
    decode = _jitted(make_decode, trained)
    return _in_batches(decode, np.asarray(ids, np.int32), batch_size, "decode")


def _jitted(make: Callable, trained: Trained) -> Callable[[np.ndarray], jax.Array]:
    function = jax.jit(make(trained.objective.task.tokenizer))
    return functools.partial(function, jax.device_put(trained.params["tokenizer"]))


def _in_batches(
    function: Callable[[np.ndarray], jax.Array], rows: np.ndarray, batch_size: int, label: str
) -> np.ndarray:
    parts = []
    with Progress(label, len(rows), "images") as progress:
        for part in in_batches(function, rows, batch_size):
            parts.append(part)
            progress.add(len(part))
    return np.concatenate(parts)
