"""The steps of `synth2 rounds`: what each round writes, trains and evaluates.

round_0/      generator and vlm, on real pairs alone
round_K/      captions, synthetic (pairs), kept (a view of them), generator, vlm, evaluation
long/         synthetic_K and kept_K: the captions of round K, made and kept by round 0's models
long_R/       generator, vlm, evaluation: one long round in the place of R rounds
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.folder import MANIFEST
from synth2_jax.errors import UserError
from synth2_jax.evaluation.pair_scores import FilterConfig
from synth2_jax.experiments.experiment import Experiment
from synth2_jax.experiments.experiment_config import ExperimentConfig, check_left_open
from synth2_jax.files import read_json
from synth2_jax.stages import captions, evaluate, synthesize, train
from synth2_jax.stages import filter as filter_stage
from synth2_jax.stages.train import TrainConfig
from synth2_jax.training.metrics import read_metrics
from synth2_jax.training.optimizer import make_optimizer
from synth2_jax.training.train_state import Objective

MODELS = ("generator", "vlm")  # which a round trains, in this order
HELD_OUT, _REAL = "validation/loss", "data/real_examples"
_WORKDIR, _ROUND = "--workdir", "the round"
# What the steps of rounds fill in, besides `experiment_config.FILLED_IN`.
_FILLED_IN = {
    **{f"filter.{key}": _WORKDIR for key in ("folder", "generator", "vlm")},
    **{
        f"{section}.{key}": _ROUND
        for section in (*MODELS, *(f"round_{model}" for model in MODELS))
        for key in (
            *("pretrained", "init", "data.folders", "data.rates", "data.mixture", "data.seed"),
            *("train.seed", "validation.data.folders"),
        )
    },
}


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Settings of the rounds. The steps of one round are `round_generator.train.steps` and
    `round_vlm.train.steps`, and `filter.keep` is the share of its pairs that are kept.

    Attributes:
      rounds: how many, after the training on real pairs alone.
      real_share: share of real pairs in each batch of a round; the others are the round's kept
        pairs.
      tolerance: the rounds stop after one whose held-out real loss, of the generator or of the VLM,
        is above the lowest before by more than this share of it.
      long_round: whether two rounds or more are compared with one long round: on as many pairs, of
        the same captions, all made and kept by the models that real pairs alone trained, for as
        many steps.
    """

    rounds: int = 3
    real_share: float = 0.5
    tolerance: float = 0.1
    long_round: bool = True

    def __post_init__(self):
        config_lib.check_counts(self, "rounds")
        if not 0 < self.real_share < 1:
            raise UserError(f"real_share: found {self.real_share}, expected above 0 and below 1")
        if not self.tolerance >= 0:
            raise UserError(f"tolerance: found {self.tolerance}, expected at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundsExperimentConfig(ExperimentConfig):
    """The experiment's sections, and those of the rounds.

    Attributes:
      round_generator, round_vlm: training in a round, from the models of the round before.
      filter: which synthetic pairs are kept.
      rounds: how many rounds, and when they stop.
    """

    round_generator: TrainConfig
    round_vlm: TrainConfig
    filter: FilterConfig
    rounds: RoundsConfig = RoundsConfig()


class RoundSteps(Experiment):
    """An experiment that goes on in rounds; every step does nothing when it is done."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: str):
        super().__init__(config, workdir, RoundsExperimentConfig, arms={})
        check_left_open(config, _FILLED_IN)
        _check_splits(self._cfg)
        for model in MODELS:
            where = f"--config.round_{model}"
            cfg, objective = train.build(config[f"round_{model}"], where)
            make_optimizer(cfg.optimizer, cfg.train.steps, where)
            _check_held_out(self._models[model][0], f"--config.{model}")
            _check_held_out(cfg, where)
            if model == "vlm":
                for section, trained in (("vlm", self._models["vlm"][1]), ("round_vlm", objective)):
                    _check_filter(self._cfg.filter, trained, section)

    def base(self) -> None:
        """Trains all that the rounds start from, and evaluates the VLM."""
        self.tokenizer()
        self.language_model()
        self.pairs()
        for model in MODELS:
            self._train_model("round_0", model, model, {"real": self.real()}, {})
        self._evaluate("round_0")

    def round(self, number: int) -> None:
        """Writes, makes, keeps, trains and evaluates one round, from the round before."""
        name, before = f"round_{number}", f"round_{number - 1}"
        self._captions(number)
        self._pairs(number, before, f"{name}/synthetic", f"{name}/kept")
        self._train_on(name, before, {"kept": self.path(name, "kept")}, 1)
        self._evaluate(name)

    def long_round(self, num_rounds: int) -> str:
        """Trains one long round in the place of `num_rounds`; returns its name."""
        name, kept = f"long_{num_rounds}", {"kept_1": self.path("round_1", "kept")}
        for number in range(2, num_rounds + 1):
            self._pairs(number, "round_0", f"long/synthetic_{number}", f"long/kept_{number}")
            kept[f"kept_{number}"] = self.path("long", f"kept_{number}")
        self._train_on(name, "round_0", kept, num_rounds)
        self._evaluate(name)
        return name

    def held_out(self, name: str) -> dict[str, float]:
        """{model: loss on held-out real pairs} after a round, NaN where it was not finite."""
        losses = {model: self._last_row(name, model, HELD_OUT)[HELD_OUT] for model in MODELS}
        return {model: math.nan if loss is None else loss for model, loss in losses.items()}

    def drawn(self, name: str) -> float:
        """Share of real pairs among all that trained the VLM of a round."""
        last = self._last_row(name, "vlm", _REAL)
        return last[_REAL] / (last[_REAL] + last.get("data/synthetic_examples", 0))

    def _last_row(self, name: str, model: str, metric: str) -> dict[str, float | None]:
        """Returns the last row of a run's metrics that has this one."""
        folder = self.workdir / name / model
        path = folder / "metrics.jsonl"
        for row in reversed(read_metrics(path) if path.is_file() else []):
            if metric in row:
                return row
        raise UserError(f"{path}: holds no {metric}. Delete {folder} to train this model again")

    def scores(self, name: str) -> dict[str, Any]:
        return read_json(self._evaluation(name) / evaluate.RESULTS, "evaluate")

    def _evaluation(self, name: str) -> pathlib.Path:  # also for `cider_per_image` of a round
        return self.workdir / name / "evaluation"

    def _seed(self, number: int) -> int:
        """Returns a seed of 32 bits: another one for each round, and for each `config.seed`."""
        return (1000 * self.case.seed + number) % 2**32

    def _captions(self, number: int) -> None:
        name = f"round_{number}/captions"
        filled = {"language_model": self.path("language_model"), "seed": self._seed(number)}
        is_done = pathlib.Path(self.path(name), MANIFEST).exists
        self._run(captions, name, self.path(name), "captions", filled, is_done)

    def _pairs(self, number: int, models: str, synthetic: str, kept: str) -> None:
        """Makes pictures of a round's captions and keeps the pairs that fit best.

        What is there is checked against models and captions, once a process.
        """
        folder = self.path(synthetic)
        filled = {
            "generator": self.path(models, "generator"),
            "captions": self.path(f"round_{number}", "captions"),
            "seed": self._seed(number),
        }
        self._run(synthesize, synthetic, folder, "synthesize", filled)
        filled = {"folder": folder, **{model: self.path(models, model) for model in MODELS}}
        self._run(filter_stage, kept, self.path(kept), "filter", filled)

    def _train_on(self, name: str, before: str, kept: Mapping[str, str], num_rounds: int) -> None:
        """Trains both models on real and kept pairs, for the steps of so many rounds."""
        real_share = self._cfg.rounds.real_share
        rates = dict.fromkeys(kept, (1 - real_share) / len(kept))
        for model in MODELS:
            section = f"round_{model}"
            changed = {"data.rates": {"real": real_share, **rates}}
            if num_rounds > 1:
                changed["train.steps"] = num_rounds * self.config[section].train.steps
            start = {"init.from": self.path(before, model), "data.mixture": f"mixture_{name}"}
            folders = {"real": self.real(), **kept}
            self._train_model(name, model, section, folders, start, changed)

    def _train_model(
        self,
        name: str,
        model: str,
        section: str,
        folders: Mapping[str, str],
        start: Mapping[str, Any],
        changed: Mapping[str, Any] | None = None,
    ) -> None:
        number = int(name.rpartition("_")[2])
        filled = {
            "data.folders": folders,
            "validation.data.folders": {"validation": self.path("pairs", "validation")},
            "data.seed": self._seed(number),
            # Validation draws its masks by it: losses of two rounds are compared.
            "train.seed": self._seed(0),
            **(start or self._parts(model)),
        }
        self._train(f"{name}/{model}", section, filled, changed)

    def _evaluate(self, name: str) -> None:
        folder = self._evaluation(name)
        filled = {"vlm": self.path(name, "vlm"), "folder": self.path("pairs", "test")}
        is_done = functools.partial(self._is_evaluated, folder)
        self._run(evaluate, f"{name}/evaluation", str(folder), "evaluate", filled, is_done)


def _check_splits(cfg: ExperimentConfig) -> None:
    """Raises UserError unless all pairs are made that the rounds read."""
    found = cfg.tokenize.splits
    for split in ("real", "validation", "test"):
        # With a number of real pairs, these are made apart.
        if split not in found and not (split == "real" and cfg.real_pairs):
            raise UserError(
                f"--config.tokenize.splits: found {', '.join(found)}, expected {split} too: every "
                "round reads it"
            )


def _check_filter(cfg: FilterConfig, vlm: Objective, section: str) -> None:
    """Raises UserError where the pairs are scored by a language model that a VLM has not kept."""
    is_needed = "caption" in cfg.scores and cfg.caption.minus_language_model
    if is_needed and not vlm.is_frozen("language_model"):
        raise UserError(
            "--config.filter.caption.minus_language_model: found True, expected False where the "
            f"VLM trains its language model, as --config.{section}.model.freeze says"
        )


def _check_held_out(cfg: TrainConfig, where: str) -> None:
    """Raises UserError unless a training section measures the loss on held-out pairs."""
    needed = "the rounds are judged by the loss on held-out real pairs"
    if cfg.validation.data is None:
        raise UserError(f"{where}.validation.data: missing, expected a section: {needed}")
    if not cfg.train.eval_every:
        raise UserError(f"{where}.train.eval_every: found 0, expected at least 1: {needed}")
