"""`synth2 filter`: scores how well images fit their captions, and keeps the pairs that fit best.

Scores are kept with the pairs, in PAIRS/scores/SCORE-HASH/SHARD.npy, or in `config.scores_folder`
where the pairs are read-only. HASH is of all that determines them: other settings get other files,
and another share or threshold uses the same ones. A shard is the unit of work: after a kill, the
same command scores only what is missing. The workdir becomes a view of the pairs (data/views.py),
to train on in their place, with summary.json and index.html.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from synth2_jax import config as config_lib
from synth2_jax.data import records, views
from synth2_jax.data.records import Manifest
from synth2_jax.errors import UserError, naming
from synth2_jax.evaluation.pair_scores import FilterConfig, PairScorer, load_scorers
from synth2_jax.evaluation.score_files import ScoreFiles
from synth2_jax.files import read_json, write_json, write_text
from synth2_jax.pages.filter_page import render_filter
from synth2_jax.progress import Progress
from synth2_jax.stop_signal import StopSignal

SCORES = "scores"
SUMMARY = "summary.json"
_PERCENTILES = (5, 25, 50, 75, 95)


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Scores what is missing and writes the view; returns the summary."""
    cfg = config_lib.build(FilterConfig, config)
    with naming("--config.folder", cfg.folder):
        manifest = records.read_manifest(cfg.folder)
    scorers = load_scorers(cfg, manifest)
    chosen = {
        "by": cfg.by,
        "action": cfg.action,
        "keep": cfg.keep if cfg.threshold is None else None,
        "threshold": cfg.threshold,
        "scores": {name: scorer.settings for name, scorer in scorers.items()},
    }
    folder = pathlib.Path(workdir)
    views.check_same_view(folder, manifest, chosen)
    place = _place_of_scores(cfg)
    files = {
        name: ScoreFiles(place, name, scorer.settings, scorer.dtype)
        for name, scorer in scorers.items()
    }
    _score_missing(cfg, manifest, scorers, files)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("filter: all scores are there")
    if jax.process_index() == 0:
        _write(cfg, manifest, files, folder, chosen)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("filter: the view is there")
    return read_json(folder / SUMMARY, "filter")


def _place_of_scores(cfg: FilterConfig) -> pathlib.Path:
    """The folder of the scores; UserError, before hours of work, where nothing can be written."""
    place = pathlib.Path(cfg.scores_folder or pathlib.Path(cfg.folder) / SCORES)
    try:
        write_text(place / f".{jax.process_index()}.probe", "")
        (place / f".{jax.process_index()}.probe").unlink()
    except OSError as error:
        raise UserError(
            f"--config.scores_folder: cannot write to {place} ({error.strerror}). Give another "
            "folder."
        ) from error
    return place


def _score_missing(
    cfg: FilterConfig,
    manifest: Manifest,
    scorers: Mapping[str, PairScorer],
    files: Mapping[str, ScoreFiles],
) -> None:
    """Scores the shards of this process that lack a score, one after the other."""
    starts = np.cumsum([0, *(shard.num_pairs for shard in manifest.shards)])
    mine = range(jax.process_index(), len(manifest.shards), jax.process_count())
    missing = [
        (index, [name for name in scorers if files[name].is_missing(manifest.shards[index])])
        for index in mine
    ]
    total = sum(manifest.shards[index].num_pairs * len(names) for index, names in missing)
    with StopSignal() as stop, Progress("filter", total, "scores") as progress:

        def done(count: int) -> None:
            progress.add(count)
            if stop.received:
                stop.exit("scores of finished shards are kept; the same command goes on")

        for index, names in missing:
            if not names:
                continue
            shard = manifest.shards[index]
            pairs = list(records.read_shard(pathlib.Path(cfg.folder) / shard.name))
            for name in names:
                scores = scorers[name](pairs, int(starts[index]), done)
                files[name].write(shard, scores)


def _write(
    cfg: FilterConfig,
    manifest: Manifest,
    files: Mapping[str, ScoreFiles],
    folder: pathlib.Path,
    chosen: Mapping[str, Any],
) -> None:
    """Chooses, and writes the view and what there is to say of it."""
    scores = {
        name: np.concatenate([of.read(shard)["score"] for shard in manifest.shards])
        for name, of in files.items()
    }
    kept = choose(scores[cfg.by], cfg)
    bounds = np.cumsum([shard.num_pairs for shard in manifest.shards])[:-1]

    def rows():
        for shard, kept_M in zip(manifest.shards, np.split(kept, bounds), strict=True):
            own = np.arange(shard.num_pairs)
            image = own
            if cfg.action == "repair":
                image = np.where(kept_M, own, files["cycle"].read(shard)["best"])
                kept_M = kept_M | (image != own)
            yield np.stack([own, image], axis=1)[kept_M]

    view = views.write_view(folder, cfg.folder, rows(), block=cfg.cycle.pool_size, chosen=chosen)
    summary = {
        "pairs": manifest.num_pairs,
        "kept": view.num_pairs - view.num_repaired,
        "repaired": view.num_repaired,
        "dropped": manifest.num_pairs - view.num_pairs,
        "lowest_kept": float(scores[cfg.by][kept].min()) if kept.any() else None,
        "scores": {name: _statistics(values) for name, values in scores.items()},
        "chosen": chosen,
    }
    write_json(folder / SUMMARY, summary)
    write_text(folder / "index.html", render_filter(_counts(summary).strip(), scores, cfg.by))
    _print(summary)


def choose(scores: np.ndarray, cfg: FilterConfig) -> np.ndarray:
    """bool[num_pairs]: which are kept; a share is exact, of equal scores the first come first."""
    if cfg.action == "keep":
        return np.ones(len(scores), bool)
    if cfg.threshold is not None:
        return scores >= cfg.threshold
    kept = np.zeros(len(scores), bool)
    kept[np.argsort(-scores, kind="stable")[: round(cfg.keep * len(scores))]] = True
    return kept


def _statistics(scores: np.ndarray) -> dict[str, float]:
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        return {}
    percentiles = zip(_PERCENTILES, np.percentile(finite, _PERCENTILES), strict=True)
    return {
        "mean": float(finite.mean()),
        **{f"percentile_{percent}": float(value) for percent, value in percentiles},
    }


def _print(summary: Mapping[str, Any]) -> None:
    for name, statistics in summary["scores"].items():
        print(f"{name:>16}  " + "  ".join(f"{k} {v:.4g}" for k, v in statistics.items()))
    print(f"{_counts(summary)}, by {summary['chosen']['by']}")


def _counts(summary: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{summary[name]:,} {name}" for name in ("kept", "repaired", "dropped"))
    return f"{summary['pairs']:>16,} pairs: {counts}"
