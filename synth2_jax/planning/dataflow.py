"""From which arguments of a compiled program each of its values is computed.

Data is followed through fusions, loops and branches, and element by element through tuples: a
matrix that rides in a loop's state beside the rows of a batch is still known to be a parameter.
What decides how often a loop runs or which branch is taken does not count as a source.
"""

import collections
import re
from collections.abc import Mapping, Sequence

from synth2_jax.planning.hlo_text import Instruction, parse

# Of an array: the names of arguments. Of a tuple: those of its elements.
Flow = frozenset[str] | tuple["Flow", ...]

_NONE: Flow = frozenset()


def sources(text: str) -> dict[str, frozenset[str]]:
    """Names of arguments by name of instruction, of `compiled.as_text()`.

    An argument of the jitted function is named as JAX names it in HLO, up to the first bracket
    ("state.params" for all of that tree); one without such a name by the instruction that reads it.
    Instructions that no call reaches are left out.
    """
    computations, entry = parse(text)
    program = _Program(computations)
    arguments = {
        int(line.arguments): frozenset([_name(line)])
        for line in computations[entry]
        if line.opcode == "parameter"
    }
    program.run(entry, [arguments[place] for place in range(len(arguments))])
    return dict(program.found)


def _name(line: Instruction) -> str:
    named = re.search(r'op_name="([^"[]+)', line.attributes)
    return named[1] if named else line.name


class _Program:
    """Walks computations with what their parameters hold; `found` is over all walks."""

    def __init__(self, computations: Mapping[str, Sequence[Instruction]]):
        self._computations = computations
        self._known: dict[tuple[str, tuple[Flow, ...]], Flow] = {}
        self.found: dict[str, frozenset[str]] = collections.defaultdict(frozenset)

    def run(self, name: str, arguments: Sequence[Flow]) -> Flow:
        """What the computation's root holds."""
        key = (name, tuple(arguments))
        if key not in self._known:
            self._known[key] = self._walk(name, arguments)
        return self._known[key]

    def _walk(self, name: str, arguments: Sequence[Flow]) -> Flow:
        local: dict[str, Flow] = {}
        result = _NONE
        for line in self._computations[name]:
            flow = self._flow(line, [local[operand] for operand in line.operands], arguments)
            local[line.name] = flow
            self.found[line.name] |= _all(flow)
            result = flow if line.is_root else result
        return result

    def _flow(self, line: Instruction, operands: list[Flow], arguments: Sequence[Flow]) -> Flow:
        if line.opcode == "parameter":
            return arguments[int(line.arguments)]
        if line.opcode == "tuple":
            return tuple(operands)
        if line.opcode == "get-tuple-element" and isinstance(operands[0], tuple):
            return operands[0][int(re.search(r"index=(\d+)", line.attributes)[1])]
        called = dict(re.findall(r"(calls|body|condition|to_apply)=%?([\w.\-]+)", line.attributes))
        if line.opcode == "while":
            return self._loop(called["body"], called["condition"], operands[0])
        if line.opcode in ("fusion", "call", "async-start"):
            return self.run(called.get("calls") or called["to_apply"], operands)
        if branches := re.search(r"branch_computations=\{([^}]*)\}", line.attributes):
            names = re.findall(r"%?([\w.\-]+)", branches[1])
            joined = [
                self.run(*one) for one in zip(names, ([x] for x in operands[1:]), strict=True)
            ]
            return _join(joined)
        if line.opcode in ("copy", "optimization-barrier"):
            return operands[0]
        return _all(tuple(operands))

    def _loop(self, body: str, condition: str, state: Flow) -> Flow:
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
    """What any of them may hold."""
    if all(isinstance(flow, tuple) and len(flow) == len(flows[0]) for flow in flows):
        return tuple(_join(elements) for elements in zip(*flows, strict=True))
    return _all(tuple(flows))
