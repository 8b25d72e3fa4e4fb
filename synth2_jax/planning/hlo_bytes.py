"""Bytes that the instructions of a compiled program read from a chip's memory, and write to it.

What is touched counts: of an array that is sliced, the slice; of one that is updated in place, the
update. Nothing else does: neither the chip's fast memory, S(1) in a layout, nor a buffer that is
only allocated, nor another name for the same bytes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from synth2_jax.planning.hlo_collectives import handed_on, is_async
from synth2_jax.planning.hlo_text import (
    CONTROL,
    Computations,
    Instruction,
    arrays_of,
    elements_of,
    num_bytes_of,
    root_of,
)

_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", *CONTROL),
    *("partition-id", "replica-id", "iota"),
)
_FREE_CUSTOM_CALLS = ("AllocateBuffer", "ConcatBitcast")
_SLICES = ("slice", "dynamic-slice", "gather")
_RUNS_OTHERS = ("fusion", "async-start", "call")
# Their results name the operands too; that of other asynchronous collectives does not.
_COPIES = ("copy-start", "all-gather-start", "collective-permute-start")


@dataclasses.dataclass(frozen=True)
class _Touched:
    """The share that is touched of each operand, and of each array of the result."""

    reads: Sequence[float]
    writes: Sequence[float]


class HbmBytes:
    """Bytes of instructions of one program."""

    def __init__(self, computations: Computations):
        self._computations = computations
        self._known: dict[str, _Touched] = {}

    def of(self, line: Instruction, shapes: Mapping[str, str]) -> float:
        """Returns those of one run; `shapes` are those of the instruction's computation."""
        if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
            return 0.0
        if line.attribute(r'custom_call_target="(\w+)"') in _FREE_CUSTOM_CALLS:
            return 0.0
        if line.opcode in _COPIES:
            return sum(map(_in_hbm, elements_of(line.shape)[:2]))
        inside = self._computations[line.called[0]] if line.opcode == "fusion" else ()
        if any(is_async(other, "Done") for other in inside):
            return 0.0
        results = arrays_of(line.shape)
        if any(is_async(other, "Start") for other in inside):
            return sum(map(_in_hbm, results))  # all that the collective's steps read and write
        if line.opcode in ("slice-start", "async-start"):  # ((operands), result, context)
            results = arrays_of(elements_of(line.shape)[1])
        operands = [shapes.get(name, "") for name in line.operands]
        reads = self._reads(line, operands, 1.0, in_place=True)
        writes = self._writes(line, operands)
        return sum(
            share * _in_hbm(shape)
            for shares, given in ((reads, operands), (writes, results))
            for share, shape in zip(shares, given, strict=True)
        )

    def _touched(self, name: str) -> _Touched:
        """Returns what a computation that is run as one instruction touches."""
        if name not in self._known:
            self._known[name] = self._find(self._computations[name])
        return self._known[name]

    def _find(self, lines: Sequence[Instruction]) -> _Touched:
        by_name = {line.name: line for line in lines}
        shapes = {line.name: line.shape for line in lines}
        root, kept = root_of(lines), handed_on(lines)
        in_place = _names_of_root(root, by_name)

        def writes(line: Instruction) -> list[float]:
            sources = [by_name[name] for name in line.operands]
            match line.opcode:
                case "tuple":
                    return [
                        share
                        for source in sources
                        for share in ([0.0] if source.name in kept else writes(source))
                    ]
                case "bitcast" | "optimization-barrier":
                    return writes(sources[0])
                case "get-tuple-element":
                    return [writes(sources[0])[int(line.attribute(r"index=(\d+)"))]]
                case "parameter":  # handed on as it is
                    return [0.0] * len(arrays_of(line.shape))
            return self._writes(line, [source.shape for source in sources])

        wanted = dict.fromkeys(shapes, 0.0) | {root.name: 1.0}
        for line in reversed(lines):
            operands = [shapes[name] for name in line.operands]
            share = wanted[line.name]
            reads = self._reads(line, operands, share, line.name in in_place)
            for name, read in zip(line.operands, reads, strict=True):
                if share:  # slices are of several parts; whatever else reads it, reads the same
                    others = wanted[name] if line.opcode in _SLICES else 0.0
                    wanted[name] = min(1.0, max(wanted[name], others + read))
        parameters = [line for line in lines if line.opcode == "parameter"]
        parameters.sort(key=lambda line: int(line.arguments))
        reads = [0.0 if line.name in kept else wanted[line.name] for line in parameters]
        return _Touched(reads, writes(root))

    def _reads(
        self, line: Instruction, operands: Sequence[str], wanted: float, in_place: bool
    ) -> list[float]:
        """Returns the share of each operand that is read for the wanted share of the result."""
        others = [1.0] * (len(operands) - 1)  # such as where a slice begins
        if line.opcode in (*_SLICES, "slice-start"):
            part = elements_of(line.shape)[1] if line.opcode == "slice-start" else line.shape
            return [wanted * _ratio(part, operands[0]), *others]
        if line.opcode == "dynamic-update-slice":
            return [0.0 if in_place else wanted, *others]
        if line.opcode == "scatter":
            arrays = len(operands) // 2
            return [0.0 if in_place else wanted] * arrays + [1.0] * (arrays + 1)
        if line.opcode in _RUNS_OTHERS and line.called:
            return [wanted * share for share in self._touched(line.called[0]).reads]
        return [wanted] * len(operands)

    def _writes(self, line: Instruction, operands: Sequence[str]) -> list[float]:
        """Returns the share of each array of the result that is written."""
        if line.opcode == "dynamic-update-slice":
            return [_ratio(operands[1], line.shape)]
        if line.opcode == "scatter":
            arrays = len(operands) // 2
            return [_ratio(operands[-1], operands[0])] * arrays
        if line.opcode in _RUNS_OTHERS and line.called:
            return list(self._touched(line.called[0]).writes)
        shape = elements_of(line.shape)[1] if line.opcode == "slice-start" else line.shape
        return [1.0] * len(arrays_of(shape))


def _names_of_root(root: Instruction, by_name: Mapping[str, Instruction]) -> set[str]:
    """Returns the root, and what it only renames or puts together."""
    found, waiting = set(), [root]
    while waiting:
        line = waiting.pop()
        found.add(line.name)
        if line.opcode in ("tuple", "bitcast", "get-tuple-element", "optimization-barrier"):
            waiting += [by_name[name] for name in line.operands]
    return found


def _ratio(part: str, whole: str) -> float:
    return num_bytes_of(part) / (num_bytes_of(whole) or 1.0)


def _in_hbm(shape: str) -> float:
    """Returns `num_bytes_of` the arrays that are in no other memory, S(1) or S(2)."""
    return sum(num_bytes_of(array) for array in arrays_of(shape) if "S(" not in array)
