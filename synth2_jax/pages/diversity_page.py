"""The page of `synth2 report --captions`: how varied caption sets are, side by side.

Captions, class names and names of sets come from anywhere; the template shows them inert.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from synth2_jax.pages.charts import COLOURS, MARKER_SIGNS, Line, Points, line_chart, svg, thinned
from synth2_jax.pages.document import NO_BREAK, render
from synth2_jax.pages.numbers import lookup, number, percent

MOST_POINTS = 24  # of a line whose points all have markers
MOST_BARS = 40  # classes with bars; of a longer list its two ends
SHARE_DRAWN = 0.99  # of each set's captions, in the chart of lengths
_PHRASES = {
    "1": "Words",
    "2": "Two words in a row",
    "3": "Three words in a row",
    "4": "Four words in a row",
}  # order in captions.json -> title
_Y_TITLE = "% of the captions"


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure that every set has.

    Attributes:
      title: its name.
      path: its keys in a set's figures.
      text_of: writes a value, `number` or `percent`.
      digits: after the point.
      full: the value that fills the bar below it; None for no bar.
    """

    title: str
    path: tuple[str, ...]
    text_of: Callable[[Any, int], str]
    digits: int
    full: float | None = None

    def value(self, one: Mapping) -> Any:
        return lookup(one, *self.path)

    def text(self, one: Mapping) -> str:
        return self.text_of(self.value(one), self.digits)


def measures(figures: Mapping) -> list[Measure]:
    """The figures of each set; those of classes only if a list of them was given."""
    most_entropy = math.log(figures["settings"]["clusters"])
    found = [
        Measure("captions", ("captions",), number, 0),
        Measure("of them unique", ("unique",), percent, 1),
        Measure("words a caption", ("words", "mean"), number, 1),
        Measure("different words", ("vocabulary",), number, 0),
        *(Measure(f"distinct-{n}", ("distinct", n), number, 4) for n in _PHRASES),
        Measure("in the 5 largest clusters", ("top5_share",), percent, 1, 1.0),
        Measure("entropy over clusters, nats", ("entropy",), number, 2, most_entropy),
    ]
    if count := figures["num_classes"]:
        found += [
            Measure("classes named", ("classes", "named"), percent, 1, 1.0),
            Measure("captions of the rarest class", ("classes", "fewest"), number, 0),
            Measure("captions of the middle class", ("classes", "median"), number, 1),
            Measure(
                "entropy over classes, nats", ("classes", "entropy"), number, 2, math.log(count)
            ),
        ]
    return found


def render_captions(figures: Mapping) -> str:
    """Writes the whole page.

    Args:
      figures: the contents of captions.json.

    Returns:
      One HTML document.
    """
    sets = figures["sets"]
    top_share = {name: one["top5_share"] for name, one in sets.items()}
    histograms = {name: one["words"]["histogram"] for name, one in sets.items()}
    classes = _classes(sets) if figures["num_classes"] else []
    return render(
        "captions.html.j2",
        **figures,
        signs=MARKER_SIGNS,
        no_break=NO_BREAK,
        best=min(top_share, key=top_share.get),
        worst=max(top_share, key=top_share.get),
        measures=measures(figures),
        most_entropy=math.log(figures["settings"]["clusters"]),
        charts={
            "clusters": _charts(
                {
                    name: ranked(one["cluster_sizes"], sum(one["cluster_sizes"]))
                    for name, one in sets.items()
                },
                "cluster, from the set's largest on",
            ),
            "lengths": _charts(lengths(histograms), "words a caption"),
            "classes": _charts(
                {
                    name: thinned(
                        ranked(one["classes"]["captions"].values(), one["captions"]), MOST_POINTS
                    )
                    for name, one in sets.items()
                    if classes
                },
                "class, from the one named most on",
            ),
        },
        share_drawn=SHARE_DRAWN,
        longest=max(histogram[-1][0] for histogram in histograms.values()),
        most_points=MOST_POINTS,
        classes=classes,
        highest_share=max((share for _, row in classes for _, share in row), default=0),
        phrases=[
            (
                title,
                itertools.zip_longest(
                    *(one["most_frequent"][order] for one in sets.values()), fillvalue=("", None)
                ),
                order == "3",
            )
            for order, title in _PHRASES.items()
        ],
    )


def _charts(
    points: Mapping[str, Points], x_title: str
) -> list[tuple[list[tuple[str, int, str]], str | None]]:
    """Legend and chart of as many sets at a time as there are colours."""
    charts = []
    for start in range(0, len(points), len(COLOURS)):
        names = list(points)[start : start + len(COLOURS)]
        chart = line_chart(
            [Line(points[name], colour) for colour, name in enumerate(names)],
            (440, 270),
            x_title=x_title,
            y_title=_Y_TITLE,
            from_zero=True,
        )
        label = f"{_Y_TITLE} by {x_title}, one line a caption set"
        charts.append(([(name, i, name) for i, name in enumerate(names)], svg(chart, label)))
    return charts


def ranked(counts: Iterable[int], total: int) -> Points:
    """(rank, percent of the total) of the counts, the largest first."""
    return [
        (rank, 100 * count / total)
        for rank, count in enumerate(sorted(counts, reverse=True), start=1)
    ]


def lengths(histograms: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, Points]:
    """(words, percent of the captions) up to where SHARE_DRAWN of every set's captions lie."""
    longest = max(_reach(histogram) for histogram in histograms.values())
    points = {}
    for name, histogram in histograms.items():
        counts = dict(map(tuple, histogram))
        total = sum(counts.values())
        points[name] = [(n, 100 * counts.get(n, 0) / total) for n in range(longest + 1)]
    return points


def _reach(histogram: Sequence[tuple[int, int]]) -> int:
    words, counts = zip(*histogram, strict=True)
    total = sum(counts)
    reached = (up_to >= SHARE_DRAWN * total for up_to in itertools.accumulate(counts))
    return next(itertools.compress(words, reached))


def _classes(sets: Mapping[str, Mapping]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Each class's (captions that name it, their share) by set; of a long list the two ends."""
    names = list(next(iter(sets.values()))["classes"]["captions"])
    found = {
        name: [
            (n, n / one["captions"])
            for one in sets.values()
            for n in [one["classes"]["captions"][name]]
        ]
        for name in names
    }
    if len(names) > MOST_BARS:
        names.sort(key=lambda name: -sum(share for _, share in found[name]))
        names = names[: MOST_BARS // 2] + names[-(MOST_BARS // 2) :]
    return [(name, found[name]) for name in names]
