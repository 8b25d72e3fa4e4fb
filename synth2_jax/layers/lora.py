"""Low-rank adapters of linear layers (LoRA, Hu et al., arXiv 2106.09685).

An adapted layer computes x W + alpha / rank * (x A) B in the place of x W. B starts at 0, so that a
model starts as it was without adapters. A and B are parameters of the layer beside its W, such as
"query/kernel", "query/kernel_lora_a" and "query/kernel_lora_b".
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError, nearest
from synth2_jax.layers.linear import Linear

RANK = "lora_rank"  # the logical name of an adapter's inner axis
_A, _B = "_lora_a", "_lora_b"
# Queries and values, as in section 4.2; a Gemma has keys and values in one array.
_TARGETS = (r"(attention/(query|value)/kernel|attn/(q|kv|qkv)_einsum/w)$",)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapters of some linear layers.

    Attributes:
      rank: columns of A and rows of B.
      alpha: what the adapters add is multiplied by alpha / rank.
      targets: regular expressions; a matrix with one of them in its path below the language model
        gets an adapter, such as ("attention/", "mlp/") for all matrices of its layers. By default
        those of queries and values.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = _TARGETS

    def __post_init__(self):
        config_lib.check_counts(self, "rank")
        config_lib.check_patterns(self, "targets")
        if self.alpha <= 0:
            raise UserError(f"alpha: found {self.alpha}, expected above 0")
        if not self.targets:
            raise UserError("targets: found (), expected a pattern at least")

    @property
    def scale(self) -> float:
        """The factor of (x A) B."""
        return self.alpha / self.rank

    def check_targets(self, paths: Sequence[str], where: str) -> None:
        """Raises UserError where a pattern gave none of the parameters at `paths` an adapter."""
        adapted = [path.removesuffix(_A) for path in paths if path.endswith(_A)]
        for pattern in self.targets:
            if not any(re.search(pattern, path) for path in adapted):
                kernels = [path for path in paths if not is_adapter(path)]
                raise UserError(
                    f"{where}.targets: {pattern!r} matches no matrix of a linear layer; "
                    f"{nearest(pattern, kernels)}"
                )


def is_adapter(path: str) -> bool:
    """Returns whether a parameter is an A or a B."""
    return path.endswith((_A, _B))


def axes_of_adapters(
    kernels: Mapping[str, Sequence[str | None]], inputs: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str | None, ...]]:
    """Returns the logical names of A and B by path, from those of kernels and of their inputs."""
    found = {}
    for path, own in inputs.items():
        outputs = (name for name in kernels[path] if name not in own)
        found |= {f"{path}{_A}": (*own, RANK), f"{path}{_B}": (RANK, *outputs)}
    return found


def adapted(config: LoRAConfig | None, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Inside, calls of `model`, a bound module, use its adapters, and its init creates them.

    Adapted are `Linear` and the modules that have `shape`, `weight_name` and the call
    `(equation, x)`, as the package gemma has them.
    """
    if config is None:
        return contextlib.nullcontext()

    depth = len(model.path)

    def add(call: Any, args: Any, options: Any, context: Any) -> Any:
        y = call(*args, **options)
        module = context.module
        if context.method_name != "__call__" or not _is_linear(module):
            return y
        weight = getattr(module, "weight_name", "kernel")
        if module.is_initializing():
            root, inside = (module.path[:depth], module.path[depth:])
            path = "/".join((*inside, weight))
            if root != model.path or not any(re.search(one, path) for one in config.targets):
                return y
        # A stack may call its blocks by themselves, where they do not know their place.
        elif not module.has_variable("params", f"{weight}{_A}"):
            return y
        return y + (config.scale * _low_rank(config.rank, module, weight, *args)).astype(y.dtype)

    return nn.intercept_methods(add)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, Linear) or (
        hasattr(module, "weight_name") and hasattr(module, "shape")
    )


def _low_rank(rank: int, module: nn.Module, weight: str, *args: Any) -> jax.Array:
    """(x A) B of one layer; the letters of its equation are those of its axes."""
    if isinstance(module, Linear):
        (x,), num_inputs = args, len(module.names) - len(module.features)
        shape, names = x.shape[-num_inputs:] + module.features, module.names
        letters = "abcdefgh"[: len(names)]
        source, kernel = f"...{letters[:num_inputs]}", letters
        target = f"...{letters[num_inputs:]}"
        x = x.astype(module.dtype)
    else:
        (equation, x), shape, names = args, module.shape, None
        source, kernel, target = re.split(",|->", equation.replace(" ", ""))
    sizes = dict(zip(kernel, shape, strict=True))
    inputs = "".join(letter for letter in kernel if letter in source and letter not in target)
    outputs = "".join(letter for letter in kernel if letter not in inputs)
    hidden = "".join(letter for letter in source if letter not in inputs) + "r"

    def param(name: str, init: Any, spelled: str) -> jax.Array:
        if names is not None:  # others name their axes themselves
            axes = dict(zip(kernel, names, strict=True)) | {"r": RANK}
            init = nn.with_logical_partitioning(init, tuple(axes[letter] for letter in spelled))
        leaf = module.param(name, init, tuple({**sizes, "r": rank}[letter] for letter in spelled))
        return leaf.astype(x.dtype)

    uniform = nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis=tuple(range(len(inputs)))
    )
    a = param(f"{weight}{_A}", uniform, f"{inputs}r")
    b = param(f"{weight}{_B}", nn.initializers.zeros_init(), f"r{outputs}")
    return jnp.einsum(
        f"{hidden},r{outputs}->{target}", jnp.einsum(f"{source},{inputs}r->{hidden}", x, a), b
    )


def adapters_of(path: str, paths: Any) -> tuple[str, str] | None:
    """Returns the paths of a kernel's A and B among `paths`; None without an adapter."""
    pair = f"{path}{_A}", f"{path}{_B}"
    return pair if pair[0] in paths else None


def merge(
    kernel: Any, a: Any, b: Any, names: Sequence[Sequence[str | None]], scale: float
) -> jax.Array:
    """W + scale A B, float32; `names` are the logical axes of the three, of layers too."""
    letters: dict[str | None, str] = {}

    def spelled(axes: Sequence[str | None]) -> str:
        return "".join(letters.setdefault(name, chr(ord("a") + len(letters))) for name in axes)

    to, left, right = (spelled(axes) for axes in names)
    kernel, a, b = (jnp.asarray(leaf) for leaf in (kernel, a, b))
    factors = (leaf.astype(jnp.float32) for leaf in (a, b))
    added = jnp.einsum(f"{left},{right}->{to}", *factors, precision="highest")
    return kernel.astype(jnp.float32) + scale * added
