"""TPU pods that need not be there: libtpu compiles for them on a CPU machine.

Figures of chips are Google Cloud's (the pages of v4, v5e, v5p and v6e).
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from jax.experimental import topologies

from synth2_jax.errors import UserError, nearest

FLAGS = pathlib.Path(__file__).parent / "libtpu_flags.txt"
INSTALL = "install the TPU compiler by `pip install '.[tpu]'` (Linux on x86-64 only)"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip."""

    hbm_bytes: float  # memory
    flops: float  # peak, bfloat16, a second
    hbm_bandwidth: float  # bytes a second
    links: int  # to neighbours in its slice: two along each axis of the grid
    link_bandwidth: float  # bytes a second that a link sends
    dcn_bandwidth: float  # bytes a second that a chip sends to other slices
    clock: float  # cycles a second: the peak over the FLOPs that its products do in a cycle
    # What libtpu wants to know besides the name, so that a device is a whole chip.
    options: tuple[tuple[str, str], ...] = ()

    @property
    def ici_bandwidth(self) -> float:
        """Bytes a second over all links to its neighbours."""
        return self.links * self.link_bandwidth

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
}


def chip(name: str) -> Chip:
    """Returns the chip of a topology such as "v5e:16x16"; UserError if it is not such a name."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology={name}: unknown chip {kind!r}; {nearest(kind, CHIPS)}")
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(f"--topology={name}: expected chips as in v5e:16x16 or v5p:4x8x8")
    return CHIPS[kind]


def devices(name: str, num_slices: int = 1) -> Sequence:
    """Returns the devices of `num_slices` such pods, for a mesh to be compiled for; none can run.

    Raises:
      UserError: no libtpu, or a shape that these chips do not come in.
    """
    options = dict(chip(name).options)
    if num_slices > 1:
        options["num_slices"] = num_slices
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no process holds a TPU here
    try:
        with _quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
            return found.devices
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "not installed" in reason or "libtpu" in reason:
            raise UserError(f"--topology={name}: found no libtpu; {INSTALL}") from error
        raise UserError(f"--topology={name}: {reason:.200}") from error


def compiler_options() -> dict[str, str]:
    """Returns what launch/tpu_worker.sh gives to libtpu, so that what is planned is what runs.

    Nothing if LIBTPU_INIT_ARGS is set: libtpu then has the user's own from there.
    """
    if "LIBTPU_INIT_ARGS" in os.environ:
        return {}
    lines = FLAGS.read_text().splitlines()
    flags = (line.removeprefix("--") for line in lines if line.startswith("--"))
    return dict(flag.split("=", 1) for flag in flags)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences stderr: libtpu looks for a TPU of this machine first, and says that there is none.

    But it names there a flag that it does not know, and ends the process.
    """
    if os.environ.get("LIBTPU_INIT_ARGS"):
        yield
        return
    kept, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
