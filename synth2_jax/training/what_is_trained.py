"""One line that says which parameters a run trains."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from synth2_jax.layers.lora import is_adapter
from synth2_jax.training import train_state

_SHOWN = 4


def what_is_trained(
    params: Mapping[str, Any], frozen: Sequence[str], groups: Mapping[str, str]
) -> str:
    """Returns "training 1.2M of 3.4M parameters: PART 1M, PART 0.2M (LoRA); group ...".

    `groups` has the words for the group of each parameter that is in one, by path.
    """
    trained, left = train_state.split_params(params, frozen)
    parts, of_groups = collections.Counter(), collections.Counter()
    for path, leaf in trained.items():
        name = "/".join(path.split("/")[:2]) + " (LoRA)" * is_adapter(path)
        parts[name] += math.prod(leaf.shape)
        of_groups[groups.get(path)] += math.prod(leaf.shape)
    sizes = [f"{name} {short(size)}" for name, size in parts.most_common(_SHOWN)]
    more = [f"{len(parts) - _SHOWN} more"] * (len(parts) > _SHOWN)
    count = sum(parts.values())
    total = count + sum(math.prod(leaf.shape) for leaf in left.values())
    line = f"training {short(count)} of {short(total)} parameters: {', '.join(sizes + more)}"
    words = (f"; group {name}: {short(size)}" for name, size in of_groups.items() if name)
    return line + "".join(words)


def short(number: int) -> str:
    """Returns a number of parameters in three digits, such as "1.23M"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
