"""The page of a filtered view: what was kept, and a histogram of each score."""

from collections.abc import Mapping

import numpy as np

from synth2_jax.pages.charts import Line, line_chart, svg
from synth2_jax.pages.document import render

BINS = 60


def render_filter(heading: str, scores: Mapping[str, np.ndarray], by: str) -> str:
    """Writes the whole page: one HTML document with the scores f32[num_pairs] by name.

    `by` is the score that decides.
    """
    histograms = {}
    for name, values in scores.items():
        counts, edges = np.histogram(values[np.isfinite(values)], BINS)
        lines = [Line(list(zip((edges[1:] + edges[:-1]) / 2, counts, strict=True)))]
        chart = line_chart(lines, (640, 240), x_title="nats", y_title="pairs", from_zero=True)
        histograms[name] = svg(chart, f"histogram of {name}")
    return render("filter.html.j2", heading=heading, histograms=histograms, by=by)
