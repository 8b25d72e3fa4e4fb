"""The page of `synth2 report --captions`: how varied caption sets are, side by side.

Captions, class names and names of sets come from anywhere; the template shows them inert.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from synth2_jax.inert_text import inert
from synth2_jax.pages.charts import COLOURS, MARKER_SIGNS, Line, Points, line_chart, svg, thinned
from synth2_jax.pages.document import NO_BREAK, render
from synth2_jax.pages.numbers import lookup, number, percent

LONGEST_NAME = 24  # of a set in the printed table
MOST_POINTS = 24  # of a line whose points all have markers
MOST_BARS = 40  # classes with bars; of a longer list its two ends
SHARE_DRAWN = 0.99  # of each set's captions, in the chart of lengths
_ORDERS = ("1", "2", "3", "4")  # of n-grams, as captions.json names them

Row = tuple[str, list[tuple[str, float]], float | None]


def measures(figures: Mapping) -> list[Row]:
    """Name, (text, value) of each set, and the value that fills the bar below, None for no bar.

    Figures of classes are only among them if a list of classes was given.
    """

    def row(title, path, write=number, digits=0, full=None) -> Row:
        values = [lookup(one, *path.split("/")) for one in figures["sets"].values()]
        return title, [(write(value, digits), value) for value in values], full

    most_entropy = math.log(figures["settings"]["clusters"])
    found = [
        row("captions", "captions"),
        row("of them unique", "unique", percent, 1),
        row("words a caption", "words/mean", number, 1),
        row("different words", "vocabulary"),
        *(row(f"distinct-{order}", f"distinct/{order}", number, 4) for order in _ORDERS),
        row("in the 5 largest clusters", "top5_share", percent, 1, full=1.0),
        row("entropy over clusters, nats", "entropy", number, 2, full=most_entropy),
    ]
    if count := figures["num_classes"]:
        found += [
            row("classes named", "classes/named", percent, 1, full=1.0),
            row("captions of the rarest class", "classes/fewest"),
            row("captions of the middle class", "classes/median", number, 1),
            row("entropy over classes, nats", "classes/entropy", number, 2, full=math.log(count)),
        ]
    return found


def text_table(figures: Mapping) -> str:
    """The page's table as plain text, a column a set."""
    rows = [("", *(inert(name, LONGEST_NAME) for name in figures["sets"]))]
    rows += [(title, *(text for text, _ in cells)) for title, cells, _ in measures(figures)]
    first, *others = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows
    )


def render_captions(figures: Mapping) -> str:
    """Writes the whole page, one HTML document, of the contents of captions.json."""
    sets = figures["sets"]
    top_share = {name: one["top5_share"] for name, one in sets.items()}
    histograms = {name: one["words"]["histogram"] for name, one in sets.items()}
    clusters = {
        name: ranked(one["cluster_sizes"], sum(one["cluster_sizes"])) for name, one in sets.items()
    }
    classes, named = [], {}
    if figures["num_classes"]:
        classes = _classes(sets)
        named = {
            name: thinned(ranked(one["classes"]["captions"].values(), one["captions"]), MOST_POINTS)
            for name, one in sets.items()
        }
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
            "clusters": _charts(clusters, "cluster, from the set's largest on"),
            "lengths": _charts(lengths(histograms), "words a caption"),
            "classes": _charts(named, "class, from the one named most on"),
        },
        share_drawn=SHARE_DRAWN,
        longest=max(histogram[-1][0] for histogram in histograms.values()),
        most_points=MOST_POINTS,
        classes=classes,
        highest_share=max((share for _, row in classes for _, share in row), default=0),
        phrases={
            # (text, count) by rank and set; a set of fewer phrases has ("", None).
            order: list(
                itertools.zip_longest(
                    *(one["most_frequent"][order] for one in sets.values()), fillvalue=("", None)
                )
            )
            for order in _ORDERS
        },
    )


def _charts(
    points: Mapping[str, Points], x_title: str
) -> list[tuple[list[tuple[str, int, str]], str | None]]:
    """Legend and chart of as many sets at a time as there are colours."""
    charts = []
    titles = {"x_title": x_title, "y_title": "% of the captions"}
    label = f"% of the captions by {x_title}, one line a caption set"
    for start in range(0, len(points), len(COLOURS)):
        names = list(points)[start : start + len(COLOURS)]
        lines = [Line(points[name], colour) for colour, name in enumerate(names)]
        chart = line_chart(lines, (440, 270), from_zero=True, **titles)
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
    found = {}
    for name in names:
        counts = [(one["classes"]["captions"][name], one["captions"]) for one in sets.values()]
        found[name] = [(count, count / size) for count, size in counts]
    if len(names) > MOST_BARS:
        names.sort(key=lambda name: -sum(share for _, share in found[name]))
        names = names[: MOST_BARS // 2] + names[-(MOST_BARS // 2) :]
    return [(name, found[name]) for name in names]
