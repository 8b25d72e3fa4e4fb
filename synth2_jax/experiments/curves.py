"""Learning curves: the metrics of runs, and when one arm reaches another."""

import pathlib

from synth2_jax.training import metrics


def curve(folder: str, name: str) -> list[list[float]]:
    """[[step, value], ...] of one of a run's metrics."""
    rows = metrics.read_metrics(pathlib.Path(folder) / "metrics.jsonl")
    return [[row["step"], row[name]] for row in rows if name in row]


def steps_to_baseline(
    baseline: list[list[float]], other: list[list[float]]
) -> dict[str, float] | None:
    """When the other arm first reaches the baseline's last score; None if it never does."""
    if not baseline or not other:
        return None
    last_step, target = baseline[-1]
    for step, value in other:
        if value >= target:
            return {"steps": step, "share": step / last_step}
    return None
