"""From which arguments of a compiled program each of its values is computed.

Data is followed through fusions, loops and branches, and element by element through tuples: a
matrix that rides in a loop's state beside the rows of a batch is still known to be a parameter.
What decides how often a loop runs or which branch is taken does not count as a source.
"""

import collections
from collections.abc import Sequence

from synth2_jax.planning.hlo_text import Computations, Instruction, parse

# Of an array: the names of arguments. Of a tuple: those of its elements.
Flow = frozenset[str] | tuple["Flow", ...]

_NONE: Flow = frozenset()


def sources(text: str) -> dict[str, frozenset[str]]:
    """Returns names of arguments by name of instruction, of `compiled.as_text()`.

    An argument of the jitted function is named as JAX names it in HLO, up to the first bracket
    ("state.params" for all of that tree); one without such a name by the instruction that reads it.
    Instructions that no call reaches are left out.
    """
    computations, entry = parse(text)
    program = _Program(computations)
    arguments = {
        int(line.arguments): frozenset([line.attribute(r'op_name="([^"[]+)') or line.name])
        for line in computations[entry]
        if line.opcode == "parameter"
    }
    program.run(entry, [arguments[place] for place in range(len(arguments))])
    return dict(program.found)


class _Program:
    """Walks computations with what their parameters hold; `found` is over all walks."""

    def __init__(self, computations: Computations):
        self._computations = computations
        self._known: dict[tuple[str, tuple[Flow, ...]], Flow] = {}
        self.found: dict[str, frozenset[str]] = collections.defaultdict(frozenset)

    def run(self, name: str, arguments: Sequence[Flow]) -> Flow:
        """Returns what the computation's root holds."""
        key = (name, tuple(arguments))
        if key not in self._known:
            local: dict[str, Flow] = {}
            for line in self._computations[name]:
                operands = [local[operand] for operand in line.operands]
                flow = local[line.name] = self._flow(line, operands, arguments)
                self.found[line.name] |= _all(flow)
                if line.is_root:
                    self._known[key] = flow
        return self._known[key]

    def _flow(self, line: Instruction, operands: list[Flow], arguments: Sequence[Flow]) -> Flow:
        match line.opcode:
            case "parameter":
                return arguments[int(line.arguments)]
            case "tuple":
                return tuple(operands)
            case "get-tuple-element" if isinstance(operands[0], tuple):
                return operands[0][int(line.attribute(r"index=(\d+)"))]
            case "while":
                return self._loop(line.runs("condition"), line.runs("body"), operands[0])
            case "fusion" | "call" | "async-start":
                return self.run(line.called[0], operands)
            case "conditional" if line.branches:
                inputs = ([operand] for operand in operands[1:])
                return _join([self.run(*one) for one in zip(line.branches, inputs, strict=True)])
            case "copy" | "optimization-barrier":
                return operands[0]
        return _all(tuple(operands))

    def _loop(self, condition: str, body: str, state: Flow) -> Flow:
        while True:
            self.run(condition, [state])
            after = _join([state, self.run(body, [state])])
            if after == state:
                return state
            state = after


def _all(flow: Flow) -> frozenset[str]:
    """Over all elements of a tuple."""
    return frozenset().union(*map(_all, flow)) if isinstance(flow, tuple) else flow


def _join(flows: Sequence[Flow]) -> Flow:
    """Returns the union of what they may hold."""
    if all(isinstance(flow, tuple) and len(flow) == len(flows[0]) for flow in flows):
        return tuple(_join(elements) for elements in zip(*flows, strict=True))
    return _all(tuple(flows))
