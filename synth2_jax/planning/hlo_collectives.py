"""Bytes that a chip sends in a compiled program, and whether it computes meanwhile."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from synth2_jax.planning.hlo_groups import participants
from synth2_jax.planning.hlo_text import Computations, Instruction, num_bytes_of, root_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective, as one chip takes part in it in a run of the program.

    It sends in rings: of n chips, (n - 1) / n of what an all-gather, reduce-scatter or all-to-all
    moves, twice that for an all-reduce.
    """

    count: int  # of calls
    num_bytes: float  # that it sends
    overlapped_bytes: float  # those of calls that run beside a matrix product


@dataclasses.dataclass(frozen=True)
class Call:
    """One collective of the program's text."""

    kind: str  # of COLLECTIVES
    count: int  # how often it runs
    num_bytes: float  # sent each time, as `Collective` has it
    overlapped: bool  # beside a scheduled product, which may be too short to hide it
    line: Instruction  # of the program, or of one of its steps


@dataclasses.dataclass(frozen=True)
class Group:
    """The part of a collective that runs in a computation: all of it, or steps in a loop."""

    key: str
    call: Call
    starts: bool
    first: int  # places of its lines in the computation
    last: int


def groups_of(name: str, times: int, computations: Computations) -> list[Group]:
    """Returns the collectives of a computation that is no part of an instruction.

    In scheduled text its lines stand in the order in which they begin. One that runs beside
    products is either a pair of -start and -done, or several fusions that share its channel: its
    start, its steps and its end. Others that share a channel have nothing to do with each other.
    """
    lines = computations[name]
    places: dict[str, list[int]] = collections.defaultdict(list)
    found: dict[str, tuple[Instruction, str]] = {}
    starts: set[str] = set()
    key_of: dict[str, str] = {}
    for place, line in enumerate(lines):
        for inside, one in _within(name, line, computations):
            is_start, is_step = _role(computations[inside]) if inside != name else (True, False)
            channel = is_step and one.attribute(r"channel_id=(\d+)")
            key = f"channel {channel}" if channel else one.name
            places[key].append(place)
            found[key] = (one, inside)
            key_of[line.name] = key
            if is_start:
                starts.add(key)
        if line.opcode.endswith("-done"):
            for operand in line.operands:
                places[key_of.get(operand, "")].append(place)
    groups = []
    for key, (one, inside) in found.items():
        first, last = min(places[key]), max(places[key])
        overlapped = any(_multiplies(line, computations) for line in lines[first : last + 1])
        shapes = {line.name: line.shape for line in computations[inside]}
        kind, num_bytes = _moved(one, shapes, computations[inside], inside != name)
        call = Call(kind, times, num_bytes, overlapped, one)
        groups.append(Group(key, call, key in starts, first, last))
    return groups


def merged(groups: Sequence[Group]) -> Iterator[Call]:
    """Yields the calls; steps in a loop belong to the collective that starts before the loop."""
    started = {group.key for group in groups if group.starts}
    beside = {group.key for group in groups if group.call.overlapped}
    for group in groups:
        if group.starts:
            yield dataclasses.replace(group.call, overlapped=group.key in beside)
        elif group.key not in started:
            yield group.call


def _role(inside: Sequence[Instruction]) -> tuple[bool, bool]:
    """(whether a collective starts here, whether this is a part of one that runs in steps)."""
    ends = [end for end in ("Start", "Done") if any(is_async(line, end) for line in inside)]
    is_step = bool(ends) or bool(handed_on(inside))
    return "Start" in ends or not is_step, is_step


def handed_on(inside: Sequence[Instruction]) -> set[str]:
    """Returns what a step of a collective passes through unchanged, with the collective itself."""
    root = root_of(inside)
    steps = {other.name for other in inside if other.opcode in COLLECTIVES}
    if root.opcode != "tuple" or not steps & set(root.operands):
        return set()
    kept = {
        other.name
        for other in inside
        if other.opcode == "parameter"
        and {user.name for user in inside if other.name in user.operands} <= steps | {root.name}
    }
    return kept | steps


def is_async(line: Instruction, end: str) -> bool:
    """Returns whether it is the "Start" or the "Done" of a collective that runs in steps."""
    return f'custom_call_target="AsyncCollective{end}"' in line.attributes


def _within(
    name: str, line: Instruction, computations: Computations
) -> Iterator[tuple[str, Instruction]]:
    """(computation, collective) of a line: itself, or those that it is fused with."""
    if line.opcode.removesuffix("-start") in COLLECTIVES:
        yield name, line
    if not line.is_control:
        for other in line.called:
            for inner in computations.get(other, ()):
                yield from _within(other, inner, computations)


def _multiplies(line: Instruction, computations: Computations) -> bool:
    """Returns whether a matrix product is a part of it."""
    return line.opcode in ("dot", "convolution") or any(
        _multiplies(inner, computations)
        for other in line.called
        for inner in computations.get(other, ())
    )


def _moved(
    line: Instruction, shapes: dict[str, str], computation: Sequence[Instruction], is_fused: bool
) -> tuple[str, float]:
    """(kind, bytes that a chip sends); an all-reduce that is fused with slices of it scatters."""
    kind = line.opcode.removesuffix("-start")
    size = sum(num_bytes_of(shapes[name]) for name in line.operands if name in shapes)
    if kind == "collective-permute":
        return kind, size
    n = len(participants(line.attributes)[0])
    if kind == "all-gather":
        return kind, size * (n - 1)
    sliced = is_fused and _users(line.name, computation) == {"dynamic-slice"}
    if kind == "all-reduce" and not sliced:
        return kind, 2 * size * (n - 1) / n
    return "reduce-scatter" if kind == "all-reduce" else kind, size * (n - 1) / n


def _users(name: str, computation: Sequence[Instruction]) -> set[str]:
    """Opcodes of what reads it or an element of it."""
    found: set[str] = set()
    for line in computation:
        if name in line.operands:
            taken = line.opcode == "get-tuple-element"
            found |= _users(line.name, computation) if taken else {line.opcode}
    return found
