"""The arms of a comparison: what each of them trains a VLM on, and for how long.

All arms share the tokenizer. Unless they say otherwise, they also share the frozen language model
and the number of steps.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError, nearest
from synth2_jax.pages.numbers import flat

# Pictures that a pair may have, see `pictures`; all but "real" are those of synthetic captions.
SOURCES = ("real", "synthetic", "blank", "shuffled", "rendered", "text_only")
CAPTION_SETS = ("balanced", "natural", "real")  # see `caption_sets`
REAL, MIXED, BOUND = "real", "real_synthetic", "rendered"
GROUPS = "optimizer.groups"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train the VLM.

    Attributes:
      rates: {source of pairs: share of each batch}; the sources are real, synthetic, and in place
        of the generator's pictures blank, shuffled, rendered (true) and text_only ones.
      title: its name in tables; "" for its name.
      captions: those of the synthetic pairs. balanced: the same number for each class. natural: as
        many asked of a class as real captions name it; the language model chooses what else is in
        them. real: the captions of the real pairs.
      real_first: share of the steps that see real pairs alone, before the mixture.
      two_runs: whether those steps are a run of their own, from which the second one starts with a
        fresh optimizer.
      equal_compute: whether it trains for as many steps more as generator and synthesis cost FLOPs.
      vlm: keys of the section `vlm` that differ, such as {"model": {"image_space": "pixel"}}. Its
        `optimizer.groups` come after the section's own.
    """

    rates: Mapping[str, float]
    title: str = ""
    captions: str = "balanced"
    real_first: float = 0.0
    two_runs: bool = False
    equal_compute: bool = False
    vlm: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        config_lib.check_choices(self, captions=CAPTION_SETS)
        if not self.rates:
            raise UserError("rates: found none, expected {source: share}")
        for source, rate in self.rates.items():
            if source not in SOURCES:
                raise UserError(f"rates: unknown source {source!r}; {nearest(source, SOURCES)}")
            if not 0 < rate < math.inf:
                raise UserError(f"rates.{source}: found {rate}, expected a number above 0")
        if not 0 <= self.real_first < 1:
            raise UserError(f"real_first: found {self.real_first}, expected 0 to less than 1")
        if self.two_runs and not self.real_first:
            raise UserError("two_runs: found true with `real_first`=0, expected a share of steps")

    @property
    def makes_pictures(self) -> bool:
        """Returns whether some of its pairs have pictures of synthetic captions."""
        return set(self.rates) != {"real"}

    def changed(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """{dotted key: value} that this arm changes in the section `vlm`."""
        changed = dict(flat(json.loads(config_lib.to_json(self.vlm))))
        if groups := changed.get(GROUPS):
            changed[GROUPS] = (*section.get("optimizer", {}).get("groups", ()), *groups)
        return changed

    def first_steps(self, steps: int) -> int:
        """The steps, of all, that see real pairs alone before the mixture."""
        return round(self.real_first * steps)

    def rates_at(self, switch: int) -> dict[str, Any]:
        """The rates of a run that sees real pairs alone before the step `switch`."""
        if not switch:
            return dict(self.rates)
        before = dict.fromkeys({"real": None, **self.rates}, 0.0) | {"real": 1.0}
        return {
            source: ((switch - 1, rate), (switch, self.rates.get(source, 0.0)))
            for source, rate in before.items()
        }


_HALF = {"real": 0.5, "synthetic": 0.5}
_SLOW_LANGUAGE_MODEL = {"pattern": "^vlm/language_model/", "learning_rate_factor": 0.1}
ARMS = {
    REAL: Arm({"real": 1.0}, "real only"),
    MIXED: Arm(_HALF, "real + synthetic"),
    "synthetic": Arm({"synthetic": 1.0}, "synthetic only"),
    "captions_only": Arm({"real": 0.5, "blank": 0.5}, "real + synthetic captions, blank image"),
    "shuffled": Arm({"real": 0.5, "shuffled": 0.5}, "real + synthetic, images shuffled"),
    "text_only": Arm(
        {"real": 0.5, "text_only": 0.5}, "real + synthetic captions, embedding made from the text"
    ),
    BOUND: Arm(
        {"real": 0.5, "rendered": 0.5}, "real + synthetic captions, true images (upper bound)"
    ),
    "real_longer": Arm({"real": 1.0}, "real only, equal compute", equal_compute=True),
    "two_stages": Arm(_HALF, "real, then real + synthetic (one run)", real_first=0.5),
    "pretrain_then_mix": Arm(
        _HALF, "real, then real + synthetic (two runs)", real_first=0.5, two_runs=True
    ),
    "natural": Arm(
        _HALF, "real + synthetic, classes asked for as often as real", captions="natural"
    ),
    "real_captions": Arm(_HALF, "real + new images of the real captions", captions="real"),
    "pixel": Arm(
        _HALF, "real + synthetic, through pixels", vlm={"model": {"image_space": "pixel"}}
    ),
    "lora": Arm(
        _HALF,
        "real + synthetic, LoRA in the language model",
        vlm={"model": {"vlm": {"lora": {"rank": 8}}}},
    ),
    "whole": Arm(
        _HALF,
        "real + synthetic, language model trained too",
        vlm={
            "model": {"freeze": ("^tokenizer/",)},
            "optimizer": {"groups": (_SLOW_LANGUAGE_MODEL,)},
        },
    ),
}
