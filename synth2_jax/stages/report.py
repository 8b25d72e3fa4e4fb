"""`synth2 report`: renders WORKDIR/report/index.html from what a demo has found.

Reads results.json and material.json beside it, so that a page can be made again without training.
With --captions it compares caption sets instead: see `diversity_report`.
"""

import pathlib
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.files import write_text
from synth2_jax.pages import diversity_report
from synth2_jax.pages.report_files import read_report
from synth2_jax.pages.report_page import render_page


def run(config: Any, workdir: str, *, captions: str | None = None, **options: str) -> str:
    """Writes the page; returns its path. There is nothing to configure."""
    del config
    if captions is not None:
        return diversity_report.compare(workdir, captions, **options)
    if options:
        raise UserError(f"--{next(iter(options))}: only works with --captions=NAME=PATH")
    folder = pathlib.Path(workdir) / "report"
    results, material = read_report(folder)
    page = folder / "index.html"
    try:
        text = render_page(results, material)
    except ValueError as error:  # a picture that would be loaded from elsewhere
        raise UserError(
            f"{folder / 'material.json'}: {error}. Run `synth2 demo` to write it again"
        ) from error
    write_text(page, text)
    print(f"report: {page}")
    return str(page)
