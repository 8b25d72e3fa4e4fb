"""Puts measured tables into README.md and the pages of docs/, so that none is typed by hand.

    python benchmarks/update_readme.py [--study=WORKDIR] [--demo=WORKDIR] [--plans=WORKDIR]

`--study` and `--demo` first copy the results of such a run into benchmarks/results/DEVICE/,
`--plans` the plans of `synth2 plan` into benchmarks/results/plans/. Then the text between
`<!-- NAME:begin -->` and `<!-- NAME:end -->` is replaced by the results there.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from benchmarks.result import Figure, number  # noqa: E402
from synth2_jax.files import write_text  # noqa: E402


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


def study_table() -> str:
    """The table of each device that a study was run on."""
    return "\n".join(path.read_text().strip() for path in sorted(RESULTS.glob("*/study.md")))


def result_table() -> str:
    """The study's arms with their CIDEr alone, from the first device that has a study."""
    wanted = ("arm", "CIDEr", "gain", "CIDEr unseen")
    for path in sorted(RESULTS.glob("*/study.md")):
        lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        columns = [rows[0].index(name) for name in wanted]
        return "\n".join("| " + " | ".join(row[i] for i in columns) + " |" for row in rows)
    return ""


def demo_table() -> str:
    """A row for each device that the demo was run on."""
    heads = (
        "device",
        "minutes",
        "memory",
        "CIDEr real",
        "CIDEr real + synthetic",
        "unseen: real",
        "unseen: real + synthetic",
        "tokenizer",
        "generator",
        "embedding / pixel",
        "commit",
    )
    rows = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for path in sorted(RESULTS.glob("*/demo.json")):
        found = json.loads(path.read_text())
        real, both = found["arms"]["real"], found["arms"]["real_synthetic"]
        speed = found["steps_per_second"]
        cells = (
            found["versions"]["device"],
            f"{found['seconds'] / 60:.1f}",
            # Results from before it was measured have none.
            f"{found['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in found else "–",
            f"{real['cider']:.1f}",
            f"{both['cider']:.1f} ({both['cider'] / real['cider'] - 1:+.0%})",
            f"{real['cider_unseen']:.1f}",
            f"{both['cider_unseen']:.1f}",
            f"{found['tokenizer']['objects_right']:.1%}",
            f"{found['generator']['objects_right']:.1%}",
            f"{speed['embedding'] / speed['pixel']:.2f}x",
            found["commit"],
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def keep_plans(workdir: pathlib.Path) -> None:
    """Copies every plan."""
    folder = _folder("plans")
    for path in sorted(workdir.glob("*-train.json")):
        shutil.copyfile(path, folder / path.name)


def plans_table() -> str:
    """A row for each planned pod."""
    heads = (
        *("model", "pod", "mesh", "batch", "GiB a chip", "of HBM", "compiled / model FLOPs"),
        *("collectives a chip", "estimate", "bound by", "commit"),
    )
    rows = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for path in sorted((RESULTS / "plans").glob("*.json")):
        found = json.loads(path.read_text())
        total, hbm = found["memory_bytes_per_chip"]["total"], found["hbm_bytes_per_chip"]
        cells = (
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
            found["versions"]["commit"],
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def speed_table() -> str:
    """A row for each figure of each device."""
    heads = ("device", "measured", "figure", "of the limit", "", "commit")
    rows = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for path in sorted(RESULTS.glob("*/*.json")):
        found = json.loads(path.read_text())
        for figure in found.get("figures", ()):
            figure = Figure(**figure)
            share = "" if figure.share is None else f"{figure.share:.0%} of {figure.bound}"
            cells = (
                found["made_with"]["device"],
                figure.name,
                f"{number(figure.value)} {figure.unit}",
                share,
                figure.note,
                found["made_with"]["commit"],
            )
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else ""


# {page: {marker: function that makes its table}}
PAGES = {
    "README.md": {"result": result_table},
    "docs/science.md": {"study": study_table, "demo": demo_table},
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
    parser.add_argument("--plans", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.study:
        keep_study(arguments.study)
    if arguments.demo:
        keep_demo(arguments.demo)
    if arguments.plans:
        keep_plans(arguments.plans)
    for page in PAGES:
        write_text(ROOT / page, filled(page))


if __name__ == "__main__":
    main()
