"""The steps that the demo and the study share: from nothing to trained and scored VLMs.

Every step leaves its result in a folder of the workdir and does nothing when it is there already,
so an interrupted run goes on where it stopped; `notes` keeps apart results of different configs.
"""

import copy
import dataclasses
import functools
import operator
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import folder_lock
from synth2_jax.caption_writing.folder import CAPTIONS, MANIFEST
from synth2_jax.data import records
from synth2_jax.domains.scenes import oracle, renderer
from synth2_jax.errors import UserError, in_section
from synth2_jax.evaluation.caption_sets import read_captions
from synth2_jax.experiments import pictures
from synth2_jax.experiments.arms import ARMS
from synth2_jax.experiments.experiment_config import Case, ExperimentConfig, check_left_open
from synth2_jax.experiments.notes import Notes
from synth2_jax.files import read_json
from synth2_jax.loading import tokenizing
from synth2_jax.loading.run import Trained
from synth2_jax.loading.trained import load_trained
from synth2_jax.side_files import parse_as
from synth2_jax.stages import captions, evaluate, synthesize, tokenize, train
from synth2_jax.stages.evaluate import RESULTS
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.optimizer import make_optimizer

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


class Experiment:
    """One workdir and one config with a section for each step.

    Every section is built at once: a mistake in the last must not come to light hours later.

    Args:
      config: what `config_class` holds.
      workdir: every step has a folder in it.
      config_class: ExperimentConfig, or one with sections more.
      share_generator: all seeds sample from one generator, each with noise of its own.

    Attributes:
      case: seed and number of real pictures of the steps; `at` chooses others than the config's.
      notes: what its steps note in the workdir.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: str,
        config_class: type[ExperimentConfig] = ExperimentConfig,
        *,
        share_generator: bool = False,
    ):
        cfg = config_lib.build(config_class, config)
        check_left_open(config)
        for name in ("tokenizer", "language_model", "generator", "vlm"):
            of_step, _ = train.build(config[name], f"--config.{name}")
            make_optimizer(of_step.optimizer, of_step.train.steps, f"--config.{name}")
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.notes = Notes(self.workdir)
        self.case = self._configured = Case(cfg.seed, cfg.real_pairs)
        self._share_generator = share_generator
        self._made: set[str] = set()  # folders of pairs that this process has checked

    def at(self, **case: int) -> "Experiment":
        """The same experiment with another `seed`, another `real_pairs`, or both."""
        other = copy.copy(self)
        other.case = dataclasses.replace(self.case, **case)
        return other

    def path(self, *names: str) -> str:
        return str(self.workdir.joinpath(*names))

    def named(self, name: str) -> str:
        """The name of a step or folder of this case: "vlm_real" or "vlm_real_n94_seed1"."""
        if self.case.real_pairs != self._configured.real_pairs:
            name += f"_n{self.case.real_pairs}"
        return name if self.case.seed == self._configured.seed else f"{name}_seed{self.case.seed}"

    def tokenizer(self) -> Trained:
        return self._train("tokenizer", "tokenizer", _seeds(self._configured.seed))

    def language_model(self) -> Trained:
        return self._train("language_model", "language_model", _seeds(self._configured.seed))

    def pairs(self) -> None:
        """Tokenizes the real pairs and the test pictures."""
        splits = tuple(self.config.tokenize.splits)
        if self._configured.real_pairs:  # the other splits have a number of their own
            splits = tuple(split for split in splits if split != "real")
        self._tokenize("tokenize", self.path("pairs"), {"splits": splits})
        self.real()

    def real(self) -> str:
        """The real pairs of this case; returns their folder."""
        number, step, folder = self.case.real_pairs, "tokenize", self.path("pairs")
        if number != self._configured.real_pairs:
            step, folder = f"tokenize_n{number}", self.path("pairs", f"n{number}")
        if step != "tokenize" or number:
            limit = {"max_images": number} if number else {}
            self._tokenize(step, folder, {"splits": ("real",), **limit})
        return str(pathlib.Path(folder, "real"))

    def _tokenize(self, step: str, folder: str, filled: Mapping[str, Any]) -> None:
        """Tokenizes splits, and what is there is checked: once a process."""
        if (made := f"{folder} {filled['splits']}") in self._made or not filled["splits"]:
            return
        filled = {"tokenizer": self.path("tokenizer"), **filled}
        self._run(tokenize, step, folder, "tokenize", filled)
        self._made.add(made)

    def captions(self) -> None:
        """The language model writes captions, class by class."""
        filled = {
            "language_model": self.path("language_model"),
            "seed": self._configured.seed,
        }
        folder = self.path("captions")
        is_done = pathlib.Path(folder, MANIFEST).exists
        self._run(captions, "captions", folder, "captions", filled, is_done)

    def written_captions(self) -> list[str]:
        return read_captions(pathlib.Path(self.path("captions", CAPTIONS)))

    def generator(self) -> Trained:
        """Trained on the real pairs that the VLM has too."""
        filled = {
            "pretrained.tokenizer": self.path("tokenizer"),
            "data.folders": {"real": self.real()},
            **_seeds(self._of_generator().case.seed),
        }
        return self._train(self._of_generator().named("generator"), "generator", filled)

    def _of_generator(self) -> "Experiment":
        """The case whose generator this one samples from."""
        return self.at(seed=self._configured.seed) if self._share_generator else self

    def synthesize(self) -> str:
        """The generator's pictures of the captions, as tokens; returns the folder.

        What is there is checked against generator and captions, once a process.
        """
        folder = self.path("pairs", self.named("synthetic"))
        if folder in self._made:
            return folder
        self.generator()
        filled = {
            "generator": self.path(self._of_generator().named("generator")),
            "captions": self.path("captions"),
            "seed": self.case.seed,
        }
        self._run(synthesize, self.named("synthesize"), folder, "synthesize", filled)
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

    def repaired(self, name: str) -> str:
        """The synthetic captions with other pictures, see `pictures`; returns the folder."""
        folder = self.path("pairs", self.named(name))
        synthetic = self.synthesize()  # before all: under another config it refuses
        if not pathlib.Path(folder, records.MANIFEST).exists():
            pictures.repair(name, synthetic, folder, self.tokenizer(), self.case.seed)
        return folder

    def vlm(self, arm: str) -> Trained:
        """Trains one arm; all arms have the same tokenizer, language model and steps."""
        rates, folders = ARMS[arm], {}
        for source in rates:
            if source == "real":
                folders[source] = self.real()
            elif source == "synthetic":
                folders[source] = self.synthesize()
            else:
                folders[source] = self.repaired(source)
        filled = {
            "pretrained.tokenizer": self.path("tokenizer"),
            "pretrained.language_model": self.path("language_model"),
            "data.folders": folders,
            **_seeds(self.case.seed),
        }
        if len(rates) > 1:  # a folder may have the name of its arm
            filled |= {"data.rates": rates, "data.mixture": f"mixture_{arm}"}
        if "captions" in self.config.vlm.get("validation", {}):
            filled["validation.captions.folder"] = self.path("pairs", "test")
        return self._train(self.vlm_name(arm), "vlm", filled)

    def vlm_name(self, arm: str) -> str:
        """The folder of one arm's run."""
        return self.named(f"vlm_{arm}")

    def evaluate(self, arm: str) -> dict[str, Any]:
        """Captions the test pictures and scores the captions."""
        name = self.vlm_name(arm)
        folder = self.workdir / "evaluation" / name
        path, filled = folder / RESULTS, {"vlm": self.path(name), "folder": self.path("pairs/test")}

        def is_done() -> bool:
            """Returns whether it is finished, with each further score that the config asks for."""
            more = set(self.config.evaluate.get("more_scores", ()))
            return path.exists() and read_json(path, "evaluate").keys() >= more

        self._run(evaluate, f"evaluate {name}", str(folder), "evaluate", filled, is_done)
        results = read_json(path, "evaluate")
        scores = {name: results[name] for name in SCORES if name in results}
        parse_as(_Scores, scores, path, "evaluate")
        return results

    def _train(self, name: str, section: str, filled: Mapping[str, Any]) -> Trained:
        folder, given = self.path(name), self.config[section]
        self._run(train, name, folder, section, filled, lambda: _is_trained(folder, given))
        return load_trained(folder, given.model_name)

    def _run(
        self,
        stage: types.ModuleType,
        step: str,
        folder: str,
        section: str,
        filled: Mapping[str, Any],
        is_done: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs a stage unless it is done, by a section with values filled in at dotted keys.

        Raises:
          UserError: the step was begun under another config.
        """
        self.notes.check_same(step, self._noted(section))
        if is_done():
            return
        config = self.config[section].to_dict()
        for key, value in filled.items():
            *above, last = key.split(".")
            functools.reduce(operator.getitem, above, config)[last] = value
        self._step(step, section, folder, lambda: stage.run(_unlocked(config), folder))

    def _step(self, name: str, section: str, folder: str, function: Callable[[], Any]) -> None:
        """Runs a function that writes to `folder`; no other command may write there meanwhile."""
        print(f"== {name}", flush=True)
        self.notes.begin(name, self._noted(section))
        lock = pathlib.Path(folder, folder_lock.LOCK)
        with (
            self.notes.timed(name),
            folder_lock.hold(lock, folder, f"the step {name}"),
            in_section(section),
        ):
            function()

    def _noted(self, section: str) -> dict[str, Any]:
        """The config that a step's result depends on; names show what differs from `_configured`.

        A seed or a number of 0 is left out, as it is in the notes of older versions.
        """
        of_all = {"seed": self._configured.seed}
        if section in _SEE_REAL and self.case.real_pairs == self._configured.real_pairs:
            of_all["real_pairs"] = self.case.real_pairs
        return self.config[section].to_dict() | {k: v for k, v in of_all.items() if v}


def _unlocked(config: dict[str, Any]) -> ml_collections.ConfigDict:
    """A section that takes paths and folders that the config file could not know."""
    return ml_collections.ConfigDict(config, type_safe=False).unlock()


def _seeds(seed: int) -> dict[str, int]:
    return {"train.seed": seed, "data.seed": seed}


def _is_trained(folder: str, config: ml_collections.ConfigDict) -> bool:
    if not pathlib.Path(folder, "checkpoints").is_dir():
        return False
    try:
        step = checkpoint_reader.latest_step(folder)
        return step >= config.train.steps and checkpoint_reader.is_intact(folder, step)
    except UserError:  # a run that was stopped before its first checkpoint
        return False
