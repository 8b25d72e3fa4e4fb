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

from synth2_jax import config as config_lib
from synth2_jax.data import records, views
from synth2_jax.data.pair_shards import wait_for_all
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
    place = pathlib.Path(cfg.scores_folder or pathlib.Path(cfg.folder) / SCORES)
    _check_writable(place)
    files = {
        name: ScoreFiles(place, name, scorer.settings, scorer.dtype)
        for name, scorer in scorers.items()
    }
    _score_missing(cfg, manifest, scorers, files)
    wait_for_all("filter: all scores are there")
    if jax.process_index() == 0:
        _write(cfg, manifest, files, folder, chosen)
    wait_for_all("filter: the view is there")
    return read_json(folder / SUMMARY, "filter")


def _check_writable(place: pathlib.Path) -> None:
    """Raises UserError, before hours of work, if no score can be written."""
    probe = place / f".{jax.process_index()}.probe"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--config.scores_folder: cannot write to {place} ({error.strerror}). Give another "
            "folder."
        ) from error


def _score_missing(
    cfg: FilterConfig,
    manifest: Manifest,
    scorers: Mapping[str, PairScorer],
    files: Mapping[str, ScoreFiles],
) -> None:
    """Scores the shards of this process that lack a score, one after the other."""
    starts = np.cumsum([0, *(shard.num_pairs for shard in manifest.shards)])
    missing = []
    for index in range(jax.process_index(), len(manifest.shards), jax.process_count()):
        shard = manifest.shards[index]
        names = [name for name in scorers if files[name].is_missing(shard)]
        if names:
            missing.append((shard, int(starts[index]), names))
    total = sum(shard.num_pairs * len(names) for shard, _, names in missing)
    with StopSignal() as stop, Progress("filter", total, "scores") as progress:

        def done(count: int) -> None:
            progress.add(count)
            if stop.received:
                stop.exit("scores of finished shards are kept; the same command goes on")

        for shard, start, names in missing:
            pairs = list(records.read_shard(pathlib.Path(cfg.folder) / shard.name))
            for name in names:
                files[name].write(shard, scorers[name](pairs, start, done))


def _write(
    cfg: FilterConfig,
    manifest: Manifest,
    files: Mapping[str, ScoreFiles],
    folder: pathlib.Path,
    chosen: Mapping[str, Any],
) -> None:
    """Selects pairs and writes the view and its summary."""
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
    counts = ", ".join(f"{summary[name]:,} {name}" for name in ("kept", "repaired", "dropped"))
    counts = f"{manifest.num_pairs:>16,} pairs: {counts}"
    write_text(folder / "index.html", render_filter(counts.strip(), scores, cfg.by))
    for name, statistics in summary["scores"].items():
        print(f"{name:>16}  " + "  ".join(f"{k} {v:.4g}" for k, v in statistics.items()))
    print(f"{counts}, by {cfg.by}")


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
    found = {f"percentile_{percent}": float(value) for percent, value in percentiles}
    return {"mean": float(finite.mean()), **found}
