"""The steps that the demo and the study share: from nothing to trained and scored VLMs.

Every step leaves its result in a folder of the workdir and does nothing when it is there already,
so an interrupted run goes on where it stopped; `notes` keeps apart results of different configs.
"""

import copy
import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.classes import load_classes
from synth2_jax.caption_writing.folder import CAPTIONS, MANIFEST
from synth2_jax.data import records
from synth2_jax.domains.scenes import dataset, oracle, renderer
from synth2_jax.errors import UserError
from synth2_jax.evaluation.caption_sets import BUILT_IN, read_captions
from synth2_jax.experiments import caption_sets, pictures
from synth2_jax.experiments.arms import ARMS, Arm
from synth2_jax.experiments.compute import equal_compute
from synth2_jax.experiments.curves import curve
from synth2_jax.experiments.experiment_config import Case, ExperimentConfig, check_left_open
from synth2_jax.experiments.step_runner import StepRunner, changed_section
from synth2_jax.files import read_json, read_json_lines
from synth2_jax.loading import tokenizing
from synth2_jax.loading.run import Trained
from synth2_jax.side_files import parse_as
from synth2_jax.stages import captions, evaluate, synthesize, tokenize, train
from synth2_jax.stages.evaluate import PER_IMAGE, RESULTS
from synth2_jax.stages.train import TrainConfig
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_state import Objective

NUM_READ = 1024  # synthetic pictures that the oracle reads
_SEE_REAL = ("tokenize", "generator", "synthesize", "vlm", "evaluate")  # sections


@dataclasses.dataclass(frozen=True)
class _Scores:
    """The scores of an evaluation that demo and study compare; None of no pictures."""

    cider: float | None
    cider_seen: float | None
    cider_unseen: float | None
    bleu4: float | None
    rouge_l: float | None
    objects_right: float | None


SCORES = tuple(field.name for field in dataclasses.fields(_Scores))


@dataclasses.dataclass(frozen=True)
class _PerImage:
    """A row of per_image.jsonl; keys of Scenes are SPLIT-NUMBER."""

    key: str
    cider: float

    def __post_init__(self):
        if not re.fullmatch(r"\w+-\d{1,9}", self.key, re.ASCII):
            raise ValueError(f"key is {self.key!r:.40}, expected SPLIT-NUMBER")


