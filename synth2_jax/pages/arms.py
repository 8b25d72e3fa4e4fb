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
    "text_only": "embedding from text",
    "real_longer": "real only, equal compute",
    "two_stages": "two stages, one run",
    "pretrain_then_mix": "two stages, two runs",
    "natural": "classes asked for as in real",
    "real_captions": "real captions, new images",
    "pixel": "through pixels",
    "lora": "LoRA in the language model",
    "whole": "language model trained too",
}


def ordered_arms(*trees) -> list[str]:
    """Names of the arms in any of these dicts, the two that are compared first."""
    found = dict.fromkeys(name for tree in trees for name in (tree or {}))
    return [a for a in (REAL, MIXED) if a in found] + [a for a in found if a not in (REAL, MIXED)]


def named_arms(arms: Sequence[str]) -> list[tuple[str, int, str]]:
    """Each arm with its colour and its name on a page; the compared arms' colours never change."""
    others = [arm for arm in arms if arm not in (REAL, MIXED)]
    colours = {REAL: 0, MIXED: 1} | {arm: 2 + i % 4 for i, arm in enumerate(others)}
    return [(arm, colours[arm], ARM_NAMES.get(arm) or arm.replace("_", " ")) for arm in arms]
