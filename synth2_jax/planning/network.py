"""Time that the chips of a pod take to send to each other what a collective sends.

A pod is a grid. Along an axis a chip has two links, to its neighbours; where the ends are joined
as well, chips send both ways round, and each uses both links all the time. On a line those at the
ends have one, and the others wait for them. Chips that share an axis with others between them share
its links too. What goes from one slice to another goes through the data center's network.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from synth2_jax.planning.chips import Chip
from synth2_jax.planning.hlo_collectives import Call
from synth2_jax.planning.hlo_groups import participants


@dataclasses.dataclass(frozen=True)
class Network:
    """The chips of a mesh, in the order in which programs number them."""

    chip: Chip
    coords: Sequence[Sequence[int]]  # in the grid of the chip's slice
    slices: Sequence[int]

    @classmethod
    def of(cls, chip: Chip, devices: Sequence) -> "Network":
        """Devices of `topologies.devices`, such as those of a mesh."""
        slices = [getattr(device, "slice_index", None) or 0 for device in devices]
        return cls(chip, [tuple(getattr(device, "coords", ())) for device in devices], slices)

    def seconds(self, call: Call) -> float:
        """Returns those of one run of a collective that has the network to itself."""
        groups = participants(call.line.attributes)
        return max(self._seconds(group, call.num_bytes) for group in groups)

    def _seconds(self, group: Sequence[int], num_bytes: float) -> float:
        if len(set(group)) < 2:  # a permutation may send some chips' parts to themselves
            return 0.0
        near = [chip for chip in group if self.slices[chip] == self.slices[group[0]]]
        num_slices = len({self.slices[chip] for chip in group})
        if num_slices == 1:
            return num_bytes / self._bandwidth(group)
        # Within its slice first, so that each chip has a part of its own to send to other slices.
        share = len(group) / (len(group) - 1)  # all, over what a ring sends of it
        far = num_bytes * share * (num_slices - 1) / num_slices / len(near)
        inside = num_bytes * share * (len(near) - 1) / len(near)
        links = inside / self._bandwidth(near) if len(near) > 1 else 0.0
        return far / self.chip.dcn_bandwidth + links

    def _bandwidth(self, group: Sequence[int]) -> float:
        """Returns what a chip of the group sends a second, to others of its slice."""
        if self.chip.target:  # a switch, through which each GPU reaches each other one
            return self.chip.ici_bandwidth
        of_slice = [
            place
            for place, one in zip(self.coords, self.slices, strict=True)
            if one == self.slices[group[0]]
        ]
        extents = np.max(of_slice, axis=0) - np.min(of_slice, axis=0) + 1
        links = 0.0
        for axis, extent in enumerate(extents):
            places = np.unique([self.coords[chip][axis] for chip in group])
            if len(places) > 1:
                step = int(np.min(np.diff(places)))
                is_ring = len(places) * step == extent and self.chip.is_ring(axis, extents)
                links += (2 if is_ring else 1) / step
        return links * self.chip.link_bandwidth
