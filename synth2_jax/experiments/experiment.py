"""The steps that the demo and the study share: from nothing to trained and scored VLMs.

Every step leaves its result in a folder of the workdir and does nothing when it is there already,
so an interrupted run goes on where it stopped; `notes` keeps apart results of different configs.
"""

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
from synth2_jax.data import pair_writer, records
from synth2_jax.data.records import Pair, Provenance
from synth2_jax.domains.scenes import language, oracle, renderer
from synth2_jax.errors import UserError, in_section
from synth2_jax.evaluation.caption_sets import read_captions
from synth2_jax.evaluation.scorer import EvaluateConfig
from synth2_jax.experiments.notes import Notes
from synth2_jax.files import read_json
from synth2_jax.loading import tokenizing
from synth2_jax.loading.run import Trained
from synth2_jax.loading.trained import load_trained
from synth2_jax.pages.numbers import flat
from synth2_jax.side_files import parse_as
from synth2_jax.stages import captions, evaluate, synthesize, tokenize, train
from synth2_jax.stages.captions import CaptionsConfig
from synth2_jax.stages.evaluate import RESULTS
from synth2_jax.stages.tokenize import TokenizeConfig
from synth2_jax.stages.train import TrainConfig
from synth2_jax.synthesis.token_generator import SynthesizeConfig
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.optimizer import make_optimizer

NUM_READ = 1024  # synthetic pictures that the oracle reads

# What each arm of a comparison draws its batches from: {folder of pairs: rate}. `real` is in all
# but one; the other half is the same synthetic captions, with different pictures.
ARMS = {
    "real": {"real": 1.0},
    "real_synthetic": {"real": 0.5, "synthetic": 0.5},
    "synthetic": {"synthetic": 1.0},
    "captions_only": {"real": 0.5, "blank": 0.5},
    "shuffled": {"real": 0.5, "shuffled": 0.5},
    "rendered": {"real": 0.5, "rendered": 0.5},
}

