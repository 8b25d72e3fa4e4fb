"""Chips that programs can be compiled for, and what they can do.

Figures of TPUs are Google Cloud's (the pages of v4, v5e, v5p and v6e), those of GPUs NVIDIA's.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

from synth2_jax.errors import UserError, nearest

# What products of large matrices and copies of large arrays reach of an H200's peak
# (benchmarks/device_limits.py). Assumed of other GPUs too.
_MEASURED = 707e12 / 989e12, 3305e9 / 4800e9


@dataclasses.dataclass(frozen=True)
class Target:
    """Description of a GPU that is not there, for XLA."""

    compute_capability: str
    cores: int
    clock_ghz: float
    shared_memory: int  # bytes of a core
    cache: int  # bytes, L2


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip."""

    hbm_bytes: float  # memory
    flops: float  # peak, bfloat16, a second
    hbm_bandwidth: float  # bytes a second
    links: int  # to other chips of its slice: of a TPU two along each axis of the grid
    link_bandwidth: float  # bytes a second that a link sends
    dcn_bandwidth: float  # bytes a second that a chip sends to other slices
    clock: float = 0.0  # a TPU's cycles a second: the peak over the FLOPs of a cycle
    # What libtpu wants to know besides the name, so that a device is a whole chip.
    options: tuple[tuple[str, str], ...] = ()
    target: Target | None = None  # of a GPU

    @property
    def usable_bytes(self) -> float:
        """Memory that JAX takes: of a GPU 75 %, if XLA_PYTHON_CLIENT_MEM_FRACTION says nothing."""
        share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75") if self.target else "1"
        try:
            return self.hbm_bytes * float(share)
        except ValueError:
            raise UserError(
                f"XLA_PYTHON_CLIENT_MEM_FRACTION: found {share!r}, expected a share such as 0.75"
            ) from None

    @property
    def ici_bandwidth(self) -> float:
        """Bytes a second over all links to its neighbours."""
        return self.links * self.link_bandwidth

    @property
    def product_rate(self) -> float:
        """FLOPs a second of a product whose time no compiler tells."""
        return self.flops * (_MEASURED[0] if self.target else 1.0)

    @property
    def copy_rate(self) -> float:
        """Bytes a second of memory traffic whose time no compiler tells."""
        return self.hbm_bandwidth * (_MEASURED[1] if self.target else 1.0)

    def is_ring(self, axis: int, grid: Sequence[int]) -> bool:
        """Returns whether the ends of an axis of a slice are joined."""
        if self.links == 4:  # along whole sides of the pod
            return grid[axis] == 16
        return all(extent % 4 == 0 for extent in grid)  # slices of whole cubes


CHIPS = {
    "v4": Chip(
        *(32 * 2**30, 275e12, 1228e9, 6, 50e9, 6.25e9, 1.05e9),
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 4, 50e9, 3.125e9, 1.5e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 6, 100e9, 6.25e9, 1.75e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 4, 100e9, 12.5e9, 1.75e9),
    "h200": Chip(
        *(140 * 2**30, 989e12, 4800e9, 18, 25e9, 50e9),
        target=Target("9.0", 132, 1.98, 228 * 2**10, 50 * 2**20),
    ),
    "h100": Chip(
        *(79 * 2**30, 989e12, 3350e9, 18, 25e9, 50e9),
        target=Target("9.0", 132, 1.98, 228 * 2**10, 50 * 2**20),
    ),
    "a100": Chip(
        *(79 * 2**30, 312e12, 2039e9, 12, 25e9, 25e9),
        target=Target("8.0", 108, 1.41, 164 * 2**10, 40 * 2**20),
    ),
}


def chip_of(topology: str) -> tuple[Chip, str]:
    """Returns (chip, shape) of a topology such as "v5e:16x16" or "h200:8".

    Raises:
      UserError: it is not such a name.
    """
    kind, colon, shape = topology.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology={topology}: unknown chip {kind!r}; {nearest(kind, CHIPS)}")
    chip = CHIPS[kind]
    if chip.target and not re.fullmatch(r"(:[1248])?", colon + shape):
        raise UserError(
            f"--topology={topology}: expected 1, 2, 4 or 8 cards of one machine as in {kind}:8"
        )
    if not chip.target and not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(f"--topology={topology}: expected chips as in v5e:16x16 or v5p:4x8x8")
    return chip, shape
