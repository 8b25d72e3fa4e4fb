"""Programs compiled for a pod: the largest batch that fits, and what they take of a chip."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.planning import dataflow, hlo
from synth2_jax.planning.chips import Chip

# Arguments of what is compiled: of the training step and of the sampler.
_PARAMETERS, _OPTIMIZER = {"state.params", "params"}, "state.opt_state"


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile: its arguments by kind of memory, and its model FLOPs for all chips."""

    lowered: jax.stages.Lowered
    arguments: Mapping[str, float]
    model_flops: float | None

    def memory(self, executable: jax.stages.Compiled) -> dict[str, float]:
        """Bytes of a chip by kind; "total" is what it needs at once."""
        found = executable.memory_analysis()
        known = sum(self.arguments.values())
        kinds = {
            **self.arguments,
            "batch and others": max(0.0, found.argument_size_in_bytes - known),
            "temporaries": float(found.temp_size_in_bytes),
            "outputs": float(found.output_size_in_bytes - found.alias_size_in_bytes),
            "program": float(found.generated_code_size_in_bytes),
        }
        return {**kinds, "total": sum(kinds.values())}


def compile_program(
    program: Program, batch_size: int, chip: Chip, options: Mapping[str, str]
) -> jax.stages.Compiled:
    """Compiles; raises UserError on a program that needs more memory than a chip has."""
    try:
        executable = program.lowered.compile(dict(options))
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if chip.target and "RESOURCE_EXHAUSTED" not in text:  # what it would find by trying it out
            raise UserError(
                f"plan: a batch of {batch_size}: the compiler for GPUs gives up without a card: "
                f"{text:.120}; try another --batch"
            ) from error
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        sizes = re.findall(r"\(?([\d.]+[KMGT])\)?", text)
        needs = f"needs {sizes[0]} where {sizes[1]} is free" if len(sizes) > 1 else text[:200]
        raise _too_large(batch_size, needs) from error
    total = program.memory(executable)["total"]
    if total > chip.usable_bytes:  # the compiler for GPUs does not mind
        needs = f"needs {total / 2**30:.1f}G where {chip.usable_bytes / 2**30:.0f}G is free"
        raise _too_large(batch_size, needs)
    return executable


def _too_large(batch_size: int, needs: str) -> UserError:
    return UserError(
        f"plan: does not fit a chip's memory: a batch of {batch_size} {needs}; less is needed "
        "with a smaller --batch, --config.train.microbatches, --config=FILE:remat, more fsdp "
        "in --mesh, or more chips"
    )


def largest_batch(compiled: Callable[[int], Any], least_rows: int) -> tuple[int, Any]:
    """Doubles the rows of a chip until they do not fit, then halves the gap to an eighth.

    Batch sizes are multiples of `least_rows`; UserError if not even that one fits.
    """
    rows, fits, fails = 1, 0, math.inf
    best = None
    while fails - fits > max(1, fits // 8):
        try:
            best = compiled(rows * least_rows)
            fits = rows
            print(f"batch {rows * least_rows}: fits", flush=True)
        except UserError as error:
            print(f"batch {rows * least_rows}: {error}", flush=True)
            if rows == 1:
                raise
            fails = rows
        rows = 2 * rows if fails == math.inf else (fits + fails) // 2
    return fits * least_rows, best


def bytes_per_chip(tree: Any) -> float:
    """Bytes of arrays with shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def gathered(text: str, cost: hlo.Cost) -> dict[str, float]:
    """Bytes that a chip sends in all-gathers, by what is gathered.

    "parameters" are computed from nothing but the trained or frozen parameters, "optimizer" has
    something of the optimizer's state in it, which no activation has. Of the rest, "ids" are whole
    numbers, and "activations" all others, gradients among them. Where each chip has whole rows
    (data, fsdp) no activation has to be gathered.
    """
    sources = dataflow.sources(text)
    total = dict.fromkeys(("parameters", "optimizer", "ids", "activations"), 0.0)
    for call in cost.calls:
        if call.kind == "all-gather":
            found = frozenset().union(*(sources[operand] for operand in call.line.operands))
            if found <= _PARAMETERS:
                what = "parameters"
            elif _OPTIMIZER in found:
                what = "optimizer"
            else:
                what = "ids" if re.match(r"\(?[su]\d+\[", call.line.shape) else "activations"
            total[what] += call.count * call.num_bytes
    return total
