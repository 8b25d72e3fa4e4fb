"""The steps that the demo and the study share: from nothing to trained and scored VLMs.

Every step leaves its result in a folder of the workdir and does nothing when it is there already,
so an interrupted run goes on where it stopped. WORKDIR/made_with.json holds the config and the
commit that each step began with: under another config its result is refused, not taken for new.
"""

import dataclasses
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import environment, folder_lock
from synth2_jax.caption_writing.folder import CAPTIONS, MANIFEST
from synth2_jax.data import pair_writer, records
from synth2_jax.data.records import Pair, Provenance
from synth2_jax.domains.scenes import language, oracle, renderer
from synth2_jax.errors import UserError, in_section
from synth2_jax.evaluation.caption_sets import read_captions
from synth2_jax.evaluation.scorer import EvaluateConfig
from synth2_jax.files import read_json, write_json
from synth2_jax.loading import tokenizing
from synth2_jax.loading.run import Trained
from synth2_jax.loading.trained import load_trained
from synth2_jax.side_files import parse_as
from synth2_jax.stages import captions, evaluate, synthesize, tokenize, train
from synth2_jax.stages.captions import CaptionsConfig
from synth2_jax.stages.tokenize import TokenizeConfig
from synth2_jax.stages.train import TrainConfig
from synth2_jax.synthesis.token_generator import SynthesizeConfig
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.optimizer import make_optimizer

