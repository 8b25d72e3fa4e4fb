"""Time of a step: at the very least, and by its program's own schedule."""

import dataclasses
from collections.abc import Mapping

from synth2_jax.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds that a chip's resources are busy at their peak, and those of the schedule by kind."""

    compute: float  # compiled FLOPs over the peak of bfloat16
    memory: float  # bytes to and from HBM over its bandwidth
    network: float  # of all collectives, one after the other, over the links that each can use
    by_kind: Mapping[str, float]  # see `schedule.seconds_by_kind`; empty for a program without one

    @property
    def at_best(self) -> float:
        """The busiest resource's seconds: a step that hides all the rest takes as long."""
        return max(self._resources.values())

    @property
    def seconds(self) -> float:
        """Seconds of the schedule: what its program overlaps overlaps, the rest adds up."""
        return max(self.at_best, sum(self.by_kind.values()))

    @property
    def bound_by(self) -> str:
        """Kind that most of the seconds go to."""
        is_scheduled = sum(self.by_kind.values()) >= self.at_best
        shares = self.by_kind if is_scheduled else self._resources
        return max(shares, key=shares.__getitem__)

    def mfu(self, model_flops: float, chip: Chip) -> float:
        """Model FLOPs of a chip's share of the step / (seconds x peak): model FLOPs utilization."""
        return model_flops / (self.seconds * chip.flops)

    @property
    def _resources(self) -> dict[str, float]:
        return {"compute": self.compute, "memory": self.memory, "network": self.network}
