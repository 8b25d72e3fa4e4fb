"""Fingerprints: whether two models, or parts of them, are the same, in 16 hex digits.

A tokenizer's is followed by its settings that no parameter shows, where they are not the defaults:
"0123456789abcdef+code_choice=dot_product".
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

_PART_BYTES = 2**28
# Settings of a tokenizer that change which tokens the same parameters make; the later ones were
# added by a later version. A new one needs a default that changes nothing: fingerprints are stored
# with pairs and checkpoints.
_LATER_SETTINGS = ("activation", "norm_groups", "l2_normalize_codes")
_SETTINGS = ("code_choice", "pixel_range", *_LATER_SETTINGS)


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns 16 hex digits of a sha256 over a tree: sorted paths, dtypes, shapes and bytes.

    It does not depend on the mesh. With several processes all must call it.
    """
    return fingerprint_arrays(sorted(traverse_util.flatten_dict(params, sep="/").items()))


def fingerprint_arrays(arrays: Iterable[tuple[str, Any]]) -> str:
    """Returns the `fingerprint` of (path, array) by rising path; needs one array at a time."""
    digest = hashlib.sha256()
    for path, leaf in arrays:
        digest.update(f"{path} {np.dtype(leaf.dtype).name} {np.shape(leaf)}\n".encode())
        for part in _parts(leaf):
            if isinstance(part, jax.Array) and not part.is_fully_addressable:
                part = multihost_utils.process_allgather(part, tiled=True)
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def with_settings(part: str, digest: str, tokenizer: Any) -> str:
    """Returns the fingerprint of a top-level part of a model, such as "tokenizer" or "vlm".

    `digest` is the `fingerprint` of its parameters, `tokenizer` the model's VQTokenizerConfig (None
    if it has none).
    """
    if part != "tokenizer" or tokenizer is None:
        return digest
    defaults = {field.name: field.default for field in dataclasses.fields(tokenizer)}
    values = {name: getattr(tokenizer, name) for name in _SETTINGS}
    changed = (f"+{name}={value}" for name, value in values.items() if value != defaults[name])
    return digest + "".join(changed).replace(" ", "")  # a command may print it as one word


def by_part(arrays: Iterable[tuple[str, Any]], tokenizer: Any) -> dict[str, str]:
    """Returns the fingerprint of each top-level part, from (path, array) by rising path."""
    found = {}
    for part, inside in itertools.groupby(arrays, lambda item: item[0].partition("/")[0]):
        digest = fingerprint_arrays((path.partition("/")[2], array) for path, array in inside)
        found[part] = with_settings(part, digest, tokenizer)
    return found


def older_forms(found: str) -> tuple[str, str]:
    """Returns a fingerprint as older versions stored it: without later settings; without any."""
    digest, *settings = found.split("+")
    kept = [setting for setting in settings if setting.split("=")[0] not in _LATER_SETTINGS]
    return "+".join([digest, *kept]), digest


def _parts(leaf: Any) -> Iterator[Any]:
    """An array in pieces along its first axis, so that a host need not hold a large one whole."""
    rows = leaf.shape[0] if np.ndim(leaf) else 0
    at_once = max(1, _PART_BYTES * rows // max(1, leaf.nbytes))
    if rows <= at_once:
        yield leaf
    else:
        yield from (leaf[start : start + at_once] for start in range(0, rows, at_once))
