"""FLOPs and collectives of a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, however often it runs: a model of 24 scanned
layers has the FLOPs of one. Here every instruction counts as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BITS = {"pred": 8, "bf16": 16}  # others end with their bits: f32, s4, f8e4m3 (8)
_CONTROL = ("while", "conditional", "call")
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", *_CONTROL),
    *("partition-id", "iota"),
)
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
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


@dataclasses.dataclass(frozen=True)
class Collective:
    """What one chip does for one kind of collective in a run of the program.

    Attributes:
      count: how often it is called.
      num_bytes: what the chip sends in rings: of n chips, (n - 1) / n of what an all-gather,
        reduce-scatter or all-to-all moves, twice that for an all-reduce.
      overlapped_bytes: those of calls that run beside a matrix product.
    """

    count: int
    num_bytes: float
    overlapped_bytes: float


@dataclasses.dataclass(frozen=True)
class Call:
    """One collective of the program's text.

    Attributes:
      kind: of COLLECTIVES.
      count: how often it runs.
      num_bytes: sent each time, as `Collective` has it.
      overlapped: whether a product is scheduled between its start and its end. Whether that takes
        long enough to hide it is not known.
      line: as it stands in the program, or one of its steps.
    """

    kind: str
    count: int
    num_bytes: float
    overlapped: bool
    line: Instruction


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run on one chip.

    Attributes:
      flops: of matrix products and convolutions, 2 a multiplication.
      hbm_bytes: read and written by instructions, what stays in the chip's fast memory left out.
      calls: of collectives.
      unknown_loops: loops whose number of rounds could not be read; they are counted once.
    """

    flops: float
    hbm_bytes: float
    calls: tuple[Call, ...]
    unknown_loops: int

    @property
    def collectives(self) -> dict[str, Collective]:
        """The calls by kind."""
        totals: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
        for call in self.calls:
            sent = call.count * call.num_bytes
            for place, value in enumerate((call.count, sent, sent * call.overlapped)):
                totals[call.kind][place] += value
        return {kind: Collective(*found) for kind, found in sorted(totals.items())}


def cost(text: str) -> Cost:
    """The cost of a compiled module, `compiled.as_text()`."""
    computations, entry = parse(text)
    flops = hbm_bytes = 0.0
    unknown_loops = 0
    groups: list[_Group] = []
    for name, times, is_fused in _runs(computations, entry):
        shapes = {line.name: line.shape for line in computations[name]}
        for line in computations[name]:
            flops += times * _flops(line, shapes)
            unknown_loops += line.opcode == "while" and _trip_count(line, computations) is None
            if not is_fused:
                hbm_bytes += times * _hbm_bytes(line, shapes, computations)
        if not is_fused:
            groups += _groups(name, times, computations)
    return Cost(flops, hbm_bytes, tuple(_merged(groups)), unknown_loops)


def loops(text: str) -> list[int | None]:
    """Rounds of the loops of the entry computation, in order; None where they cannot be read."""
    computations, entry = parse(text)
    return [
        _trip_count(line, computations) for line in computations[entry] if line.opcode == "while"
    ]


def num_instructions(text: str) -> int:
    """How long the program is, however often its parts run."""
    return sum(len(lines) for lines in parse(text)[0].values())


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


def _runs(
    computations: dict[str, list[Instruction]], entry: str
) -> Iterator[tuple[str, int, bool]]:
    """(computation, times it runs, whether it is part of one instruction) for each call of it."""
    waiting = [(entry, 1, False)]
    while waiting:
        name, times, is_fused = waiting.pop()
        yield name, times, is_fused
        for line in computations[name]:
            rounds = times
            if line.opcode == "while":
                rounds *= _trip_count(line, computations) or 1
            called = _CALLED.findall(line.attributes)
            if branches := _BRANCHES.search(line.attributes):
                called += re.findall(r"%?([\w.\-]+)", branches[1])
            inside = is_fused or line.opcode not in _CONTROL
            waiting += [(other, rounds, inside) for other in called if other in computations]