class Experiment(StepRunner):
    """One workdir and one config with a section for each step.

    Every section is built at once: a mistake in the last must not come to light hours later.

    Args:
      config: what `config_class` holds.
      workdir: every step has a folder in it.
      config_class: ExperimentConfig, or one with sections more.
      arms: what the VLM may be trained on, by name.
      share_generator: all seeds sample from one generator, each with noise of its own.

    Attributes:
      case: seed and number of real pictures of the steps; `at` chooses others than the config's.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: str,
        config_class: type[ExperimentConfig] = ExperimentConfig,
        *,
        arms: Mapping[str, Arm] = ARMS,
        share_generator: bool = False,
    ):
        super().__init__(config, workdir)
        cfg = config_lib.build(config_class, config)
        check_left_open(config)
        self._models = {}
        for name in ("tokenizer", "language_model", "generator", "vlm"):
            self._models[name] = of_step, _ = train.build(config[name], f"--config.{name}")
            make_optimizer(of_step.optimizer, of_step.train.steps, f"--config.{name}")
        self._all_real = cfg.tokenize.max_images or dataset.SPLITS["real"]
        self._cfg, self._arms, self._share_generator = cfg, arms, share_generator
        self.case = self._configured = Case(cfg.seed, cfg.real_pairs or self._all_real)
        self._made: set[str] = set()  # folders of pairs that this process has checked
        self._per_image: dict[pathlib.Path, dict[str, float]] = {}  # read once
        self._vlms = {name: self._built(name, arm) for name, arm in arms.items()}

    def _built(self, name: str, arm: Arm) -> tuple[TrainConfig, Objective]:
        """Builds an arm's section `vlm`, and checks each of its runs with its optimizer."""
        changed, where = arm.changed(self.config.vlm), f"arm {name}: --config.vlm"
        check_left_open({"vlm": arm.changed({})}, where=where.removesuffix(".vlm"))
        section = changed_section(self.config.vlm, changed, where)
        built = train.build(section, where) if changed else self._models["vlm"]
        steps = built[0].train.steps
        first = arm.first_steps(steps)
        if arm.real_first and not 0 < first < steps:
            found = f"found {arm.real_first}, which is {first} of {steps} steps"
            raise UserError(f"arm {name}: real_first: {found}, expected 1 to {steps - 1} steps")
        runs = ((first, 0), (steps - first, 0)) if arm.two_runs else ((steps, first),)
        for run in runs:
            section = changed_section(self.config.vlm, self._changed(arm, *run), where)
            optimizer = config_lib.build(OptimizerConfig, section.optimizer, f"{where}.optimizer")
            make_optimizer(optimizer, run[0], where)
        return built

    def at(self, *, seed: int | None = None, real_pairs: int | None = None) -> "Experiment":
        """The same experiment with another seed, another number of real pictures (0: all), or both.

        Its steps have their own folders, see `named`.
        """
        other = copy.copy(self)
        other.case = Case(
            self.case.seed if seed is None else seed,
            self.case.real_pairs if real_pairs is None else real_pairs or self._all_real,
        )
        return other

    def named(self, name: str) -> str:
        """The name of a step or folder of this case: "vlm_real" or "vlm_real_n94_seed1"."""
        if self.case.real_pairs != self._configured.real_pairs:
            name += f"_n{self.case.real_pairs}"
        return name if self.case.seed == self._configured.seed else f"{name}_seed{self.case.seed}"

    def _of_all_seeds(self) -> "Experiment":
        """The case with the config's seed, for what seeds share."""
        return self.at(seed=self._configured.seed)

    def tokenizer(self) -> Trained:
        return self._train("tokenizer", "tokenizer", _seeds(self._configured.seed))

    def language_model(self) -> Trained:
        return self._train("language_model", "language_model", _seeds(self._configured.seed))

    def pairs(self) -> None:
        """Tokenizes the real pairs and the test pictures."""
        splits = tuple(self.config.tokenize.splits)
        if self._cfg.real_pairs:  # the other splits have a number of their own
            splits = tuple(split for split in splits if split != "real")
        if splits:
            self._tokenize("tokenize", self.path("pairs"), {"splits": splits})
        self.real()

    def real(self) -> str:
        """The real pairs of this case; returns their folder."""
        number, step, folder = self.case.real_pairs, "tokenize", self.path("pairs")
        if number != self._configured.real_pairs:
            step, folder = f"tokenize_n{number}", self.path("pairs", f"n{number}")
        if step != "tokenize" or self._cfg.real_pairs:
            self._tokenize(step, folder, {"splits": ("real",), "max_images": number})
        return str(pathlib.Path(folder, "real"))

    def _tokenize(self, step: str, folder: str, filled: Mapping[str, Any]) -> None:
        """Tokenizes splits; what is there is checked, once a process."""
        if (made := f"{folder} {filled['splits']}") not in self._made:
            filled = {"tokenizer": self.path("tokenizer"), **filled}
            self._run(tokenize, step, folder, "tokenize", filled)
            self._made.add(made)

    def captions(self, name: str = "balanced") -> str:
        """The captions that get synthetic pictures, see `Arm`; returns their folder."""
        step = "captions" if name == "balanced" else self._of_all_seeds().named(f"captions_{name}")
        folder = self.path(step)
        is_done = pathlib.Path(folder, MANIFEST).exists
        filled = {"language_model": self.path("language_model"), "seed": self._configured.seed}
        if name == "real":
            if not is_done():
                number, seed = len(self.written_captions()), self._configured.seed
                chosen = caption_sets.sample(self.real_captions(), number, seed)
                caption_sets.write_captions(folder, chosen, "real pairs")
            return folder
        if name == "natural" and not is_done():
            given = self.config.captions.get("classes") or "scenes"
            classes, total = load_classes(given, BUILT_IN), len(self.written_captions())
            quotas = caption_sets.natural_quotas(self.real_captions(), classes, total)
            filled |= {"classes": tuple(quotas), "quotas": quotas}
        self._run(captions, step, folder, "captions", filled, is_done)
        return folder

    def written_captions(self, name: str = "balanced") -> list[str]:
        return read_captions(pathlib.Path(self.captions(name), CAPTIONS))

    def real_captions(self) -> list[str]:
        return [pair.caption for pair in records.read_pairs(self.real())]

    def _parts(self, model: str) -> dict[str, str]:
        """Returns what a new model is built on; a checkpoint that it starts from has it all."""
        names = ("tokenizer", "language_model") if model == "vlm" else ("tokenizer",)
        return {f"pretrained.{name}": self.path(name) for name in names}

    def generator(self) -> Trained:
        """Trained on the real pairs that the VLM has too."""
        here = self._of_generator()
        filled = {
            **self._parts("generator"),
            "data.folders": {"real": self.real()},
            **_seeds(here.case.seed),
        }
        return self._train(here.named("generator"), "generator", filled)

    def _of_generator(self) -> "Experiment":
        """The case whose generator this one samples from."""
        return self._of_all_seeds() if self._share_generator else self

    def synthesize(self, captions: str = "balanced") -> str:
        """The generator's pictures of a caption set, as tokens; returns the folder.

        What is there is checked against generator and captions, once a process.
        """
        of_set = "" if captions == "balanced" else f"_{captions}"
        folder = self.path("pairs", self.named(f"synthetic{of_set}"))
        if folder in self._made:
            return folder
        self.generator()
        filled = {
            "generator": self.path(self._of_generator().named("generator")),
            "captions": self.captions(captions) if of_set else self.path("captions"),
            "seed": self.case.seed,
        }
        step = self.named(f"synthesize{of_set}")
        self._run(synthesize, step, folder, "synthesize", filled)
        self._made.add(folder)
        return folder

    def read_synthetic(self) -> tuple[list[str], np.ndarray, list[renderer.Scene]]:
        """Captions of a sample of the synthetic pairs, their pictures, and what the oracle sees.

        Only here are these tokens decoded to pixels u8[num, H, W, 3].
        """
        pairs = list(records.read_pairs(self.synthesize()))
        chosen = np.random.default_rng(0).permutation(len(pairs))[:NUM_READ]
        tokens = np.stack([pairs[i].image_tokens for i in chosen])
        images = tokenizing.decode_images(self.tokenizer(), tokens)
        return [pairs[i].caption for i in chosen], images, oracle.read(images)

    def repaired(self, name: str, captions: str = "balanced") -> str:
        """The synthetic captions with other pictures, see `pictures`; returns the folder."""
        of_set = "" if captions == "balanced" else f"_{captions}"
        folder = self.path("pairs", self.named(f"{name}{of_set}"))
        synthetic = self.synthesize(captions)  # before all: under another config it refuses
        if not pathlib.Path(folder, records.MANIFEST).exists():
            made_by = self.tokenizer(), self.case.seed, self.real()
            pictures.repair(name, synthetic, folder, *made_by)
        return folder

    def vlm_steps(self, name: str) -> int:
        """The training steps of an arm, of both of its runs together."""
        vlm, generator = self._vlms[name], self._models["generator"]
        steps = vlm[0].train.steps
        if not self._arms[name].equal_compute:
            return steps
        captions = len(self.written_captions())
        return math.ceil(steps * equal_compute(vlm, generator, self._cfg.synthesize, captions))

    def vlm(self, name: str) -> Trained:
        """Trains one arm, in one run or two."""
        arm, steps = self._arms[name], self.vlm_steps(name)
        first = arm.first_steps(steps)
        if not arm.two_runs:
            return self._vlm(name, arm, arm.rates_at(first), steps, restart=first)
        self._vlm(f"{name}_first", arm, {"real": 1.0}, first)
        start = {"init.from": self.path(self.vlm_name(f"{name}_first"))}
        return self._vlm(name, arm, dict(arm.rates), steps - first, start)

    def _changed(self, arm: Arm, steps: int, restart: int) -> dict[str, Any]:
        """{dotted key: value} of the section `vlm` that one run of an arm changes."""
        changed = arm.changed(self.config.vlm)
        own = changed_section(self.config.vlm, changed)
        if steps != own.train.steps:
            changed["train.steps"] = steps
        if restart:
            changed["optimizer.restarts"] = (restart,)
        if restart or steps != own.train.steps:
            shortest = min(steps, restart, steps - restart) if restart else steps
            warmup_steps = own.optimizer.get("warmup_steps", 0)
            changed["optimizer.warmup_steps"] = min(warmup_steps, shortest // 2)
        if steps > own.train.steps and own.train.get("eval_every"):  # as many points
            every = own.train.eval_every * steps / own.train.steps
            changed["train.eval_every"] = max(1, round(every))
        return changed

    def _vlm(
        self,
        name: str,
        arm: Arm,
        rates: Mapping[str, Any],
        steps: int,
        start: Mapping[str, str] | None = None,
        restart: int = 0,
    ) -> Trained:
        """One training run of an arm; the learning rate starts again at the step `restart`."""
        filled = {
            "data.folders": {source: self._pairs_of(source, arm.captions) for source in rates},
            **_seeds(self.case.seed),
            **(start or self._parts("vlm")),
        }
        if len(rates) > 1:  # a folder may have the name of its arm
            filled |= {"data.rates": dict(rates), "data.mixture": f"mixture_{name}"}
        if "captions" in self.config.vlm.get("validation", {}):
            filled["validation.captions.folder"] = self.path("pairs", "test")
        seen = {"rates": dict(rates), "two_runs": bool(start)}
        if set(rates) != {"real"}:
            seen["captions"] = arm.captions
        changed = self._changed(arm, steps, restart)
        return self._train(self.vlm_name(name), "vlm", filled, changed, {"arm": seen})

    def _pairs_of(self, source: str, captions: str) -> str:
        """The folder of one source of an arm."""
        if source == "real":
            return self.real()
        if source == "synthetic":
            return self.synthesize(captions)
        return self.repaired(source, captions)

    def vlm_name(self, arm: str) -> str:
        """The folder of one arm's run."""
        return self.named(f"vlm_{arm}")

    def curve(self, arm: str, metric: str = "validation/cider") -> list[list[float]]:
        """[[step, value], ...] of a metric while an arm was trained, in both of its runs."""
        second = curve(self.path(self.vlm_name(arm)), metric)
        if not self._arms[arm].two_runs:
            return second
        first = self._arms[arm].first_steps(self.vlm_steps(arm))
        before = curve(self.path(self.vlm_name(f"{arm}_first")), metric)
        return before + [[step + first, value] for step, value in second]

    def evaluate(self, arm: str) -> dict[str, Any]:
        """Captions the test pictures and scores the captions."""
        name, folder = self.vlm_name(arm), self._evaluation(arm)
        path, filled = folder / RESULTS, {"vlm": self.path(name), "folder": self.path("pairs/test")}
        is_done = functools.partial(self._is_evaluated, folder)
        if not is_done():
            self._per_image.pop(folder, None)
        self._run(evaluate, f"evaluate {name}", str(folder), "evaluate", filled, is_done)
        results = read_json(path, "evaluate")
        scores = {name: results[name] for name in SCORES if name in results}
        parse_as(_Scores, scores, path, "evaluate")
        return results

    def _is_evaluated(self, folder: pathlib.Path) -> bool:
        """Returns whether a folder has each score that the config asks for, and those by image."""
        path, more = folder / RESULTS, set(self.config.evaluate.get("more_scores", ()))
        there = path.exists() and (folder / PER_IMAGE).exists()
        return there and read_json(path, "evaluate").keys() >= more

    def cider_per_image(self, arm: str) -> dict[str, float] | None:
        """{key of a test picture: CIDEr} of an arm; None before it is evaluated."""
        folder = self._evaluation(arm)
        if folder not in self._per_image and (path := folder / PER_IMAGE).exists():
            rows = [parse_as(_PerImage, row, path, "evaluate") for row in read_json_lines(path)]
            scores = {row.key: row.cider for row in rows}
            for other, known in self._per_image.items():
                if scores.keys() != known.keys():
                    raise UserError(
                        f"{path}: found {len(scores)} test pictures, expected the {len(known)} of "
                        f"{other / PER_IMAGE}. Remove the wrong one's folder and run again."
                    )
            self._per_image[folder] = scores
        return self._per_image.get(folder)

    def _evaluation(self, arm: str) -> pathlib.Path:
        return self.workdir / "evaluation" / self.vlm_name(arm)

    def _noted(self, section: str) -> dict[str, Any]:
        """The config that a step's result depends on; names show what differs from `_configured`.

        A seed or a number of 0 is left out, as it is in the notes of older versions.
        """
        of_all = {"seed": self._configured.seed}
        if section in _SEE_REAL and self.case.real_pairs == self._configured.real_pairs:
            of_all["real_pairs"] = self._cfg.real_pairs
        return super()._noted(section) | {k: v for k, v in of_all.items() if v}


def _seeds(seed: int) -> dict[str, int]:
    return {"train.seed": seed, "data.seed": seed}
