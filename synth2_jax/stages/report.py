"""`synth2 report`: renders WORKDIR/report/index.html from what a demo has found.

Reads results.json and material.json beside it, so that a page can be made again without training.
"""

import json
import pathlib
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.files import write_text
from synth2_jax.stages.report_page import render_page


def run(config: Any, workdir: str) -> str:
    """Writes the page; returns its path. There is nothing to configure."""
    del config
    folder = pathlib.Path(workdir) / "report"
    found = {}
    for name in ("results", "material"):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected what `synth2 demo` leaves there")
        found[name] = json.loads(path.read_text())
    page = folder / "index.html"
    write_text(page, render_page(found["results"], found["material"]))
    print(f"report: {page}")
    return str(page)
