"""`synth2 report`: renders WORKDIR/report/index.html from what a demo has found.

Reads results.json and material.json beside it, so that a page can be made again without training.
With --captions it compares caption sets instead: see `diversity_report`.
"""

import pathlib
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.files import read_json, write_text
from synth2_jax.stages import diversity_report
from synth2_jax.stages.report_page import render_page


def run(config: Any, workdir: str, *, captions: str | None = None, **options: str) -> str:
    """Writes the page; returns its path. There is nothing to configure."""
    del config
    if captions is not None:
        return diversity_report.compare(workdir, captions, **options)
    if options:
        raise UserError(f"report: --{next(iter(options))} goes with --captions=NAME=PATH")
    folder = pathlib.Path(workdir) / "report"
    results, material = (read_json(folder / f"{n}.json", "demo") for n in ("results", "material"))
    page = folder / "index.html"
    write_text(page, render_page(results, material))
    print(f"report: {page}")
    return str(page)
