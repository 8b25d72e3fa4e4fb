"""FLOPs and bytes of a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, however often it runs: a model of 24 scanned
layers has the FLOPs of one. Here every instruction counts as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from synth2_jax.planning.hlo_bytes import HbmBytes
from synth2_jax.planning.hlo_collectives import (
    Call,
    Collective,
    Group,
    groups_of,
    merged,
)
from synth2_jax.planning.hlo_text import (
    Computations,
    Instruction,
    dims_of,
    elements_of,
    parse,
    root_of,
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run on one chip."""

    flops: float  # of matrix products and convolutions, 2 a multiplication
    hbm_bytes: float  # read and written by instructions, but not in the chip's fast memory
    calls: tuple[Call, ...]  # of collectives
    unknown_loops: int  # loops whose number of rounds cannot be read; they are counted once

    @property
    def collectives(self) -> dict[str, Collective]:
        """The calls by kind."""
        totals: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(3))
        for call in self.calls:
            sent = call.count * call.num_bytes
            totals[call.kind] += (call.count, sent, sent * call.overlapped)
        return {
            kind: Collective(int(count), float(sent), float(overlapped))
            for kind, (count, sent, overlapped) in sorted(totals.items())
        }


def cost(text: str) -> Cost:
    """Returns the cost of a compiled module, `compiled.as_text()`."""
    computations, entry = parse(text)
    memory = HbmBytes(computations)
    flops = hbm_bytes = 0.0
    unknown_loops = 0
    groups: list[Group] = []
    for name, times, is_fused in _runs(computations, entry):
        shapes = {line.name: line.shape for line in computations[name]}
        for line in computations[name]:
            flops += times * _flops(line, shapes)
            unknown_loops += line.opcode == "while" and trip_count(line, computations) is None
            if not is_fused:
                hbm_bytes += times * memory.of(line, shapes)
        if not is_fused:
            groups += groups_of(name, times, computations)
    return Cost(flops, hbm_bytes, tuple(merged(groups)), unknown_loops)


def loops(text: str) -> list[int | None]:
    """Returns the rounds of the entry computation's loops, in order; None if they are unknown."""
    computations, entry = parse(text)
    lines = computations[entry]
    return [trip_count(line, computations) for line in lines if line.opcode == "while"]


def num_instructions(text: str) -> int:
    """Returns how long the program is, however often its parts run."""
    return sum(len(lines) for lines in parse(text)[0].values())


def _runs(computations: Computations, entry: str) -> Iterator[tuple[str, int, bool]]:
    """Yields (computation, times it runs, whether it is part of one instruction) for each call."""
    waiting = [(entry, 1, False)]
    while waiting:
        name, times, is_fused = waiting.pop()
        yield name, times, is_fused
        for line in computations[name]:
            rounds = times
            if line.opcode == "while":
                rounds *= trip_count(line, computations) or 1
            inside = is_fused or not line.is_control
            called = (*line.called, *line.branches)
            waiting += [(other, rounds, inside) for other in called if other in computations]


def trip_count(line: Instruction, computations: Computations) -> int | None:
    """Returns the rounds of a loop that counts from 0 to a constant; None for another.

    JAX's scans count in ones; products that XLA splits to gather as it goes, in twos.
    """
    if known := line.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition, body = (
        {other.name: other for other in computations[line.runs(role)]}
        for role in ("condition", "body")
    )
    compared = [condition.get(name) for name in root_of(condition.values()).operands]
    if [one and one.opcode for one in compared] != ["get-tuple-element", "constant"]:
        return None
    counter, bound = compared
    step = _increment(body, int(counter.attribute(r"index=(\d+)")))
    return math.ceil(int(bound.arguments) / step) if step else None


def _increment(body: dict[str, Instruction], index: int) -> int:
    """Returns what a loop's body adds to element `index` of its state; 0 if it cannot be read."""
    root, total = root_of(body.values()), 0
    if root.opcode != "tuple":
        return 0
    line = body[root.operands[index]]
    while line.opcode in ("add", "copy"):
        others = [body[name] for name in line.operands]
        constants = [other for other in others if other.opcode == "constant"]
        total += sum(int(constant.arguments) for constant in constants)
        line = next((other for other in others if other.opcode != "constant"), line)
        if len(others) - len(constants) != 1:
            return 0
    return total if line.opcode == "get-tuple-element" else 0


def flops_of(line: Instruction, shapes: dict[str, str], computations: Computations) -> float:
    """Returns the FLOPs of an instruction with all that it runs as a part of it."""
    total = _flops(line, shapes)
    for name in () if line.is_control else line.called:
        inside = computations.get(name, ())
        local = {other.name: other.shape for other in inside}
        total += sum(flops_of(other, local, computations) for other in inside)
    return total


def _flops(line: Instruction, shapes: dict[str, str]) -> float:
    operands = [shapes.get(name, "") for name in line.operands[:2]]
    if line.opcode == "dot":
        contracted = line.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return _product_flops(operands[0], line.shape, contracted)
    if line.opcode == "convolution":
        return _convolution_flops(*operands, line.shape, line)
    # Calls of libraries for GPUs. Those of convolutions have a tuple of result and work memory, and
    # all of them the window and labels of the forward pass.
    target = line.attribute(r'custom_call_target="([\w$]+)') or ""
    result = elements_of(line.shape)[0]
    if target.startswith("__cublas"):
        contracted = line.attribute(r'lhs_contracting_dimensions":\[([^\]]*)\]') or ""
        return _product_flops(operands[0], result, contracted)
    if target.startswith("__cudnn$convBackwardInput"):
        return _convolution_flops(result, operands[1], operands[0], line)
    if target.startswith("__cudnn$convBackwardFilter"):
        return _convolution_flops(operands[0], result, operands[1], line)
    if target.startswith("__cudnn$conv"):
        return _convolution_flops(*operands, result, line)
    return 0.0


def _product_flops(left: str, result: str, contracted: str) -> float:
    sizes = [dims_of(left)[int(axis)] for axis in re.findall(r"\d+", contracted)]
    return 2.0 * math.prod(dims_of(result)) * math.prod(sizes)


def _convolution_flops(image: str, filters: str, output: str, line: Instruction) -> float:
    """Multiplications with padding and with the holes of dilation are not made."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes).groups()
    x, kernel, y = map(dims_of, (image, filters, output))
    window = dict(re.findall(r"(\w+)=([\w\-]+)", line.attribute(r"window=\{(.*?)\}") or ""))
    products = 1.0
    for axis in sorted(set(left) - set("bf"), key=int):
        stride, base, dilation, low = (
            int(window[name].split("x")[int(axis)].split("_")[0]) if name in window else default
            for name, default in (("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1), ("pad", 0))
        )
        sizes = x[left.index(axis)], kernel[right.index(axis)], y[out.index(axis)]
        products *= products_along(*sizes, stride, low, base, dilation)
    batch = x[left.index("b")] // int(line.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * batch * kernel[right.index("i")] * y[out.index("f")] * products


def products_along(
    size: int, kernel: int, output: int, stride: int, low: int, base: int = 1, dilation: int = 1
) -> int:
    """Returns the pairs of an output place and a kernel place that meet a value, along one axis.

    `low` is the padding in front; `base` and `dilation` are those of the image and the kernel.
    """
    at = stride * np.arange(output)[:, None] + dilation * np.arange(kernel) - low
    return int(np.sum((at % base == 0) & (at >= 0) & (at < size * base)))
