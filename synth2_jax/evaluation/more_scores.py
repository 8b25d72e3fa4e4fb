"""Scores that are not computed unless asked for: one that fails costs nothing but itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from synth2_jax.errors import UserError
from synth2_jax.scoring.captions import DocumentFrequency, Pairs, as_printed, cider_plain
from synth2_jax.scoring.meteor import meteor

MORE_SCORES = ("cider_plain", "meteor")


def more_score(
    name: str,
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    frequency: DocumentFrequency | None = None,
) -> dict[str, float | str]:
    """{name, "provenance of NAME"} of one of MORE_SCORES, times 100 as papers print it."""
    pairs = Pairs(captions, references)
    score = meteor(pairs) if name == "meteor" else cider_plain(pairs, frequency)
    found = as_printed(score.provenance, **{name: score.corpus})
    return found | {f"provenance of {name}": found.pop("provenance")}


def each_alone(
    scorers: Mapping[str, Callable[[], Mapping[str, Any]]],
) -> tuple[dict[str, Any], list[str]]:
    """(the results of all scorers, one line for each that failed); the names begin the lines."""
    results, failed = {}, []
    for name, score in scorers.items():
        try:
            results |= score()
        except Exception as error:  # whatever a user's function or another program does
            logging.info("%s failed", name, exc_info=True)
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            failed.append(f"{name} failed ({kind}{' '.join(str(error).split())})")
    return results, failed
