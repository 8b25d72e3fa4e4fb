"""Compiled programs as HLO writes them: instructions by computation, and what shapes say."""

import dataclasses
import math
import re
from collections.abc import Iterable

CONTROL = ("while", "conditional", "call")
CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ITEM_BITS = {"pred": 8, "bf16": 16}  # others end with their bits: f32, s4, f8e4m3 (8)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(arguments), attributes`; operands are named in arguments."""

    name: str
    shape: str
    opcode: str
    arguments: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(instructions by computation, name of the entry computation)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            shape, rest = _split_shape(found[3])
            opcode, _, rest = rest.partition("(")
            end = _closing(rest)
            arguments, attributes = rest[:end], rest[end:]
            operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
            is_root = bool(found[1])
            current.append(
                Instruction(found[2], shape, opcode, arguments, operands, attributes, is_root)
            )
    return computations, entry


def root_of(lines: Iterable[Instruction]) -> Instruction:
    """What a computation returns."""
    return next(line for line in lines if line.is_root)


def dims_of(shape: str) -> list[int]:
    """Of an array, or of the first array of a tuple."""
    found = re.match(r"\(?\w+\[([\d,]*)\]", shape)
    return [int(size) for size in found[1].split(",") if size]


def num_bytes_of(shape: str) -> float:
    """Of an array or of a tuple of arrays."""
    total = 0.0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = _ITEM_BITS.get(dtype) or int((re.match(r"[a-z]+(\d+)", dtype) or [0, 0])[1])
        total += bits / 8 * math.prod(int(size) for size in dims.split(",") if size)
    return total


def numbers_of(attributes: str, name: str) -> list[int]:
    """Those of an attribute such as lhs_contracting_dims={1}; none without it."""
    found = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []


def _split_shape(text: str) -> tuple[str, str]:
    """(shape, what follows it); a tuple's shape has parentheses and spaces in it."""
    if text.startswith("("):
        end = _closing(text[1:]) + 2
        return text[:end], text[end:].lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str) -> int:
    """Where the parenthesis that was opened before `text` closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    return len(text)
