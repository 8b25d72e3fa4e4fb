"""The chips of a compiled program that send to each other in a collective."""

import math
import re

import numpy as np


def participants(attributes: str) -> list[list[int]]:
    """Returns the chips of a collective's first group, or the pairs of a permutation.

    Chips are numbered as in the program's mesh. ValueError on a notation that is not known.
    """
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        found = re.findall(r"\{(\d+),(\d+)", pairs[1])
        return [[int(source), int(target)] for source, target in found]
    text = attributes.partition("replica_groups=")[2]
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return [[int(chip) for chip in listed[1].split(",")]]
    if shape := re.match(r"\[\d+,(\d+)\](?:<=(\[\S*))?", text):  # [groups, size]<=[devices]
        return [_numbers(shape[2])[: int(shape[1])].tolist()]
    along = r"mesh\[(.*?)\](?:, device_ids=\((\S*)\))? *\{('[\w, ']+')\}"  # some axes of a mesh
    if mesh := re.match(along, text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        chips = _numbers(mesh[2] or f"[{math.prod(sizes.values())}]")
        named = re.findall(r"'(\w+)'", mesh[3])
        place = tuple(slice(None) if name in named else 0 for name in sizes)
        return [chips.reshape(list(sizes.values()))[place].ravel().tolist()]
    raise ValueError(f"replica groups: found {text[:60]!r}, expected lists, a shape or mesh axes")


def _numbers(text: str) -> np.ndarray:
    """Returns those of `[4,2]T(1,0)`: counted in that shape, then transposed."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    shape = [int(size) for size in found[1].split(",")]
    order = [int(axis) for axis in found[2].split(",")] if found[2] else range(len(shape))
    return np.arange(math.prod(shape)).reshape(shape).transpose(order).ravel()
