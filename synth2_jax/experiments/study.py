"""`synth2 study`: runs the demo's comparison over several seeds and more arms.

Arms are those of experiments/arms.py. Tokenizer, language model and captions are trained or
written once; generator, synthetic pairs and VLM once for each seed. Writes into the workdir, after
every arm, study.json, study.md (the table) and study.html (a page, with the curves). Stopped and
started again, it goes on.
"""

import dataclasses
import itertools
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synth2_jax import config as config_lib
from synth2_jax import environment
from synth2_jax.domains.scenes import scores as scenes_scores
from synth2_jax.errors import UserError, nearest
from synth2_jax.experiments.arms import ARMS
from synth2_jax.experiments.demo import curve, steps_to_baseline
from synth2_jax.experiments.experiment import SCORES, Experiment
from synth2_jax.experiments.experiment_config import ExperimentConfig, check_real_pairs
from synth2_jax.files import read_json, write_json, write_text
from synth2_jax.pages.numbers import DASH, finite, lookup
from synth2_jax.pages.report_files import Curve
from synth2_jax.pages.study_page import mean_and_spread, render_study
from synth2_jax.side_files import parse_as

RESULTS = "study.json"
TITLES = {
    "real": "real only",
    "real_synthetic": "real + synthetic",
    "synthetic": "synthetic only",
    "captions_only": "real + synthetic captions, blank image",
    "shuffled": "real + synthetic, images shuffled",
    "rendered": "real + synthetic captions, true images (upper bound)",
}


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings of a study: what is compared.

    Attributes:
      seeds: of generator, synthetic pairs and VLM.
      arms: of `arms.ARMS`, trained in this order for each seed.
      real_pairs: numbers of real pictures, each with a generator and arms of its own: the
        data-efficiency curve. Empty for the one of `--config.real_pairs`.
      share_generator: train one generator for all seeds; their synthetic pairs still differ.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    real_pairs: tuple[int, ...] = ()
    arms: tuple[str, ...] = tuple(ARMS)
    share_generator: bool = False

    def __post_init__(self):
        config_lib.check_seeds(self, "seeds")
        check_real_pairs(self)
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"arms: unknown {arm!r}; {nearest(arm, ARMS)}")


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


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Runs every arm that is missing; returns what study.json holds."""
    cfg = config_lib.build(StudyConfig, config.get("study"), "--config.study")
    experiment = Experiment(
        config, workdir, StudyExperimentConfig, share_generator=cfg.share_generator
    )
    experiment.tokenizer()
    experiment.language_model()
    experiment.pairs()
    experiment.captions()
    known = pathlib.Path(workdir) / RESULTS
    study = _known_runs(known) if known.exists() else {}
    cases = itertools.product(cfg.real_pairs or (experiment.case.real_pairs,), cfg.seeds)
    for real_pairs, seed in cases:
        here = experiment.at(seed=seed, real_pairs=real_pairs)
        at = f"{seed}" if real_pairs == experiment.case.real_pairs else f"{seed}/n{real_pairs}"
        for arm in cfg.arms:
            if arm != "real" and f"generator/{at}" not in study:
                captions, _, scenes = here.read_synthetic()
                study[f"generator/{at}"] = scenes_scores.agreement_shares(captions, scenes)
            here.vlm(arm)
            study[f"{arm}/{at}"] = {
                **{score: here.evaluate(arm)[score] for score in SCORES},
                "curve": curve(here.path(here.vlm_name(arm)), "validation/cider"),
            }
            write_results(pathlib.Path(workdir), study, cfg, config, experiment.notes.commits())
    print((pathlib.Path(workdir) / "study.md").read_text("utf-8"))
    return study


def write_results(
    folder: pathlib.Path,
    study: Mapping[str, Any],
    cfg: StudyConfig,
    config: Any,
    commits: Sequence[str],
) -> None:
    """study.json with everything, study.md and study.html with what is there so far.

    `commits` are those that its parts were made at.
    """
    made_with = environment.describe() | {"commit": ", ".join(commits)}
    write_json(
        folder / RESULTS, {"runs": dict(study), "made_with": made_with, "config": config.to_dict()}
    )
    shared = " One generator for all seeds." if cfg.share_generator else ""
    cells, notes = table(study, cfg), f"{footnote(study, made_with)}{shared}\n"
    rule = ["---"] * len(cells[0])
    lines = "".join(f"| {' | '.join(row)} |\n" for row in (cells[0], rule, *cells[1:]))
    write_text(folder / "study.md", f"{lines}\n{notes}")
    write_text(folder / "study.html", render_study(study, cells, notes))


def table(study: Mapping[str, Any], cfg: StudyConfig) -> list[list[str]]:
    """Cells, the head first: mean and standard deviation over the seeds that are there."""
    titles = ["arm", "seeds", "CIDEr", "gain", "CIDEr seen", "CIDEr unseen", "BLEU-4"]
    rows = [[*titles, "objects right"]]
    numbers = sorted({int(name.partition("/n")[2]) for name in study if "/n" in name})
    for arm, at in itertools.product(cfg.arms, ["", *(f"/n{number}" for number in numbers)]):
        real = _values(study, "real", "cider", cfg.seeds, at)
        cider = _values(study, arm, "cider", cfg.seeds, at)
        if not cider:
            continue
        gains = [cider[seed] / real[seed] - 1 for seed in cider if real.get(seed)]
        gain = f"{statistics.mean(gains):+.1%}" if gains and arm != "real" else ""
        seen, unseen, bleu4, right = (
            _values(study, arm, score, cfg.seeds, at).values()
            for score in ("cider_seen", "cider_unseen", "bleu4", "objects_right")
        )
        means = [_mean_and_spread(values) for values in (seen, unseen, bleu4)]
        title = TITLES[arm] + (f", {at.removeprefix('/n')} real pictures" if at else "")
        first = [title, str(len(cider)), _mean_and_spread(cider.values()), gain]
        rows.append([*first, *means, f"{_mean_and_spread(right, scale=100)} %"])
    return rows


def footnote(study: Mapping[str, Any], made_with: Mapping[str, str]) -> str:
    """The generator, the share of the gap closed, the steps to the baseline, and the commit."""
    lines = []
    seeds = sorted({int(name.split("/")[1]) for name in study})
    if any(f"generator/{s}" in study for s in seeds):
        shares = []
        for name in ("objects", "sizes", "places"):
            values = _values(study, "generator", f"{name}_right", seeds).values()
            shares.append(f"{name}{' right' * (not shares)} {_mean_and_spread(values, 100)} %")
        lines.append(f"Generated pictures, read by the oracle: {', '.join(shares)}.")
    real, both, bound = (
        _values(study, arm, "cider", seeds) for arm in ("real", "real_synthetic", "rendered")
    )
    common = [s for s in seeds if s in real and s in both and bound.get(s, real[s]) != real[s]]
    if common:
        closed = [(both[s] - real[s]) / (bound[s] - real[s]) for s in common]
        lines.append(f"Gap to the upper bound closed: {_mean_and_spread(closed, scale=100)} %.")
    pairs = [[study.get(f"{arm}/{s}") for arm in ("real", "real_synthetic")] for s in seeds]
    reached = [steps_to_baseline(*(run["curve"] for run in pair)) for pair in pairs if all(pair)]
    if reached:
        shares = [f"{r['share']:.0%}" if r else "never" for r in reached]
        lines.append(f"Real-only's last score is reached after {', '.join(shares)} of its steps.")
    lines.append(
        f"Mean ± standard deviation over seeds; jax {made_with['jax']} on {made_with['device']}, "
        f"commit {made_with['commit']}."
    )
    return "\n".join(lines)


def _values(
    study: Mapping[str, Any], arm: str, score: str, seeds: Sequence[int], at: str = ""
) -> dict[int, float]:
    """{seed: score} of one number of real pictures, `at`.

    Without those that counted nothing: NaN, or None once they were in a file.
    """
    found = {s: finite(lookup(study, f"{arm}/{s}{at}", score)) for s in seeds}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean_and_spread(values: Iterable[float], scale: float = 1) -> str:
    mean, spread = mean_and_spread(scale * value for value in values)
    if mean is None:
        return DASH
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"
