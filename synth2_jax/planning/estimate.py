"""A roofline: how long a step would take if the chip did one thing at its best and hid the rest."""

import dataclasses

from synth2_jax.planning.topologies import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds that each resource of a chip is busy with a step at its peak rate."""

    compute: float  # compiled FLOPs over the peak of bfloat16
    memory: float  # bytes to and from HBM over its bandwidth
    network: float  # bytes that collectives send over the bandwidth of all links

    @property
    def seconds(self) -> float:
        """The busiest resource's; a real step takes longer."""
        return max(self.compute, self.memory, self.network)

    @property
    def bound_by(self) -> str:
        """The busiest resource."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    def mfu(self, model_flops: float, chip: Chip) -> float:
        """Model FLOPs of a chip's share of the step / (seconds x peak): model FLOPs utilization."""
        return model_flops / (self.seconds * chip.flops)


def estimate(chip: Chip, flops: float, hbm_bytes: float, network_bytes: float) -> Estimate:
    """Returns that of one chip and one step."""
    return Estimate(
        flops / chip.flops, hbm_bytes / chip.hbm_bandwidth, network_bytes / chip.ici_bandwidth
    )
