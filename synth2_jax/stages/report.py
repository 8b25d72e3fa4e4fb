"""`synth2 report`: renders WORKDIR/report/index.html from what a demo has found.

Reads results.json and material.json in the same folder, so that a page can be made again without
training. With --captions=NAME=PATH,NAME=PATH it compares caption sets instead: it writes
WORKDIR/captions.json (every figure) and WORKDIR/captions.html (the page), and prints a table.
"""

import pathlib
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.evaluation import caption_sets
from synth2_jax.files import write_json, write_text
from synth2_jax.pages.captions_page import render_captions, text_table
from synth2_jax.pages.report_files import read_report
from synth2_jax.pages.report_page import render_page


def run(config: Any, workdir: str, *, captions: str | None = None, **options: Any) -> str:
    """Writes the page; returns its path. There is nothing to configure."""
    del config
    if captions is not None:
        page = _compare(pathlib.Path(workdir), captions, **options)
    elif options:
        raise UserError(f"--{next(iter(options))}: only works with --captions=NAME=PATH")
    else:
        page = _demo(pathlib.Path(workdir) / "report")
    print(f"report: {page}")
    return str(page)


def _compare(folder: pathlib.Path, captions: str, **options: Any) -> pathlib.Path:
    figures = caption_sets.compare(captions, **options)
    write_json(folder / "captions.json", figures)
    write_text(folder / "captions.html", render_captions(figures))
    print(text_table(figures))
    return folder / "captions.html"


def _demo(folder: pathlib.Path) -> pathlib.Path:
    results, material = read_report(folder)
    try:
        page = render_page(results, material)
    except ValueError as error:  # a picture that would be loaded from elsewhere
        raise UserError(
            f"{folder / 'material.json'}: {error}. Run `synth2 demo` to write it again"
        ) from error
    write_text(folder / "index.html", page)
    return folder / "index.html"