# What the steps fill in, and what it comes from. A value of the user's there would be overwritten
# without a word, so it is refused.
_WORKDIR, _SEEDS = "--workdir", "--config.study.seeds of `synth2 study`"
_ARM = "the arm, of --config.study.arms of `synth2 study`"
FILLED_IN = {
    "tokenize.tokenizer": _WORKDIR,
    "captions.language_model": _WORKDIR,
    "generator.pretrained.tokenizer": _WORKDIR,
    "generator.data.folders": _WORKDIR,
    "generator.data.seed": _SEEDS,
    "generator.train.seed": _SEEDS,
    "synthesize.generator": _WORKDIR,
    "synthesize.captions": _WORKDIR,
    "synthesize.seed": _SEEDS,
    "vlm.pretrained.tokenizer": _WORKDIR,
    "vlm.pretrained.language_model": _WORKDIR,
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
    tiny: bool = False


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
      share_generator: all seeds sample from the generator of seed 0, each with noise of its own.

    Attributes:
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
        config_lib.build(config_class, config)
        _check_left_open(config)
        for name in ("tokenizer", "language_model", "generator", "vlm"):
            cfg, _ = train.build(config[name], f"--config.{name}")
            make_optimizer(cfg.optimizer, cfg.train.steps, f"--config.{name}")
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.notes = Notes(self.workdir)
        self._share_generator = share_generator
        self._synthesized: set[int] = set()

    def path(self, *names: str) -> str:
        return str(self.workdir.joinpath(*names))

    def tokenizer(self) -> Trained:
        return self._train("tokenizer", "tokenizer", {})

    def language_model(self) -> Trained:
        return self._train("language_model", "language_model", {})

    def pairs(self) -> None:
        """Tokenizes the real pairs and the test pictures."""
        filled = {"tokenizer": self.path("tokenizer")}
        self._run(tokenize, "tokenize", self.path("pairs"), "tokenize", filled)

    def captions(self) -> None:
        """The language model writes captions, class by class."""
        folder, filled = self.path("captions"), {"language_model": self.path("language_model")}
        is_done = pathlib.Path(folder, MANIFEST).exists
        self._run(captions, "captions", folder, "captions", filled, is_done)

    def written_captions(self) -> list[str]:
        return read_captions(pathlib.Path(self.path("captions", CAPTIONS)))

    def generator(self, seed: int = 0) -> Trained:
        """Trained on the real pairs that the VLM has too."""
        seed = self._generator_seed(seed)
        filled = {
            "pretrained.tokenizer": self.path("tokenizer"),
            "data.folders": {"real": self.path("pairs", "real")},
            "train.seed": seed,
            "data.seed": seed,
        }
        return self._train(_seeded("generator", seed), "generator", filled)

    def _generator_seed(self, seed: int) -> int:
        return 0 if self._share_generator else seed

    def synthesize(self, seed: int = 0) -> str:
        """The generator's pictures of the captions, as tokens; returns the folder.

        What is there is checked against generator and captions, once a process.
        """
        folder = self.path("pairs", _seeded("synthetic", seed))
        if seed in self._synthesized:
            return folder
        self.generator(seed)
        filled = {
            "generator": self.path(_seeded("generator", self._generator_seed(seed))),
            "captions": self.path("captions"),
            "seed": seed,
        }
        self._run(synthesize, _seeded("synthesize", seed), folder, "synthesize", filled)
        self._synthesized.add(seed)
        return folder

    def read_synthetic(self, seed: int = 0) -> tuple[list[str], np.ndarray, list[renderer.Scene]]:
        """Captions of a sample of the synthetic pairs, their pictures, and what the oracle sees.

        Only here are these tokens decoded to pixels u8[num, H, W, 3].
        """
        pairs = list(records.read_pairs(self.synthesize(seed)))
        chosen = np.random.default_rng(0).permutation(len(pairs))[:NUM_READ]
        tokens = np.stack([pairs[i].image_tokens for i in chosen])
        images = tokenizing.decode_images(self.tokenizer(), tokens)
        return [pairs[i].caption for i in chosen], images, oracle.read(images)

    def repaired(self, name: str, seed: int = 0) -> str:
        """The synthetic captions with other pictures; returns the folder of pairs.

        Args:
          name: "shuffled", the same pictures in another order; "blank", an empty picture to each;
            "rendered", a true picture of each caption, which bounds what a generator can reach.
          seed: of the synthetic pairs, the order and the rendering.
        """
        folder = self.path("pairs", _seeded(name, seed))
        synthetic = self.synthesize(seed)  # before all: under another config it refuses
        if pathlib.Path(folder, records.MANIFEST).exists():
            return folder
        pairs = list(records.read_pairs(synthetic))
        rng = np.random.default_rng(seed)
        if name == "shuffled":
            tokens = [pairs[i].image_tokens for i in rng.permutation(len(pairs))]
        elif name == "blank":
            blank = renderer.render(renderer.Scene((), "white"))
            tokens = [self._encode(blank[None])[0]] * len(pairs)
        else:
            scenes = [language.imagine(language.parse(pair.caption), rng) for pair in pairs]
            kept = [i for i, scene in enumerate(scenes) if scene]  # others contradict themselves
            pairs = [pairs[i] for i in kept]
            tokens = self._encode(np.stack([renderer.render(scenes[i]) for i in kept]))
        provenance = records.read_manifest(synthetic).provenance
        pair_writer.write_pairs(
            folder,
            [
                Pair(f"{name}-{i:09d}-0", ids, pair.caption, "synthetic")
                for i, (pair, ids) in enumerate(zip(pairs, tokens, strict=True))
            ],
            Provenance(
                tokenizer=provenance.tokenizer,
                num_image_tokens=provenance.num_image_tokens,
                codebook_size=provenance.codebook_size,
                captions={**dict(provenance.captions or {}), "pictures": name},
            ),
            num_shards=4,
        )
        return folder

    def _encode(self, images: np.ndarray) -> np.ndarray:
        return tokenizing.encode_images(self.tokenizer(), images, 256, "tokenize")

    def vlm(self, arm: str, seed: int = 0) -> Trained:
        """Trains one arm; all arms have the same tokenizer, language model and steps."""
        rates, folders = ARMS[arm], {}
        for source in rates:
            if source == "real":
                folders[source] = self.path("pairs", "real")
            elif source == "synthetic":
                folders[source] = self.synthesize(seed)
            else:
                folders[source] = self.repaired(source, seed)
        filled = {
            "pretrained.tokenizer": self.path("tokenizer"),
            "pretrained.language_model": self.path("language_model"),
            "data.folders": folders,
            "train.seed": seed,
            "data.seed": seed,
        }
        if len(rates) > 1:  # a folder may have the name of its arm
            filled |= {"data.rates": rates, "data.mixture": f"mixture_{arm}"}
        if "captions" in self.config.vlm.get("validation", {}):
            filled["validation.captions.folder"] = self.path("pairs", "test")
        return self._train(self.vlm_name(arm, seed), "vlm", filled)

    def vlm_name(self, arm: str, seed: int = 0) -> str:
        """The folder of one arm's run."""
        return _seeded(f"vlm_{arm}", seed)

    def evaluate(self, arm: str, seed: int = 0) -> dict[str, Any]:
        """Captions the test pictures and scores the captions."""
        name = self.vlm_name(arm, seed)
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
        self.notes.check_same(step, self.config[section].to_dict())
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
        self.notes.begin(name, self.config[section].to_dict())
        lock = pathlib.Path(folder, folder_lock.LOCK)
        with (
            self.notes.timed(name),
            folder_lock.hold(lock, folder, f"the step {name}"),
            in_section(section),
        ):
            function()


def _unlocked(config: dict[str, Any]) -> ml_collections.ConfigDict:
    """A section that takes paths and folders that the config file could not know."""
    return ml_collections.ConfigDict(config, type_safe=False).unlock()


def _check_left_open(config: ml_collections.ConfigDict) -> None:
    """Raises UserError when a key of FILLED_IN holds more than 0 or ""."""
    for key, value in flat(config.to_dict()):
        for filled, source in FILLED_IN.items():
            if value and f"{key}.".startswith(f"{filled}."):
                raise UserError(f"--config.{key}: found {value!r}, expected none: {source} decides")


def _seeded(name: str, seed: int) -> str:
    return f"{name}_seed{seed}" if seed else name


def _is_trained(folder: str, config: ml_collections.ConfigDict) -> bool:
    if not pathlib.Path(folder, "checkpoints").is_dir():
        return False
    try:
        step = checkpoint_reader.latest_step(folder)
        return step >= config.train.steps and checkpoint_reader.is_intact(folder, step)
    except UserError:  # a run that was stopped before its first checkpoint
        return False
