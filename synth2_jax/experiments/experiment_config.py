"""The config of an experiment: a section for each step, and what the steps fill in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from synth2_jax import config as config_lib
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError
from synth2_jax.evaluation.scorer import EvaluateConfig
from synth2_jax.pages.numbers import flat
from synth2_jax.stages.captions import CaptionsConfig
from synth2_jax.stages.tokenize import TokenizeConfig
from synth2_jax.stages.train import TrainConfig
from synth2_jax.synthesis.token_generator import SynthesizeConfig

# What the steps fill in, and what it comes from. A value of the user's there would be overwritten
# without a word, so it is refused.
_WORKDIR, _SEED = "--workdir", "--config.seed"
_SEEDS = "--config.seed, or --config.study.seeds of `synth2 study`,"
_ARM = "the arm, of --config.study.arms of `synth2 study`"
FILLED_IN = {
    "tokenizer.data.seed": _SEED,
    "tokenizer.train.seed": _SEED,
    "language_model.data.seed": _SEED,
    "language_model.train.seed": _SEED,
    "tokenize.tokenizer": _WORKDIR,
    "captions.language_model": _WORKDIR,
    "captions.seed": _SEED,
    "generator.pretrained.tokenizer": _WORKDIR,
    "generator.data.folders": _WORKDIR,
    "generator.data.seed": _SEEDS,
    "generator.train.seed": _SEEDS,
    "synthesize.generator": _WORKDIR,
    "synthesize.captions": _WORKDIR,
    "synthesize.seed": _SEEDS,
    "vlm.pretrained.tokenizer": _WORKDIR,
    "vlm.pretrained.language_model": _WORKDIR,
    "vlm.init.from": _ARM,
    "vlm.data.folders": _ARM,
    "vlm.data.rates": _ARM,
    "vlm.data.mixture": _ARM,
    "vlm.data.seed": _SEEDS,
    "vlm.train.seed": _SEEDS,
    "vlm.validation.captions.folder": _WORKDIR,
    "evaluate.vlm": _WORKDIR,
    "evaluate.folder": _WORKDIR,
}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """A section for each step; paths in them are filled in by the steps.

    Attributes:
      seed: of every step; two seeds are two independent runs of the whole.
      real_pairs: number of real pictures, each with all its captions, that generator and VLM see:
        the first so many of the split `real`; 0 for as many as `tokenize` reads.
      tiny: whether everything is so short that its numbers mean nothing.
    """

    tokenizer: TrainConfig
    language_model: TrainConfig
    tokenize: TokenizeConfig
    captions: CaptionsConfig
    generator: TrainConfig
    synthesize: SynthesizeConfig
    vlm: TrainConfig
    evaluate: EvaluateConfig
    seed: int = 0
    real_pairs: int = 0
    tiny: bool = False

    def __post_init__(self):
        config_lib.check_seeds(self, "seed")
        check_real_pairs(self)
        if "real" in self.tokenize.splits and (self.tokenize.max_images or 0) > dataset.MOST_REAL:
            raise UserError(
                f"tokenize.max_images: found {self.tokenize.max_images}, expected at most "
                f"{dataset.MOST_REAL}, the pictures that the split `real` of Scenes has"
            )


def check_real_pairs(config: Any) -> None:
    """Raises UserError unless the field `real_pairs`, or each element, is a number of pictures."""
    value = config.real_pairs
    for number in value if isinstance(value, tuple) else (value,):
        if not 0 <= number <= dataset.MOST_REAL:
            raise UserError(
                f"real_pairs: found {number}, expected 0 (all that `tokenize` reads) to "
                f"{dataset.MOST_REAL}, the pictures that the split `real` of Scenes has"
            )


@dataclasses.dataclass(frozen=True)
class Case:
    """A seed and a number of real pictures, 0 for all: what one comparison of arms shares."""

    seed: int = 0
    real_pairs: int = 0


def check_left_open(
    config: ml_collections.ConfigDict | Mapping[str, Any],
    filled_in: Mapping[str, str] = FILLED_IN,
    where: str = "--config",
) -> None:
    """Raises UserError when a key of `filled_in` holds more than 0 or ""."""
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    for key, value in flat(plain):
        for filled, source in filled_in.items():
            if value and f"{key}.".startswith(f"{filled}."):
                raise UserError(f"{where}.{key}: found {value!r}, expected none: {source} decides")
