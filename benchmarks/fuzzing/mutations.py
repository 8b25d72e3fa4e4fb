"""Damage, decided by a random.Random alone: to bytes, to JSON, to text, to values of a config.

Each function takes what is there and returns it damaged, never as it was.
"""

import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

HUGE = 10**30
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), 1e308, HUGE, 2**31, 2**63),
    *("", " ", "x", "\ud83d", "\x1b[31mred", "a\nb", "\0", "../x", "/etc/passwd", "~", "a" * 5000),
    *([], [1], ["x"], [None], [[[]]], {}, {"x": 1}, {"": None}),
)
CONFIG_VALUES = (
    *("", " ", "None", "true", "false", "-1", "0", "1", "2", "3", "7", "1.5", "0.0", "1e400"),
    *("nan", "inf", "-inf", str(HUGE), str(10**400), "0x10", "1_000", "007", "1e3", "1,2,3", "x"),
    *("x,y", "()", "(1,)", "[]", "[[]]", "{}", "{'x': 1}", "{[1]: 2}", "{1: 2}", "'x'", "b'x'"),
    *("(" * 300, "-" * 3000 + "1", "1" * 5000, "lambda: 1", "...", "1j", "\x1b[31m", "a\nb"),
    *("\u202e", "\udcff", "\u00e9" * 300, "..", "/", "~", "~nobody/x", "gs://b/x", "a\\b", "a b"),
    *("%s", "{x}", "{split}", "*", "[x]", "float16", "bfloat16", "float32", "/etc/passwd", "."),
    *("/dev/null", "/proc/self/mem", "a" * 300, "x/" * 2000),
)
_TEXTS = (
    *(b"\0", b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"\xed\xa0\xbd", b'"'),
    *(b"\xe2\x80\xa8", b"[" * 3000, b"{" * 3000, b"NaN", b"null", b"1e400", b"-", b",", b"}", b"]"),
    *(b"9" * 5000, b"\\ud83d", b"a" * 3000, b" ", b"\t", b"|", b"#"),
)


def damage_bytes(contents: bytes, rng: random.Random) -> bytes:
    """One of a dozen kinds: a bit, a byte, a range, a number in it, the end, all of it."""
    while True:
        damaged = rng.choice(_BYTES)(contents, rng)
        if damaged != contents:
            return damaged


def damage_json(contents: bytes, rng: random.Random) -> bytes:
    """A value, key or element of JSON, of the whole file or of one of its lines; or its bytes."""
    if not contents or rng.random() < 0.25:
        return damage_bytes(contents, rng)
    lines = [contents]
    try:
        json.loads(contents)
    except ValueError:
        lines = contents.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except ValueError:
        return damage_bytes(contents, rng)
    changed = json.dumps(_damaged_value(value, rng), indent=2 if len(lines) == 1 else None)
    lines[number] = changed.encode("utf-8", "surrogatepass") + b"\n"
    damaged = b"".join(lines)
    return damaged if damaged != contents else damage_bytes(contents, rng)


def damage_file(path: pathlib.Path, rng: random.Random) -> str:
    """Damages one file in place; says how in a few words."""
    draw = rng.random()
    if draw < 0.03:
        path.unlink()
        return "deleted"
    if draw < 0.05:
        path.unlink()
        path.mkdir()
        return "a folder in its place"
    if draw < 0.07:
        path.unlink()
        path.symlink_to("nowhere")
        return "a dangling link in its place"
    contents = path.read_bytes()
    is_json = contents[:1] in b"{[" and contents[:1]
    damaged = (damage_json if is_json else damage_bytes)(contents, rng)
    path.write_bytes(damaged)
    return f"{len(contents)} -> {len(damaged)} bytes"


def _damaged_value(value: Any, rng: random.Random) -> Any:
    """`value` with one place of it, drawn at random, damaged."""
    places = list(_places(value))
    if not places:
        return rng.choice(JSON_VALUES)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "\ud83d", "\x1b[31m"])] = holder.pop(key)
    elif kind < 0.3 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind < 0.4 and isinstance(holder[key], str):
        text = holder[key]
        place = rng.randrange(len(text) + 1)
        holder[key] = text[:place] + rng.choice(["\x1b[31m", "\ud83d", "/../", "0"]) + text[place:]
    elif kind < 0.5 and type(holder[key]) is int:
        holder[key] += rng.choice([-1, 1, 10, 2**31])
    else:
        holder[key] = rng.choice(JSON_VALUES)
    return value


def _places(value: Any):
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, element in items:
        yield value, key
        yield from _places(element)


def _flip_bit(contents: bytes, rng: random.Random) -> bytes:
    if not contents:
        return b"\0"
    place = rng.randrange(len(contents))
    flipped = contents[place] ^ (1 << rng.randrange(8))
    return contents[:place] + bytes([flipped]) + contents[place + 1 :]


def _range(contents: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(contents) + 1)
    return start, min(len(contents), start + rng.choice([1, 2, 4, 8, 64, 512]))


def _overwrite(make: Callable[[int, random.Random], bytes]):
    def overwrite(contents: bytes, rng: random.Random) -> bytes:
        start, stop = _range(contents, rng)
        return contents[:start] + make(stop - start, rng) + contents[stop:]

    return overwrite


def _swap(contents: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted([_range(contents, rng), _range(contents, rng)])
    c, d = max(b, c), max(b, d)
    return contents[:a] + contents[c:d] + contents[b:c] + contents[a:b] + contents[d:]


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip_bit,) * 4,
    _overwrite(lambda length, rng: b""),
    _overwrite(lambda length, rng: b"\0" * length),
    _overwrite(lambda length, rng: b"\xff" * length),
    _overwrite(lambda length, rng: rng.randbytes(length)),
    _overwrite(lambda length, rng: rng.randbytes(2 * length)),
    _overwrite(lambda length, rng: rng.choice(_TEXTS)),
    _overwrite(lambda length, rng: (2 ** rng.choice([31, 32, 40, 63])).to_bytes(8, "little")),
    lambda contents, rng: contents[: rng.randrange(len(contents) + 1)],
    lambda contents, rng: contents[: max(0, len(contents) - rng.choice([1, 2, 4, 16]))],
    lambda contents, rng: contents + rng.randbytes(rng.choice([1, 4, 100])),
    lambda contents, rng: contents + contents,
    lambda contents, rng: rng.choice(_TEXTS) + contents,
    lambda contents, rng: b"",
    _swap,
)
