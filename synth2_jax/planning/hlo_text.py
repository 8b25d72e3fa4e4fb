"""Compiled programs as HLO writes them: instructions by computation, and what shapes say."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

CONTROL = ("while", "conditional", "call")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
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

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of a regular expression that is found in the attributes."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def runs(self, role: str) -> str:
        """Returns the computation in a role, such as "body"."""
        return self.attribute(rf"{role}=%?([\w.\-]+)")

    @property
    def called(self) -> list[str]:
        """The computations it runs, those of branches left out."""
        return _CALLED.findall(self.attributes)

    @property
    def branches(self) -> list[str]:
        return re.findall(r"%?([\w.\-]+)", self.attribute(r"branch_computations=\{([^}]*)\}") or "")

    @property
    def is_control(self) -> bool:
        """Returns whether it runs instructions of their own, not parts of this one."""
        return self.opcode in CONTROL


Computations = Mapping[str, Sequence[Instruction]]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns (instructions by computation, name of the entry computation)."""
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
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
            line = (found[2], shape, opcode, rest[:end], operands, rest[end:], bool(found[1]))
            current.append(Instruction(*line))
    return computations, entry


def root_of(lines: Iterable[Instruction]) -> Instruction:
    """Returns the instruction whose value a computation returns."""
    return next(line for line in lines if line.is_root)


def dims_of(shape: str) -> list[int]:
    """Returns the sizes of an array, or of the first array of a tuple."""
    found = re.match(r"\(?\w+\[([\d,]*)\]", shape)
    return [int(size) for size in found[1].split(",") if size]


def arrays_of(shape: str) -> list[str]:
    """Returns the arrays of a shape, each with its layout."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)


def elements_of(shape: str) -> list[str]:
    """Returns the elements of a tuple, which may be tuples themselves; of an array, the array."""
    if not shape.startswith("("):
        return [shape]
    elements, depth = [""], 0
    for character in re.sub(r"/\*.*?\*/", "", shape[1:-1]):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    return [element.strip() for element in elements]


def num_bytes_of(shape: str) -> float:
    """Returns those of an array or of a tuple of arrays."""
    total = 0.0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = _ITEM_BITS.get(dtype) or int((re.match(r"[a-z]+(\d+)", dtype) or [0, 0])[1])
        total += bits / 8 * math.prod(int(size) for size in dims.split(",") if size)
    return total


def _split_shape(text: str) -> tuple[str, str]:
    """Returns (shape, what follows it); a tuple's shape has parentheses and spaces in it."""
    end = _closing(text[1:]) + 2 if text.startswith("(") else (text + " ").index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str) -> int:
    """Returns where the parenthesis that was opened before `text` closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    return len(text)
