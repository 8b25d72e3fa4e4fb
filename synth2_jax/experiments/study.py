"""`synth2 study`: runs the demo's comparison over seeds, arms and numbers of real pictures.

Arms are those of experiments/arms.py, and of the config. Tokenizer, language model and captions are
trained or written once; generator, synthetic pairs and VLM once for each seed and number of real
pictures. Writes into the workdir, after every arm, study.json, study.md (the tables) and study.html
(a page, with the curves). Stopped and started again, it goes on.
"""

import dataclasses
import functools
import itertools
import pathlib
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from synth2_jax import config as config_lib
from synth2_jax import environment
from synth2_jax.domains.scenes import dataset
from synth2_jax.domains.scenes import scores as scenes_scores
from synth2_jax.errors import UserError, nearest
from synth2_jax.experiments import study_tables
from synth2_jax.experiments.arms import ARMS, Arm
from synth2_jax.experiments.caption_sets import balance_of
from synth2_jax.experiments.experiment import SCORES, Experiment
from synth2_jax.experiments.experiment_config import ExperimentConfig, check_real_pairs
from synth2_jax.experiments.study_summary import of_seeds, run_name, summarise
from synth2_jax.files import read_json, write_json, write_text
from synth2_jax.pages.report_files import Curve
from synth2_jax.pages.study_page import render_study
from synth2_jax.side_files import parse_as

RESULTS = "study.json"


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings of a study: what is compared.

    Attributes:
      seeds: of generator, synthetic pairs and VLM.
      arms: of `arms.ARMS` and `more_arms`, trained in this order for each seed.
      more_arms: {name: arm}, arms of your own.
      real_pairs: numbers of real pictures, 0 for all, each with a generator and arms of its own:
        the data-efficiency curve. Empty for the one of `--config.real_pairs`.
      curve_arms: those of `arms` that other numbers than `--config.real_pairs` have; empty for all.
      share_generator: train one generator for all seeds; their synthetic pairs still differ.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    more_arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    real_pairs: tuple[int, ...] = ()
    curve_arms: tuple[str, ...] = ()
    share_generator: bool = False

    def __post_init__(self):
        config_lib.check_seeds(self, "seeds")
        check_real_pairs(self)
        for name in ("seeds", "arms"):
            if not getattr(self, name):
                raise UserError(f"{name}: found none, expected at least one")
        for name in self.more_arms:
            if name in ARMS or not re.fullmatch(r"\w+", name, re.ASCII):
                raise UserError(
                    f"more_arms: found {name!r}, expected letters, digits and _, and none of "
                    f"{', '.join(ARMS)}"
                )
            if re.search(r"_(seed\d+|n\d+|first)$", name, re.ASCII):
                raise UserError(
                    f"more_arms: found {name!r}, expected no name that ends in _seed, _n and a "
                    "number, or _first: runs of other arms have such folders"
                )
        for key, known in (("arms", {**ARMS, **self.more_arms}), ("curve_arms", self.arms)):
            for name in getattr(self, key):
                if name not in known:
                    raise UserError(f"{key}: unknown {name!r}; {nearest(name, known)}")

    @property
    def compared(self) -> dict[str, Arm]:
        """The arms by name, in the order of `arms`."""
        return {name: {**ARMS, **self.more_arms}[name] for name in self.arms}

    def shown(self, runs: Iterable[str]) -> dict[str, Arm]:
        """The arms that are compared, then others that the workdir has runs of."""
        there = {name.split("/")[0] for name in runs}
        others = {name: arm for name, arm in {**ARMS, **self.more_arms}.items() if name in there}
        return {**self.compared, **others}


@dataclasses.dataclass(frozen=True)
class StudyExperimentConfig(ExperimentConfig):
    """The experiment's sections, and the study's own."""

    study: StudyConfig = StudyConfig()


@dataclasses.dataclass(frozen=True)
class _StudyFile:
    """The part of study.json that a study goes on with."""

    runs: Mapping[str, Mapping[str, float | Curve]]

    def __post_init__(self):
        for name in self.runs:
            if not re.fullmatch(r"\w+/\d+(/n\d+)?", name, re.ASCII):
                raise ValueError(f"runs: found {name!r:.40}, expected ARM/SEED or ARM/SEED/nNUMBER")


def _known_runs(path: pathlib.Path) -> dict[str, Any]:
    runs = read_json(path, "study").get("runs")
    parse_as(_StudyFile, {"runs": runs}, path, "study")
    return runs


