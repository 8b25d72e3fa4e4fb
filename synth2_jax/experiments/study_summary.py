"""Estimates with intervals of a study, from the scores of single test pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from synth2_jax.experiments.arms import BOUND, MIXED, REAL
from synth2_jax.experiments.experiment import Experiment
from synth2_jax.experiments.experiment_config import Case
from synth2_jax.experiments.gains import (
    PerImage,
    Statistic,
    estimates,
    gain,
    gap,
    gap_closed,
    pairs_factor,
)


def run_name(arm: str, case: Case, own: int) -> str:
    """ARM/SEED, or ARM/SEED/nNUMBER if the number of real pictures is not the config's `own`."""
    end = "" if case.real_pairs == own else f"/n{case.real_pairs}"
    return f"{arm}/{case.seed}{end}"


def parse_run_name(name: str, own: int) -> tuple[str, Case]:
    """The arm and the case that a run's name says."""
    arm, seed, *number = name.split("/")
    return arm, Case(int(seed), int(number[0][1:]) if number else own)


def of_seeds(runs: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """The runs of these seeds: tables, gains and page must not come from different ones."""
    return {name: run for name, run in runs.items() if parse_run_name(name, 0)[1].seed in seeds}


def summarise(experiment: Experiment, runs: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates, by ARM or ARM/nNUMBER, of the runs whose test pictures were scored one by one.

    Returns "gains" over real only; "gap_closed", the share of the gap between real only and true
    pictures that synthetic ones close, None unless the interval of the gap is above 0;
    "pairs_factor", how many times the real pictures real-only needs to score as high, where several
    numbers were trained. Each is by part of the test pictures, see `gains.estimates`.
    "real_pictures" is the config's own number.
    """
    own = experiment.case.real_pairs
    scored: dict[tuple[str, int], dict[int, PerImage]] = {}
    for name, run in runs.items():
        if "cider" not in run:  # of a generator
            continue
        arm, case = parse_run_name(name, own)
        here = experiment.at(seed=case.seed, real_pairs=case.real_pairs)
        if per_image := here.cider_per_image(arm):
            scored.setdefault((arm, case.real_pairs), {})[case.seed] = per_image

    def of(statistic: Statistic, *keys: tuple[str, int]) -> dict[str, Any] | None:
        """The estimates from the seeds that all have; None without such seeds."""
        common = set.intersection(*(set(scored.get(key, ())) for key in keys))
        if not common:
            return None
        return estimates(statistic, [[scored[key][s] for s in sorted(common)] for key in keys])

    numbers = sorted(number for arm, number in scored if arm == REAL)
    gains, factors = {}, {}
    for arm, number in sorted(key for key in scored if key[0] != REAL):
        name = arm if number == own else f"{arm}/n{number}"
        gains[name] = of(gain, (REAL, number), (arm, number))
        if len(numbers) > 1:
            curve = [(REAL, n) for n in numbers]
            found = of(pairs_factor(numbers, number), *curve, (arm, number)) or {}
            largest = numbers[-1] / number
            factors[name] = {part: e and {**e, "largest": largest} for part, e in found.items()}

    def share_closed(*keys: tuple[str, int]) -> dict[str, Any] | None:
        """The share of the gap by part: None where there may be no gap, as a share needs one."""
        if not (gaps := of(gap, *keys)):
            return None
        there = {part: found and found["low"] > 0 for part, found in gaps.items()}
        return {
            part: found if there[part] else None for part, found in of(gap_closed, *keys).items()
        }

    at = own if any(number == own for _, number in scored) else min(numbers, default=own)
    return {
        "real_pictures": own,
        "gains": {name: found for name, found in gains.items() if found},
        "gap_closed": share_closed(*((arm, at) for arm in (REAL, MIXED, BOUND))),
        "pairs_factor": {name: found for name, found in factors.items() if found},
    }
