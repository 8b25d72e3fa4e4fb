"""Puts measured tables into README.md and the pages of docs/, so that none is typed by hand.

    python benchmarks/update_readme.py [--study=WORKDIR] [--demo=WORKDIR] [--plans=WORKDIR] \\
        [--demos WORKDIR WORKDIR ...] [--rounds WORKDIR WORKDIR ...]

`--study` and `--demo` first copy the results of such a run into benchmarks/results/DEVICE/,
`--demos` and `--rounds` those of runs with several seeds, `--plans` the plans of `synth2 plan` into
benchmarks/results/plans/. Then the text between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is
replaced by the results there.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from benchmarks.result import Figure, number  # noqa: E402
from synth2_jax.experiments.arms import ARMS  # noqa: E402
from synth2_jax.experiments.study_tables import spread  # noqa: E402
from synth2_jax.files import write_json, write_text  # noqa: E402
from synth2_jax.pages.intervals import gain_text  # noqa: E402
from synth2_jax.pages.numbers import PERCENT, lookup  # noqa: E402
from synth2_jax.pages.rounds_page import title  # noqa: E402


def keep_study(workdir: pathlib.Path) -> None:
    """Copies study.json and study.md."""
    made_with = json.loads((workdir / "study.json").read_text())["made_with"]
    folder = _folder(made_with["device"])
    for name in ("study.json", "study.md"):
        shutil.copyfile(workdir / name, folder / name)


def keep_demo(workdir: pathlib.Path) -> None:
    """Copies results.json as demo.json."""
    results = json.loads((workdir / "report" / "results.json").read_text())
    folder = _folder(results["versions"]["device"])
    shutil.copyfile(workdir / "report" / "results.json", folder / "demo.json")


def keep_demos(workdirs: Sequence[pathlib.Path]) -> None:
    """Gathers what differs between demos of several seeds into demos.json."""
    results = [json.loads((path / "report" / "results.json").read_text()) for path in workdirs]
    runs = [
        {
            "seed": found["config"]["seed"],
            **{name: found[name] for name in ("arms", "gains", "commit")},
        }
        for found in results
    ]
    _gather(runs, results[0]["versions"]["device"], "demos.json")


def keep_rounds(workdirs: Sequence[pathlib.Path]) -> None:
    """Gathers what rounds of several seeds gave into rounds.json."""
    results = [json.loads((path / "rounds.json").read_text()) for path in workdirs]
    runs = [
        {
            "seed": found["config"]["seed"],
            "commit": found["made_with"]["commit"],
            **{name: found[name] for name in ("runs", "gains", "stopped")},
        }
        for found in results
    ]
    _gather(runs, results[0]["made_with"]["device"], "rounds.json")


def _gather(runs: Sequence[dict], device: str, name: str) -> None:
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"found seeds {seeds}, expected each once")
    write_json(_folder(device) / name, {"runs": sorted(runs, key=lambda run: run["seed"])})


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown; "" without rows."""
    rows = list(rows)
    lines = [heads, ["---"] * len(heads), *rows] if rows else []
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def study_table() -> str:
    """The table of each device that a study was run on."""
    return "\n".join(path.read_text().strip() for path in sorted(RESULTS.glob("*/study.md")))


def result_table() -> str:
    """The main arms and controls with their CIDEr, from the first device with a study."""
    shown = ("real", "real_synthetic", "rendered", "captions_only", "shuffled")
    titles = [ARMS[name].title for name in shown]
    wanted = ("arm", "zero-shot CIDEr", "zero-shot gain", "CIDEr", "gain")
    for path in sorted(RESULTS.glob("*/study.md")):
        lines = path.read_text().partition("\n\n")[0].splitlines()  # the first table
        heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        columns = [heads.index(name) for name in wanted]
        return table(wanted, ([row[i] for i in columns] for row in rows if row[0] in titles))
    return ""


def demo_table() -> str:
    """A row for each device that the demo was run on."""
    heads = (
        *("device", "minutes", "memory", "zero-shot: real", "zero-shot: real + synthetic"),
        *("CIDEr: real", "CIDEr: real + synthetic", "tokenizer", "generator"),
        *("embedding / pixel", "commit"),
    )

    def cells(found: dict) -> tuple[str, ...]:
        real, both = found["arms"]["real"], found["arms"]["real_synthetic"]
        speed, gains = found["steps_per_second"], found.get("gains") or {}

        def scores(name: str) -> tuple[str, str]:
            gain = gains.get(name) or {"value": both[name] / real[name] - 1}
            return f"{real[name]:.1f}", f"{both[name]:.1f} ({gain_text(gain)})"

        return (
            found["versions"]["device"],
            f"{found['seconds'] / 60:.1f}",
            # Results from before it was measured have none.
            f"{found['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in found else "–",
            *(*scores("cider_unseen"), *scores("cider")),
            f"{found['tokenizer']['objects_right']:.1%}",
            f"{found['generator']['objects_right']:.1%}",
            f"{speed['embedding'] / speed['pixel']:.2f}x",
            found["commit"],
        )

    return table(heads, map(cells, _results("*/demo.json")))


def demos_table() -> str:
    """A row for each seed of the demo, their mean and deviation, and the smallest of each."""
    heads = ["seed"]
    parts = {"zero-shot": "cider_unseen", "CIDEr": "cider"}
    for part in parts:
        heads += [f"{part}: real", f"{part}: real + synthetic", "gain"]
    rows, numbers = [], []
    for run in _runs("*/demos.json"):
        cells, found = [str(run["seed"])], []
        for part in parts.values():
            real, both = (run["arms"][arm][part] for arm in ("real", "real_synthetic"))
            cells += [f"{real:.1f}", f"{both:.1f}", gain_text(run["gains"][part])]
            found += [real, both, 100 * (both / real - 1)]
        rows.append(cells)
        numbers.append(found)
    if len(rows) > 1:
        columns = list(zip(*numbers, strict=True))
        units = ("", "", PERCENT) * len(parts)
        for name, of in (("mean", spread), ("smallest", lambda column: f"{min(column):.1f}")):
            rows.append([name, *map("{}{}".format, map(of, columns), units)])
    return table(heads, rows)