def open_experiment(config: Any, workdir: str) -> tuple[StudyConfig, Experiment]:
    """The study's own config, and its experiment."""
    cfg = config_lib.build(StudyConfig, config.get("study"), "--config.study")
    options = {"arms": cfg.compared, "share_generator": cfg.share_generator}
    return cfg, Experiment(config, workdir, StudyExperimentConfig, **options)


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Runs every arm that is missing; returns the runs that study.json holds."""
    cfg, experiment = open_experiment(config, workdir)
    known = pathlib.Path(workdir) / RESULTS
    runs = _known_runs(known) if known.exists() else {}
    experiment.tokenizer()
    experiment.language_model()
    experiment.pairs()
    experiment.captions()
    captions = caption_balance(experiment, cfg.shown(runs))
    for here, arm in _cases(experiment, cfg):
        name = functools.partial(run_name, case=here.case, own=experiment.case.real_pairs)
        if cfg.compared[arm].makes_pictures and name("generator") not in runs:
            texts, _, scenes = here.read_synthetic()
            runs[name("generator")] = scenes_scores.agreement_shares(texts, scenes)
        here.vlm(arm)
        speeds = [speed for _, speed in here.curve(arm, "steps_per_second")]
        runs[name(arm)] = {
            **{score: here.evaluate(arm)[score] for score in SCORES},
            "steps": here.vlm_steps(arm),
            "steps_per_second": statistics.median(speeds) if speeds else None,
            "curve": here.curve(arm),
        }
        summary = summarise(experiment, of_seeds(runs, cfg.seeds)) | {"captions": captions}
        commits = experiment.notes.commits()
        write_results(pathlib.Path(workdir), runs, summary, cfg, config, commits)
    print((pathlib.Path(workdir) / "study.md").read_text("utf-8"))
    return runs


def _cases(experiment: Experiment, cfg: StudyConfig) -> Iterator[tuple[Experiment, str]]:
    """(experiment of a case, arm) of all that is compared."""
    own = experiment.case.real_pairs
    numbers = [experiment.at(real_pairs=n).case.real_pairs for n in cfg.real_pairs or (own,)]
    if cfg.curve_arms and set(cfg.arms) - set(cfg.curve_arms):  # only the own number has those
        numbers.append(own)
    for number, seed in itertools.product(dict.fromkeys(numbers), cfg.seeds):
        arms = cfg.arms if number == own else cfg.curve_arms or cfg.arms
        yield from ((experiment.at(seed=seed, real_pairs=number), arm) for arm in arms)


def caption_balance(experiment: Experiment, arms: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    """Balance and entropy of each caption set, the share of its captions that name a combination
    which no real pair shows, and the arm that has pictures of it."""
    used = dict.fromkeys(arm.captions for arm in arms.values() if arm.makes_pictures)
    test = [caption for example in dataset.examples("test") for caption in example.captions]
    sets = {"real": experiment.real_captions(), "test": test}
    sets |= {name: experiment.written_captions(name) for name in used if name != "real"}
    found = balance_of(sets)
    with_synthetic = [(name, arm) for name, arm in arms.items() if "synthetic" in arm.rates]
    of_set = {arm.captions: name for name, arm in reversed(with_synthetic)}  # the first one
    return {
        name: {
            **found[name],
            "unseen_share": statistics.mean(map(scenes_scores.claims_unseen, captions)),
            "arm": of_set.get(name),
        }
        for name, captions in sets.items()
    }


def write_results(
    folder: pathlib.Path,
    runs: Mapping[str, Any],
    summary: Mapping[str, Any],
    cfg: StudyConfig,
    config: Any,
    commits: Sequence[str],
) -> None:
    """study.json with everything, study.md and study.html with what is there so far.

    `commits` are those that its parts were made at.
    """
    made_with = environment.describe() | {"commit": ", ".join(commits)}
    results = {"runs": dict(runs), "summary": summary, "made_with": made_with}
    write_json(folder / RESULTS, {**results, "config": config.to_dict()})
    write_tables(folder, runs, summary, cfg, made_with)


def write_tables(
    folder: pathlib.Path,
    runs: Mapping[str, Any],
    summary: Mapping[str, Any],
    cfg: StudyConfig,
    made_with: Mapping[str, str],
) -> None:
    """study.md and study.html, from the parts of study.json; runs of other seeds are left out."""
    runs = of_seeds(runs, cfg.seeds)
    compared = runs, summary, cfg.shown(runs), cfg.seeds
    tables = {
        "arms": study_tables.arms_table(*compared),
        "curve": study_tables.curve_table(*compared),
        "captions": study_tables.captions_table(runs, summary, cfg.seeds),
    }
    notes = study_tables.footnote(runs, summary, made_with, cfg.seeds)
    notes += " One generator for all seeds." * cfg.share_generator + "\n"
    parts = [markdown(table) for table in tables.values() if table]
    write_text(folder / "study.md", "\n".join([parts[0], notes, *parts[1:]]))
    write_text(folder / "study.html", render_study(runs, summary, tables, notes))


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table, its head first, in Markdown."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