def _trip_count(line: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Rounds of a loop that counts from 0 to a constant; None for another.

    JAX's scans count in ones; products that XLA splits to gather as it goes, in twos.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line.attributes):
        return int(known[1])
    condition, body = (
        {other.name: other for other in computations[name]}
        for name in (
            re.search(rf"{part}=%?([\w.\-]+)", line.attributes)[1] for part in ("condition", "body")
        )
    )
    compared = [condition.get(name) for name in _root(condition).operands]
    if [one and one.opcode for one in compared] != ["get-tuple-element", "constant"]:
        return None
    counter, bound = compared
    step = _increment(body, int(re.search(r"index=(\d+)", counter.attributes)[1]))
    return math.ceil(int(bound.arguments) / step) if step else None


def _increment(body: dict[str, Instruction], index: int) -> int:
    """What a loop's body adds to element `index` of its state; 0 where that cannot be read."""
    root, total = _root(body), 0
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


def _root(lines: dict[str, Instruction]) -> Instruction:
    return next(line for line in lines.values() if line.is_root)


def _flops(line: Instruction, shapes: dict[str, str]) -> float:
    if line.opcode == "dot":
        contracted = _numbers(line.attributes, "lhs_contracting_dims")
        left = _dims(shapes[line.operands[0]])
        return 2.0 * math.prod(_dims(line.shape)) * math.prod(left[d] for d in contracted)
    if line.opcode == "convolution":
        return _convolution_flops(line, shapes)
    return 0.0


def _hbm_bytes(
    line: Instruction, shapes: dict[str, str], computations: dict[str, list[Instruction]]
) -> float:
    """Operands and result; of an array that is only sliced or updated, the part that is touched."""
    if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
        return 0.0
    operands = [_num_hbm_bytes(shapes.get(name, "")) for name in line.operands]
    if line.opcode.endswith("-start"):  # its result names its operand, too
        return 2 * sum(operands)
    result = _num_hbm_bytes(line.shape)
    if line.opcode in ("dynamic-slice", "gather"):
        return 2 * result
    if line.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * operands[-1] if line.opcode == "scatter" else 2 * operands[1]
    called = _CALLED.search(line.attributes)
    if line.opcode != "fusion" or not called:
        return sum(operands) + result
    inside = computations[called[1]]
    local = {other.name: other.shape for other in inside}
    if any(_is_async(other, "Done") for other in inside):
        return 0.0
    if any(_is_async(other, "Start") for other in inside):
        return result  # which names the operand, too; all that the steps will read and write
    handed_on = _handed_on(inside)
    elements = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", line.shape)
    root = _root({other.name: other for other in inside})
    if handed_on and len(elements) == len(root.operands):
        whole = zip(elements, root.operands, strict=True)
        result = sum(_num_hbm_bytes(shape) for shape, name in whole if name not in handed_on)
    for parameter in inside:
        if parameter.opcode != "parameter":
            continue
        users = [other for other in inside if parameter.name in other.operands]
        place = int(parameter.arguments)
        if parameter.name in handed_on:
            operands[place] = 0.0
        elif users and all(user.opcode in ("dynamic-slice", "gather") for user in users):
            touched = sum(_num_bytes(user.shape) for user in users)
            operands[place] = min(operands[place], touched)
        elif any(_updates(user, parameter.name) for user in users):
            operands[place] = 0.0
    for other in inside:
        if other.opcode == "dynamic-update-slice":
            whole, part = _num_bytes(other.shape), _num_bytes(local[other.operands[1]])
            result = max(0.0, result - whole) + part
    return sum(operands) + result


def _handed_on(inside: list[Instruction]) -> set[str]:
    """What a step of a collective takes and gives back as it is, with the collective itself."""
    root = _root({other.name: other for other in inside})
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


def _updates(user: Instruction, name: str) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == name


def _convolution_flops(line: Instruction, shapes: dict[str, str]) -> float:
    """Multiplications with padding and with the holes of dilation are not made."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes).groups()
    x, kernel, y = (_dims(shape) for shape in (*map(shapes.get, line.operands[:2]), line.shape))
    groups = re.search(r"batch_group_count=(\d+)", line.attributes)
    braces = re.search(r"window=\{(.*?)\}", line.attributes)
    window = dict(re.findall(r"(\w+)=([\w\-]+)", braces[1])) if braces else {}
    products = 1.0
    for axis in sorted(set(left) - set("bf"), key=int):
        place = int(axis)

        def of(name: str, default: str, place: int = place) -> str:
            return window[name].split("x")[place] if name in window else default

        low = int(of("pad", "0_0").split("_")[0])
        products *= _valid_products(
            size=x[left.index(axis)],
            kernel=kernel[right.index(axis)],
            output=y[out.index(axis)],
            stride=int(of("stride", "1")),
            low=low,
            base_dilation=int(of("lhs_dilate", "1")),
            window_dilation=int(of("rhs_dilate", "1")),
        )
    batch = x[left.index("b")] // (int(groups[1]) if groups else 1)
    return 2.0 * batch * kernel[right.index("i")] * y[out.index("f")] * products


def _valid_products(
    *,
    size: int,
    kernel: int,
    output: int,
    stride: int,
    low: int,
    base_dilation: int,
    window_dilation: int,
) -> int:
    """Pairs of an output place and a kernel place that meet a value, along one axis."""
    count = 0
    for place in range(output):
        for offset in range(kernel):
            at = place * stride + offset * window_dilation - low
            count += at % base_dilation == 0 and 0 <= at // base_dilation < size
    return count


@dataclasses.dataclass(frozen=True)
class _Group:
    """What a computation has of a collective: all of it, or steps that it takes in a loop."""

    key: str
    call: Call
    starts: bool


def _groups(name: str, times: int, computations: dict[str, list[Instruction]]) -> list[_Group]:
    """The collectives of a computation that is no part of an instruction.

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
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            key = f"channel {channel[1]}" if channel and is_step else one.name
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
        between = lines[min(places[key]) : max(places[key]) + 1]
        overlapped = any(_multiplies(line, computations) for line in between)
        shapes = {line.name: line.shape for line in computations[inside]}
        kind, num_bytes = _moved(one, shapes, computations[inside], inside != name)
        call = Call(kind, times, num_bytes, overlapped, one)
        groups.append(_Group(key, call, key in starts))
    return groups


def _merged(groups: Sequence[_Group]) -> Iterator[Call]:
    """The calls; steps in a loop belong to the collective that starts before the loop."""
    started = {group.key for group in groups if group.starts}
    beside = {group.key for group in groups if group.call.overlapped}
    for group in groups:
        if group.starts:
            yield dataclasses.replace(group.call, overlapped=group.key in beside)
        elif group.key not in started:
            yield group.call


def _role(inside: list[Instruction]) -> tuple[bool, bool]:
    """(whether a collective starts here, whether this is a part of one that runs in steps)."""
    ends = [end for end in ("Start", "Done") if any(_is_async(line, end) for line in inside)]
    is_step = bool(ends) or bool(_handed_on(inside))
    return "Start" in ends or not is_step, is_step


def _is_async(line: Instruction, end: str) -> bool:
    """Whether it marks the "Start" or the "Done" of a collective that runs in steps."""
    return f'custom_call_target="AsyncCollective{end}"' in line.attributes


def _within(
    name: str, line: Instruction, computations: dict[str, list[Instruction]]
) -> Iterator[tuple[str, Instruction]]:
    """(computation, collective) of a line: itself, or those that it is fused with."""
    if line.opcode.removesuffix("-start") in COLLECTIVES:
        yield name, line
    if line.opcode not in _CONTROL:
        for other in _CALLED.findall(line.attributes):
            for inner in computations.get(other, ()):
                yield from _within(other, inner, computations)


def _multiplies(line: Instruction, computations: dict[str, list[Instruction]]) -> bool:
    """Whether a matrix product is a part of it."""
    return line.opcode in ("dot", "convolution") or any(
        _multiplies(inner, computations)
        for other in _CALLED.findall(line.attributes)
        for inner in computations.get(other, ())
    )


def _moved(
    line: Instruction, shapes: dict[str, str], computation: list[Instruction], is_fused: bool
) -> tuple[str, float]:
    """(kind, bytes that a chip sends); an all-reduce that is fused with slices of it scatters."""
    kind = line.opcode.removesuffix("-start")
    size = sum(_num_bytes(shapes[name]) for name in line.operands if name in shapes)
    if kind == "collective-permute":
        return kind, size
    n = _group_size(line.attributes)
    share = (n - 1) / n
    if kind == "all-gather":
        return kind, size * (n - 1)
    if kind == "all-reduce":
        if is_fused and _users(line.name, computation) == {"dynamic-slice"}:
            return "reduce-scatter", size * share
        return kind, 2 * size * share
    return kind, size * share


def _users(name: str, computation: list[Instruction]) -> set[str]:
    """Opcodes of what reads it or an element of it."""
    found: set[str] = set()
    for line in computation:
        if name in line.operands:
            taken = line.opcode == "get-tuple-element"
            found |= _users(line.name, computation) if taken else {line.opcode}
    return found


def _group_size(attributes: str) -> int:
    """How many chips take part, in any of the ways in which HLO says it.

    Raises:
      ValueError: another way.
    """
    text = attributes.partition("replica_groups=")[2]
    if shape := re.match(r"\[\d+,(\d+)\]", text):  # [groups, size]<=[devices]
        return int(shape[1])
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    if mesh := re.match(r"mesh\[(.*?)\].*?\{('[\w, ']+')\}", text):  # along some axes of a mesh
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    raise ValueError(f"replica groups: found {text[:60]!r}, expected lists, a shape or mesh axes")


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


def _dims(shape: str) -> list[int]:
    found = re.match(r"\(?\w+\[([\d,]*)\]", shape)
    return [int(size) for size in found[1].split(",") if size]


def _num_hbm_bytes(shape: str) -> float:
    """`_num_bytes` of the arrays that are not laid into the chip's fast memory, S(1)."""
    return _num_bytes(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(\d\)[^}]*\}", "", shape))


def _num_bytes(shape: str) -> float:
    """Of an array or of a tuple of arrays."""
    total = 0.0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = _ITEM_BITS.get(dtype) or int((re.match(r"[a-z]+(\d+)", dtype) or [0, 0])[1])
        total += bits / 8 * math.prod(int(size) for size in dims.split(",") if size)
    return total


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []
