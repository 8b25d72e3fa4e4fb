"""Names and colours of a study's arms, as its pages show them."""

from collections.abc import Sequence

REAL, MIXED = "real", "real_synthetic"
ARM_NAMES = {
    REAL: "real only",
    MIXED: "real + synthetic",
    "synthetic": "synthetic only",
    "captions_only": "blank images",
    "shuffled": "shuffled images",
    "rendered": "true images",
}


def ordered_arms(*trees) -> list[str]:
    """Names of the arms in any of these dicts, the two that are compared first."""
    found = dict.fromkeys(name for tree in trees for name in (tree or {}))
    return [a for a in (REAL, MIXED) if a in found] + [a for a in found if a not in (REAL, MIXED)]


def arm_name(arm: str) -> str:
    """The arm as a page names it."""
    return ARM_NAMES.get(arm) or arm.replace("_", " ")


def arm_colour(arm: str, arms: Sequence[str]) -> int:
    """Index of the arm's colour and marker; the compared arms always have the same."""
    others = [a for a in arms if a not in (REAL, MIXED)]
    return {REAL: 0, MIXED: 1}.get(arm, 2 + others.index(arm) % 4 if arm in others else 2)