def rounds_table() -> str:
    """A row for each round, and one for one long round: means over the seeds."""
    columns = {  # {title: (path in a run, digits)}
        "zero-shot CIDEr": ("scores.cider_unseen", 1),
        "CIDEr": ("scores.cider", 1),
        "CIDEr seen": ("scores.cider_seen", 1),
        "objects right in pictures": ("faithful.synthetic", 3),
        "captions' entropy": ("captions.entropy", 2),
        "held-out loss: VLM": ("held_out.vlm", 3),
        "generator": ("held_out.generator", 3),
    }
    seeds, rows = list(_runs("*/rounds.json")), []
    for name in dict.fromkeys(name for seed in seeds for name in seed["runs"]):
        runs = [seed["runs"][name] for seed in seeds if name in seed["runs"]]
        cells = (
            spread((lookup(run, *path.split(".")) for run in runs), digits=digits)
            for path, digits in columns.values()
        )
        gains = [lookup(seed, "gains", name, "cider_unseen") for seed in seeds]
        rows.append([title(name), str(len(runs)), *cells, _last_rounds_gain(gains)])
    return table(["", "seeds", *columns, "zero-shot, the last round gains on it"], rows)


def _last_rounds_gain(gains: Sequence[dict | None]) -> str:
    """Mean and deviation over seeds, and how many of their intervals are above 0."""
    known = [found for found in gains if found]
    if not known:
        return "–"
    above = sum(found["low"] > 0 for found in known)
    mean = spread((found["value"] for found in known), scale=100)
    return f"{mean}{PERCENT} ({above} of {len(known)} intervals above 0)"


def _runs(pattern: str) -> Iterator[dict]:
    return (run for found in _results(pattern) for run in found["runs"])


def keep_plans(workdir: pathlib.Path) -> None:
    """Copies every plan."""
    folder = _folder("plans")
    for path in sorted(workdir.glob("*-train.json")):
        shutil.copyfile(path, folder / path.name)


def plans_table() -> str:
    """A row for each planned pod."""
    heads = (
        *("model", "pod", "mesh", "batch", "GiB a chip", "of HBM", "compiled / model FLOPs"),
        *("collectives a chip", "estimate", "bound by", "at best", "MFU", "commit"),
    )

    def cells(found: dict) -> tuple[str, ...]:
        total, hbm = found["memory_bytes_per_chip"]["total"], found["hbm_bytes_per_chip"]
        return (
            found["model"],
            f"{found['chips']} x {found['topology']}",
            " ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1),
            str(found["batch"]),
            f"{total / 2**30:.1f}",
            f"{total / hbm:.0%}",
            f"{found['flops_ratio']:.3f}",
            f"{found['collective_bytes_per_chip'] / 2**30:.1f} GiB",
            f"{found['estimate']['seconds'] * 1e3:.0f} ms",
            found["estimate"]["bound_by"],
            f"{found['estimate']['at_best'] * 1e3:.0f} ms",
            f"{found['estimate']['mfu']:.0%}",
            found["versions"]["commit"],
        )

    return table(heads, map(cells, _results("plans/*.json")))


def speed_table() -> str:
    """A row for each figure of each device."""

    def cells(figure: Figure, made_with: dict) -> tuple[str, ...]:
        share = "" if figure.share is None else f"{figure.share:.0%} of {figure.bound}"
        value = f"{number(figure.value)} {figure.unit}"
        return made_with["device"], figure.name, value, share, figure.note, made_with["commit"]

    heads = ("device", "measured", "figure", "of the limit", "", "commit")
    rows = (
        cells(Figure(**figure), found["made_with"])
        for found in _results("*/*.json")
        for figure in found.get("figures", ())
    )
    return table(heads, rows)


def _results(pattern: str) -> Iterator[dict]:
    return (json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern)))


# {page: {marker: function that makes its table}}
PAGES = {
    "README.md": {"result": result_table},
    "docs/science.md": {
        "study": study_table,
        "demo": demo_table,
        "demos": demos_table,
        "rounds": rounds_table,
    },
    "docs/performance.md": {"plans": plans_table, "speed": speed_table},
}


def fill(text: str, tables: dict[str, str]) -> str:
    """Replaces the text between the markers of each table; ValueError if they are missing."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no markers of {name!r}")
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def filled(page: str) -> str:
    """The text of a page, with its tables made from the results."""
    tables = {name: make() or "Not run yet." for name, make in PAGES[page].items()}
    return fill((ROOT / page).read_text(), tables)


def _folder(device: str) -> pathlib.Path:
    folder = RESULTS / device.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=pathlib.Path)
    parser.add_argument("--demo", type=pathlib.Path)
    parser.add_argument("--demos", type=pathlib.Path, nargs="+")
    parser.add_argument("--rounds", type=pathlib.Path, nargs="+")
    parser.add_argument("--plans", type=pathlib.Path)
    arguments = parser.parse_args()
    for keep in (keep_study, keep_demo, keep_demos, keep_rounds, keep_plans):
        if given := getattr(arguments, keep.__name__.removeprefix("keep_")):
            keep(given)
    for page in PAGES:
        write_text(ROOT / page, filled(page))


if __name__ == "__main__":
    main()
