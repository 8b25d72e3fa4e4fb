"""Time that a compiled program takes by its own schedule.

The text of a scheduled program has its instructions in the order in which they begin, and the TPU
compiler writes next to each how many cycles it expects it to take. What has no cycles takes as long
as its products or its memory traffic, whichever is more, at the chip's rates. What was started and
is not waited for yet, collectives and copies between memories, goes on beside them; a wait ends
when it is done. Transfers of one kind are made one after the other, each at the full rate.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

from synth2_jax.planning import hlo
from synth2_jax.planning.chips import Chip
from synth2_jax.planning.hlo_bytes import HbmBytes
from synth2_jax.planning.hlo_collectives import COLLECTIVES, Call, Group, groups_of
from synth2_jax.planning.hlo_text import Computations, Instruction, parse

KINDS = ("products", "vector", "random numbers", "optimizer", "copies", "network")
_RANDOM = r'op_name="[^"]*(random_bits|threefry|bernoulli|uniform|random_fold)'
_OPTIMIZER = r'op_name="[^"]*(/optimizer/)'
_MOVES = {
    *("parameter", "constant", "bitcast", "convert", "copy", "transpose", "reshape", "tuple"),
    *("slice", "dynamic-slice", "dynamic-update-slice", "pad", "concatenate", "broadcast"),
    *("get-tuple-element", "custom-call", "select", "iota", "compare", "fusion"),
}


def seconds_by_kind(text: str, chip: Chip, network: Callable[[Call], float]) -> dict[str, float]:
    """Returns the seconds of `compiled.as_text()` by kind; their sum is what a run takes.

    "network" is time in which a chip waits for it, "copies" has waits for memory too. Matrix
    products are "products" with all that is fused with them. `network` returns the seconds of one
    run of a collective.
    """
    computations, entry = parse(text)
    walk = _Walk(computations, chip, network)
    walk.run(entry, 1)
    return dict(walk.seconds)


@dataclasses.dataclass
class _Walk:
    """The state of a chip while it walks through a program."""

    computations: Computations
    chip: Chip
    network: Callable[[Call], float]

    def __post_init__(self):
        self.seconds = collections.Counter(dict.fromkeys(KINDS, 0.0))
        self._memory = HbmBytes(self.computations)
        self._now = 0.0
        self._free = {"network": 0.0, "copies": 0.0}  # when each has done what it was given
        self._groups: dict[str, list[Group]] = {}

    def run(self, name: str, times: int) -> None:
        """Runs a computation once; its seconds count `times`."""
        if name not in self._groups:
            self._groups[name] = groups_of(name, 1, self.computations)
        begin, end = collections.defaultdict(list), collections.defaultdict(list)
        for group in self._groups[name]:
            if group.starts:
                begin[group.first].append(group)
                if group.first < group.last or not group.call.line.opcode.endswith("-start"):
                    end[group.last].append(group)
        lines = self.computations[name]
        shapes = {line.name: line.shape for line in lines}
        ready: dict[str, float] = {}  # of what was started
        for place, line in enumerate(lines):
            for group in begin[place]:
                ready[group.key] = self._start("network", self.network(group.call))
            self._step(line, shapes, ready, times)
            for group in end[place]:
                self._wait("network", ready[group.key], times)

    def _step(
        self, line: Instruction, shapes: dict[str, str], ready: dict[str, float], times: int
    ) -> None:
        num_bytes = self._memory.of(line, shapes)
        if line.opcode == "while":
            self._loop(line, times)
        elif line.is_control:
            for other in (*line.called, *line.branches):
                self.run(other, times)
        elif line.opcode in ("copy-start", "slice-start", "async-start"):
            ready[line.name] = self._start("copies", num_bytes / self.chip.copy_rate)
        elif line.opcode in ("copy-done", "slice-done", "async-done"):
            self._wait("copies", ready.get(line.operands[0], self._free["copies"]), times)
        elif line.opcode.endswith("-done") and line.operands[0] not in ready:
            self._wait("network", self._free["network"], times)  # started in the round before
        elif not line.opcode.startswith(COLLECTIVES):
            flops = hlo.flops_of(line, shapes, self.computations)
            kind = "products" if flops else self._kind(line)
            if cycles := line.attribute(r'estimated_cycles":"?(\d+)'):
                seconds = int(cycles) / self.chip.clock
            else:
                seconds = max(num_bytes / self.chip.copy_rate, flops / self.chip.product_rate)
            self._busy(kind, seconds, times)

    def _loop(self, line: Instruction, times: int) -> None:
        """Walks through two rounds; the second is how all others go, with the network in use."""
        rounds = hlo.trip_count(line, self.computations) or 1
        self.run(line.runs("body"), times)
        if rounds > 1:
            start = self._now
            self.run(line.runs("body"), times * (rounds - 1))
            rest = (self._now - start) * (rounds - 2)
            self._now += rest
            self._free = {kind: free + rest for kind, free in self._free.items()}

    def _start(self, kind: str, seconds: float) -> float:
        """Returns when it will be done."""
        self._free[kind] = max(self._free[kind], self._now) + seconds
        return self._free[kind]

    def _wait(self, kind: str, until: float, times: int) -> None:
        self._busy(kind, max(0.0, until - self._now), times)

    def _busy(self, kind: str, seconds: float, times: int) -> None:
        self._now += seconds
        self.seconds[kind] += times * seconds

    def _kind(self, line: Instruction) -> str:
        inside = list(self._inside(line))
        if any(one.attribute(_RANDOM) or one.opcode.startswith("rng") for one in inside):
            return "random numbers"
        if any(one.attribute(_OPTIMIZER) for one in inside):
            return "optimizer"
        return "copies" if all(one.opcode in _MOVES for one in inside) else "vector"

    def _inside(self, line: Instruction) -> Sequence[Instruction]:
        called = (one for name in line.called for one in self.computations.get(name, ()))
        return [line, *(found for one in called for found in self._inside(one))]