MADE_WITH = "made_with.json"
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
_SEEDS = "--config.study.seeds of `synth2 study`"
FILLED_IN = {
    "tokenize.tokenizer": "--workdir",
    "captions.language_model": "--workdir",
    "generator.pretrained.tokenizer": "--workdir",
    "generator.data.folders": "--workdir",
    "generator.data.seed": _SEEDS,
    "generator.train.seed": _SEEDS,
    "synthesize.generator": "--workdir",
    "synthesize.captions": "--workdir",
    "synthesize.seed": _SEEDS,
    "vlm.pretrained.tokenizer": "--workdir",
    "vlm.pretrained.language_model": "--workdir",
    "vlm.data.folders": "the arm, of --config.study.arms of `synth2 study`",
    "vlm.data.rates": "the arm, of --config.study.arms of `synth2 study`",
    "vlm.data.mixture": "the arm, of --config.study.arms of `synth2 study`",
    "vlm.data.seed": _SEEDS,
    "vlm.train.seed": _SEEDS,
    "vlm.validation.captions.folder": "--workdir",
    "evaluate.vlm": "--workdir",
    "evaluate.folder": "--workdir",
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


@dataclasses.dataclass(frozen=True)
class _Times:
    """The contents of seconds.json."""

    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _PeakMemory:
    """The contents of peak_memory.json."""

    gib: float


@dataclasses.dataclass(frozen=True)
class _Made:
    commit: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _MadeWith:
    """The contents of MADE_WITH."""

    steps: Mapping[str, _Made]


class Experiment:
    """One workdir and one config with a section for each step.

    Every section is built at once: a mistake in the last must not come to light hours later.

    Args:
      config: what `config_class` holds.
      workdir: every step has a folder in it.
      config_class: ExperimentConfig, or one with sections more.
      share_generator: all seeds sample from the generator of seed 0, each with noise of its own.

    Attributes:
      seconds: {step: seconds} of what this process did.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: str,
        config_class: type[ExperimentConfig] = ExperimentConfig,
        *,
        share_generator: bool = False,
    ):
        self._share_generator = share_generator
        config_lib.build(config_class, config)
        _check_left_open(config)
        for name in ("tokenizer", "language_model", "generator", "vlm"):
            cfg, _ = train.build(config[name], f"--config.{name}")
            make_optimizer(cfg.optimizer, cfg.train.steps, f"--config.{name}")
        self.config = config
        self.workdir = pathlib.Path(workdir)
        self.seconds: dict[str, float] = {}
        self._synthesized: set[int] = set()

    def path(self, *names: str) -> str:
        return str(self.workdir.joinpath(*names))

    def tokenizer(self) -> Trained:
        return self._train("tokenizer", self.config.tokenizer, self.config.tokenizer)

    def language_model(self) -> Trained:
        section = self.config.language_model
        return self._train("language_model", section, section)

    def pairs(self) -> None:
        """Tokenizes the real pairs and the test pictures."""
        section = self._copy(self.config.tokenize)
        section.tokenizer = self.path("tokenizer")
        self._check_same("tokenize", self.config.tokenize)
        folder = self.path("pairs")
        self._step("tokenize", self.config.tokenize, folder, lambda: tokenize.run(section, folder))

    def captions(self) -> None:
        """The language model writes captions, class by class."""
        section = self._copy(self.config.captions)
        section.language_model = self.path("language_model")
        folder = self.path("captions")
        self._check_same("captions", self.config.captions)
        if not pathlib.Path(folder, MANIFEST).exists():
            self._step(
                "captions", self.config.captions, folder, lambda: captions.run(section, folder)
            )

    def generator(self, seed: int = 0) -> Trained:
        """Trained on the real pairs that the VLM has too."""
        seed = self._generator_seed(seed)
        section = self._copy(self.config.generator)
        section.pretrained.tokenizer = self.path("tokenizer")
        section.data.folders = {"real": self.path("pairs", "real")}
        section.train.seed = section.data.seed = seed
        return self._train(_seeded("generator", seed), self.config.generator, section)

    def synthesize(self, seed: int = 0) -> str:
        """The generator's pictures of the captions, as tokens; returns the folder.

        What is there is checked against generator and captions, once a process.
        """
        folder = self.path("pairs", _seeded("synthetic", seed))
        if seed in self._synthesized:
            return folder
        section = self._copy(self.config.synthesize)
        self.generator(seed)
        section.generator = self.path(_seeded("generator", self._generator_seed(seed)))
        section.captions = self.path("captions")
        section.seed = seed
        step = _seeded("synthesize", seed)
        self._check_same(step, self.config.synthesize)
        self._step(step, self.config.synthesize, folder, lambda: synthesize.run(section, folder))
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
        provenance = records.read_manifest(synthetic).provenance
        rng = np.random.default_rng(seed)
        if name == "shuffled":
            order = rng.permutation(len(pairs))
            tokens = [pairs[i].image_tokens for i in order]
        elif name == "blank":
            blank = renderer.render(renderer.Scene((), "white"))
            tokens = [self._encode(blank[None])[0]] * len(pairs)
        else:
            scenes = [language.imagine(language.parse(pair.caption), rng) for pair in pairs]
            kept = [i for i, scene in enumerate(scenes) if scene]  # others contradict themselves
            pairs = [pairs[i] for i in kept]
            tokens = self._encode(np.stack([renderer.render(scenes[i]) for i in kept]))
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

    def vlm(self, arm: str, seed: int = 0) -> Trained:
        """Trains one arm; all arms have the same tokenizer, language model and steps."""
        rates = ARMS[arm]
        folders = {}
        for source in rates:
            if source == "real":
                folders[source] = self.path("pairs", "real")
            elif source == "synthetic":
                folders[source] = self.synthesize(seed)
            else:
                folders[source] = self.repaired(source, seed)
        section = self._copy(self.config.vlm)
        section.pretrained.tokenizer = self.path("tokenizer")
        section.pretrained.language_model = self.path("language_model")
        section.data.folders = folders
        if len(rates) > 1:
            section.data.rates = dict(rates)
            section.data.mixture = f"mixture_{arm}"  # a folder may have the name of its arm
        section.train.seed = section.data.seed = seed
        if "captions" in section.get("validation", {}):
            section.validation.captions.folder = self.path("pairs", "test")
        return self._train(self.vlm_name(arm, seed), self.config.vlm, section)

    def vlm_name(self, arm: str, seed: int = 0) -> str:
        """The folder of one arm's run."""
        return _seeded(f"vlm_{arm}", seed)

    def evaluate(self, arm: str, seed: int = 0) -> dict[str, Any]:
        """Captions the test pictures and scores the captions."""
        name = self.vlm_name(arm, seed)
        folder = self.workdir / "evaluation" / name
        step = f"evaluate {name}"
        self._check_same(step, self.config.evaluate)
        if not _has_scores(folder / "results.json", self.config.evaluate):
            section = self._copy(self.config.evaluate)
            section.vlm = self.path(name)
            section.folder = self.path("pairs", "test")
            self._step(
                step, self.config.evaluate, folder, lambda: evaluate.run(section, str(folder))
            )
        results = read_json(folder / "results.json", "evaluate")
        scores = {name: results[name] for name in SCORES if name in results}
        parse_as(_Scores, scores, folder / "results.json", "evaluate")
        return results

    def written_captions(self) -> list[str]:
        return read_captions(pathlib.Path(self.path("captions", CAPTIONS)))

    def _generator_seed(self, seed: int) -> int:
        return 0 if self._share_generator else seed

    def _encode(self, images: np.ndarray) -> np.ndarray:
        return tokenizing.encode_images(self.tokenizer(), images, 256, "tokenize")

    def _train(
        self, name: str, given: ml_collections.ConfigDict, section: ml_collections.ConfigDict
    ) -> Trained:
        """Trains by `section`, which is `given` with paths and seeds filled in, unless done."""
        folder = self.path(name)
        self._check_same(name, given)
        if not _is_trained(folder, section.train.steps):
            self._step(name, given, folder, lambda: train.run(section, folder))
        return load_trained(folder, section.model_name)

    def _step(
        self,
        name: str,
        given: ml_collections.ConfigDict,
        folder: str | pathlib.Path,
        function: Callable[[], Any],
    ) -> None:
        """Runs a stage, which writes to `folder`; no other command may write there meanwhile."""
        print(f"== {name}", flush=True)
        self._note_once(name, given)
        start = time.monotonic()
        try:
            lock = pathlib.Path(folder, folder_lock.LOCK)
            with (
                folder_lock.hold(lock, str(folder), f"the step {name}"),
                in_section(next(key for key, section in self.config.items() if section is given)),
            ):
                function()
        finally:  # A step that is stopped has cost its time too.
            seconds = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            known = self.times()
            times = {**known, name: known.get(name, 0.0) + seconds}
            write_json(self.workdir / "seconds.json", times)
            self.peak_memory_gib()

    def times(self) -> dict[str, float]:
        """{step: seconds} of all runs in this workdir."""
        path = self.workdir / "seconds.json"
        return _read(_Times, path, read_json(path, "demo"), "seconds") if path.exists() else {}

    def peak_memory_gib(self) -> float:
        """The most that any process in this workdir had resident, this one included."""
        path = self.workdir / "peak_memory.json"
        known = _read(_PeakMemory, path, read_json(path, "demo")) if path.exists() else {}
        peak = max(_peak_memory_gib(), known.get("gib", 0.0))
        write_json(path, {"gib": peak})
        return peak

    def commits(self) -> list[str]:
        """The commits that the steps in the workdir began with, sorted."""
        return sorted({made["commit"] for made in self._made_with().values() if made["commit"]})

    def _made_with(self) -> dict[str, Any]:
        path = self.workdir / MADE_WITH
        return _read(_MadeWith, path, read_json(path, "demo"), "steps") if path.exists() else {}

    def _note_once(self, name: str, given: ml_collections.ConfigDict) -> None:
        made_with = self._made_with()
        if name not in made_with:
            made = {"commit": environment.commit(), "config": given.to_dict()}
            write_json(self.workdir / MADE_WITH, {**made_with, name: made})

    def _check_same(self, name: str, given: ml_collections.ConfigDict) -> None:
        """Raises UserError when the step was begun under another config."""
        made_with = self._made_with()
        if name not in made_with:
            return
        before = _flat(made_with[name]["config"])
        now = _flat(json.loads(json.dumps(given.to_dict())))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{self.workdir}: {name} was made with {key}={before.get(key)!r}, found "
                    f"{now.get(key)!r}; another config needs another workdir"
                )

    def _copy(self, section: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """A copy that takes paths and folders that the config file could not know."""
        copy = ml_collections.ConfigDict(section.to_dict(), type_safe=False)
        return copy.unlock()


def _check_left_open(config: ml_collections.ConfigDict) -> None:
    """Raises UserError when a key of FILLED_IN holds more than 0 or ""."""
    for key, value in _flat(config.to_dict()).items():
        for filled, source in FILLED_IN.items():
            if value and f"{key}.".startswith(f"{filled}."):
                raise UserError(f"--config.{key}: found {value!r}, expected none: {source} decides")


def _peak_memory_gib() -> float:
    """Of this process and of each of its children that have finished."""
    usages = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return max(resource.getrusage(who).ru_maxrss for who in usages) * unit / 2**30


def _read(cls: type, path: pathlib.Path, values: dict[str, Any], key: str = "") -> dict[str, Any]:
    """The values, which must be those of the dataclass `cls`, or of its field `key`."""
    parse_as(cls, {key: values} if key else values, path, "demo")
    return values


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": leaf}; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _seeded(name: str, seed: int) -> str:
    return f"{name}_seed{seed}" if seed else name


def _has_scores(results: pathlib.Path, config: Mapping[str, Any]) -> bool:
    """Whether an evaluation is finished, with each further score that its config asks for."""
    if not results.exists():
        return False
    return read_json(results, "evaluate").keys() >= set(config.get("more_scores", ()))


def _is_trained(folder: str, steps: int) -> bool:
    if not pathlib.Path(folder, "checkpoints").is_dir():
        return False
    try:
        step = checkpoint_reader.latest_step(folder)
        return step >= steps and checkpoint_reader.is_intact(folder, step)
    except UserError:  # a run that was stopped before its first checkpoint
        return False
