"""Fingerprints: whether two models, or parts of them, are the same, in 16 hex digits.

The tokenizer's has the settings behind it that no parameter shows, such as
"0123456789abcdef+code_choice=dot_product", where they are not the defaults.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from synth2_jax.models.vq_tokenizer import VQTokenizerConfig
from synth2_jax.training import train_state
from synth2_jax.training.train_state import Params

_PART_BYTES = 2**28
# They change which tokens the same parameters make. New ones need a default that changes nothing:
# fingerprints are stored with pairs and checkpoints.
_TOKENIZER_SETTINGS = ("code_choice", "pixel_range")


def fingerprint(params: Params) -> str:
    """Returns 16 hex digits of a sha256 over a tree: sorted paths, dtypes, shapes and bytes.

    It does not depend on the mesh. With several processes all must call it.
    """
    return fingerprint_arrays(sorted(train_state.flatten(params).items()))


def fingerprint_arrays(arrays: Iterable[tuple[str, Any]]) -> str:
    """`fingerprint` of (path, array) by rising path, of which one at a time is needed."""
    digest = hashlib.sha256()
    for path, leaf in arrays:
        digest.update(f"{path} {np.dtype(leaf.dtype).name} {np.shape(leaf)}\n".encode())
        for part in _parts(leaf):
            if isinstance(part, jax.Array) and not part.is_fully_addressable:
                part = multihost_utils.process_allgather(part, tiled=True)
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def with_settings(part: str, digest: str, tokenizer: VQTokenizerConfig | None) -> str:
    """Returns the fingerprint of a top-level part of a model's parameters.

    Args:
      part: such as "tokenizer" or "vlm".
      digest: `fingerprint` of its parameters.
      tokenizer: the model's; None without one.
    """
    if part != "tokenizer" or tokenizer is None:
        return digest
    default = VQTokenizerConfig()
    values = {name: getattr(tokenizer, name) for name in _TOKENIZER_SETTINGS}
    changed = {name: value for name, value in values.items() if value != getattr(default, name)}
    # Without spaces: a command may print it as one word.
    settings = (f"+{name}={value}".replace(" ", "") for name, value in changed.items())
    return "".join([digest, *settings])


def of_parameters(found: str) -> str:
    """Returns a fingerprint without the settings, as versions before them stored it."""
    return found.partition("+")[0]


def _parts(leaf: Any) -> Iterator[Any]:
    """An array in pieces along its first axis, so that a host need not hold a large one whole."""
    rows = leaf.shape[0] if np.ndim(leaf) else 0
    at_once = max(1, _PART_BYTES * rows // max(1, leaf.nbytes))
    if rows <= at_once:
        yield leaf
    else:
        yield from (leaf[start : start + at_once] for start in range(0, rows, at_once))
