"""Estimates with their intervals, {"value", "low", "high"}, as pages and tables write them."""

from collections.abc import Iterable, Mapping

from synth2_jax.pages.numbers import DASH, finite, gain, number, signed, signed_percent

_PARTS = (
    ("cider_unseen", "Zero-shot, on combinations that no real pair shows"),
    ("cider", "On the whole test set"),
)
_UNKNOWN, _TOO_CLOSE = "No verdict without intervals", "Too close to call"
_HELP, _HARM = "Yes, synthetic pairs help", "No, synthetic pairs harm"


def gain_text(gain: Mapping | None) -> str:
    """{"value": 0.59, "low": 0.41, "high": 0.77} -> "+59.0 % [+41.0, +77.0]"."""
    value, low, high = _of(gain)
    if value is None:
        return DASH
    bounds = f" [{signed(100 * low)}, {signed(100 * high)}]" if None not in (low, high) else ""
    return signed_percent(value) + bounds


def share_text(share: Mapping | None) -> str:
    """{"value": 0.9, "low": 0.7, "high": 1.2} -> "90 % [70, 120]"."""
    value, low, high = _of(share)
    if value is None:
        return DASH
    bounds = (
        f" [{number(100 * low, 0)}, {number(100 * high, 0)}]" if None not in (low, high) else ""
    )
    return f"{number(100 * value, 0)} %{bounds}"


def factor_text(factor: Mapping | None) -> str:
    """{"value": 4.2, "low": 3.1, "high": None, "largest": 16} -> "4.2x [3.1, >16]".

    None is beyond `largest`, the factor of the largest number that was measured.
    """
    if not factor:
        return DASH
    largest = finite(factor.get("largest"))
    value, low, high = (
        f">{number(largest, 0)}" if bound is None else number(bound) for bound in _of(factor)
    )
    return f"{value}x" if low == high else f"{value}x [{low}, {high}]"


def answer(real: Mapping, mixed: Mapping, gains: Mapping | None = None) -> str:
    """Says whether synthetic pairs help, zero-shot first, as far as the interval allows.

    `real` and `mixed` have the scores of both arms, `gains` their estimates by the same names.
    """
    if None in (finite(real.get("cider")), finite(mixed.get("cider"))):
        return "No answer: both arms are not scored."
    verdicts, texts, estimates = [], [], []
    for name, where in _PARTS:
        before, after = finite(real.get(name)), finite(mixed.get(name))
        if before is None or after is None:  # no such test pictures
            continue
        found = (gains or {}).get(name) or {"value": gain(after, before)}
        estimates.append(found)
        verdicts.append(_verdict(found))
        chance = ", which may be chance" if verdicts[-1] == _TOO_CLOSE else ""
        texts.append(
            f"{where}, CIDEr is {number(after)} with real + synthetic pairs and {number(before)} "
            f"with real pairs only ({gain_text(found)}{chance})."
        )
    verdict, *others = verdicts
    brackets = "" if set(verdicts) == {_UNKNOWN} else " In brackets: the 95 % interval."
    if brackets and any(found.get("seeds") == 1 for found in estimates):
        brackets = f" In brackets: the 95 % interval over {drawn_over(estimates)}."
    if _HARM in others and verdict != _HARM:
        verdict += " zero-shot, but synthetic pairs harm on the whole test set"
    return f"{verdict}. {' '.join(texts)}{brackets}"


def drawn_over(estimates: Iterable[Mapping | None]) -> str:
    """Says what the intervals of these estimates are over: one seed shows no spread of seeds."""
    numbers = {found.get("seeds") for found in estimates if found}
    if 1 not in numbers:
        return "seeds and test pictures"
    alone = "over test pictures alone: one seed does not show how much seeds differ"
    if numbers == {1}:
        return alone.removeprefix("over ")
    return f"seeds and test pictures; with one seed {alone}"


def _verdict(estimate: Mapping) -> str:
    """Returns the verdict that an interval allows."""
    _, low, high = _of(estimate)
    if low is None or high is None:
        return _UNKNOWN
    if low > 0:
        return _HELP
    return _HARM if high < 0 else _TOO_CLOSE


def _of(estimate: Mapping | None) -> tuple[float | None, float | None, float | None]:
    found = estimate or {}
    return finite(found.get("value")), finite(found.get("low")), finite(found.get("high"))
