"""The page of `synth2 report --captions`: how varied caption sets are, side by side.

Captions, class names and names of sets come from anywhere: `_shown` makes each of them inert.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synth2_jax.inert_text import inert
from synth2_jax.pages.charts import legend, line_chart, lying_bar, thinned
from synth2_jax.pages.html import document, escaped, figure, lookup, number, percent

COLOURS = 6  # of the style sheet, so the most lines a chart has
MOST_POINTS = 24  # of a line whose points all have markers
MOST_BARS = 40  # classes with bars; of a longer list its two ends
LONGEST_SHOWN = 300  # characters of a text
SHARE_DRAWN = 0.99  # of each set's captions, in the chart of lengths
_PHRASES = {
    "1": "Words",
    "2": "Two words in a row",
    "3": "Three words in a row",
    "4": "Four words in a row",
}  # order in captions.json -> title


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure that every set has.

    Attributes:
      title: what it is called.
      path: where it stands in a set's figures.
      written: a value as text.
      full: from all figures, the value that fills the bar below it; without one there is no bar.
    """

    title: str
    path: tuple[str, ...]
    written: Callable[[Any], str]
    full: Callable[[Mapping], float] | None = None

    def value(self, one: Mapping) -> Any:
        return lookup(one, *self.path)

    def text(self, one: Mapping) -> str:
        return self.written(self.value(one))


def _with_digits(digits: int) -> Callable[[Any], str]:
    return lambda value: number(value, digits)


def _share(value) -> str:
    return percent(value, 1)


def _whole(figures: Mapping) -> float:
    del figures
    return 1.0


def _most_entropy(figures: Mapping) -> float:
    return math.log(figures["settings"]["clusters"])


def _most_class_entropy(figures: Mapping) -> float:
    return math.log(figures["num_classes"])


_OF_CAPTIONS = (
    Measure("captions", ("captions",), _with_digits(0)),
    Measure("of them unique", ("unique",), _share),
    Measure("words a caption", ("words", "mean"), _with_digits(1)),
    Measure("different words", ("vocabulary",), _with_digits(0)),
    *(Measure(f"distinct-{n}", ("distinct", str(n)), _with_digits(4)) for n in (1, 2, 3, 4)),
    Measure("in the 5 largest clusters", ("top5_share",), _share, _whole),
    Measure("entropy over clusters, nats", ("entropy",), _with_digits(2), _most_entropy),
)
_OF_CLASSES = (
    Measure("classes named", ("classes", "named"), _share, _whole),
    Measure("captions of the rarest class", ("classes", "fewest"), _with_digits(0)),
    Measure("captions of the middle class", ("classes", "median"), _with_digits(1)),
    Measure(
        "entropy over classes, nats", ("classes", "entropy"), _with_digits(2), _most_class_entropy
    ),
)


def measures(figures: Mapping) -> tuple[Measure, ...]:
    """What is told of each set; classes only where a list of them was given."""
    return _OF_CAPTIONS + (_OF_CLASSES if figures["num_classes"] else ())


def render_captions(figures: Mapping) -> str:
    """Writes the whole page.

    Args:
      figures: what captions.json holds.

    Returns:
      One HTML document.
    """
    sections = "\n".join(
        f'<section id="{anchor}"><h2>{title}</h2>\n{write(figures)}\n</section>'
        for anchor, title, write in _SECTIONS
        if anchor != "classes" or figures["num_classes"]
    )
    body = f"""<header>
<p class="kicker">synth2_jax · caption sets</p>
<h1>How varied are these captions?</h1>
<p class="answer">{_answer(figures)}</p>
</header>
<main>
{sections}
</main>
<footer>This page needs no network.</footer>"""
    return document("Caption sets side by side", body)


def _shown(text: str) -> str:
    """Any text as HTML in which it neither acts nor turns the text around it."""
    return f"<bdi>{escaped(inert(text, LONGEST_SHOWN))}</bdi>"


def _answer(figures: Mapping) -> str:
    share = {name: one["top5_share"] for name, one in figures["sets"].items()}
    clusters = figures["settings"]["clusters"]
    best, worst = min(share, key=share.get), max(share, key=share.get)
    text = f"the five largest of {clusters} clusters hold {percent(share[best], 1)} of its captions"
    if best == worst:
        return f"{_shown(best)}: {text}."
    other = f"{percent(share[worst], 1)} of {_shown(worst)}"
    return f"The most even set is {_shown(best)}: {text}, against {other}."


def _table(figures: Mapping) -> str:
    sets, settings = figures["sets"], figures["settings"]
    rows = "".join(
        f'<tr><th scope="row">{measure.title.replace(" ", "&nbsp;")}</th>'
        + "".join(_cell(measure, one, figures) for one in sets.values())
        + "</tr>"
        for measure in measures(figures)
    )
    return f"""{_side_by_side("", sets, rows)}
<p class="fine">Clusters, different words and distinct-n (distinct n-grams over all n-grams) change
with the size of a set, so they are counted in a random sample of each set, which has
{number(settings["sample_size"], 0)} captions. All sets share the {settings["clusters"]} clusters:
k-means over the samples, embedded by {_shown(settings["embedding"])}, seed {settings["seed"]}.
Entropy over clusters is at most {number(_most_entropy(figures), 2)}. Figures of two pages do not
compare.</p>"""


def _side_by_side(first: str, sets: Mapping[str, Mapping], rows: str) -> str:
    """A table with a column a set, after one with the rows' heads."""
    head = "".join(f'<th scope="col">{_shown(name)}</th>' for name in sets)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">{first}</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(measure: Measure, one: Mapping, figures: Mapping) -> str:
    bar = lying_bar(measure.value(one), measure.full(figures)) if measure.full else ""
    return f'<td class="measure">{measure.text(one)}{bar}</td>'


# Charts


def _lines(points: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> str:
    """One line a set; a chart holds as many as there are colours."""
    names = list(points)
    charts = []
    for start in range(0, len(names), COLOURS):
        group = names[start : start + COLOURS]
        chart = line_chart(
            [(colour, list(points[name])) for colour, name in enumerate(group)],
            f"{y_title} by {x_title}, one line a caption set",
            (440, 270),
            x_title=x_title,
            y_title=y_title,
            from_zero=True,
        )
        keys = [(colour, _shown(name)) for colour, name in enumerate(group)]
        charts.append(legend(keys) + chart)
    return "".join(charts)


def _clusters(figures: Mapping) -> str:
    points = {
        name: [
            (rank, 100 * size / sum(one["cluster_sizes"]))
            for rank, size in enumerate(sorted(one["cluster_sizes"], reverse=True), start=1)
        ]
        for name, one in figures["sets"].items()
    }
    even = percent(1 / figures["settings"]["clusters"], 1)
    return figure(
        _lines(points, "cluster, from the set's largest on", "% of the captions"),
        "Share of a set's captions in each cluster, each set's largest first. The flatter, the "
        f"more even: perfectly so at {even} everywhere.",
    )


def _lengths(figures: Mapping) -> str:
    histograms = {name: one["words"]["histogram"] for name, one in figures["sets"].items()}
    drawn = max(_reach(histogram) for histogram in histograms.values())
    points = {}
    for name, histogram in histograms.items():
        counts = dict(map(tuple, histogram))
        total = sum(counts.values())
        points[name] = [
            (length, 100 * counts.get(length, 0) / total) for length in range(drawn + 1)
        ]
    return figure(
        _lines(points, "words a caption", "% of the captions"),
        f"Words of a caption, without punctuation, over each whole set. At least "
        f"{percent(SHARE_DRAWN)} of every set is drawn; the longest caption has "
        f"{number(max(histogram[-1][0] for histogram in histograms.values()), 0)} words.",
    )


def _reach(histogram: Sequence[tuple[int, int]]) -> int:
    """The length up to which SHARE_DRAWN of the captions lie."""
    lengths, counts = zip(*histogram, strict=True)
    total = sum(counts)
    reached = (up_to >= SHARE_DRAWN * total for up_to in itertools.accumulate(counts))
    return next(itertools.compress(lengths, reached))


# Classes


def _classes(figures: Mapping) -> str:
    sets = figures["sets"]
    ranked = {}
    for name, one in sets.items():
        counts = sorted(one["classes"]["captions"].values(), reverse=True)
        shares = [(rank, 100 * n / one["captions"]) for rank, n in enumerate(counts, start=1)]
        ranked[name] = thinned(shares, MOST_POINTS)
    chart = figure(
        _lines(ranked, "class, from the one named most on", "% of the captions"),
        "Share of a set's captions that name each class, each set's commonest class first. Of more "
        f"than {MOST_POINTS} classes, means of neighbours.",
    )
    return chart + _class_bars(sets)


def _class_bars(sets: Mapping[str, Mapping]) -> str:
    share = {
        name: {c: count / one["captions"] for c, count in one["classes"]["captions"].items()}
        for name, one in sets.items()
    }
    highest = max(value for by_class in share.values() for value in by_class.values())
    names = list(next(iter(share.values())))
    words = "Classes in the order of their list."
    if len(names) > MOST_BARS:
        names.sort(key=lambda c: -sum(by_class[c] for by_class in share.values()))
        words = (
            f"Of {number(len(names), 0)} classes, the {MOST_BARS // 2} that the sets name most and "
            f"the {MOST_BARS // 2} that they name least."
        )
        names = names[: MOST_BARS // 2] + names[-(MOST_BARS // 2) :]
    rows = "".join(
        f'<tr><th scope="row">{_shown(c)}</th>'
        + "".join(
            f'<td class="measure">{number(one["classes"]["captions"][c], 0)}'
            f"{lying_bar(share[name][c], highest)}</td>"
            for name, one in sets.items()
        )
        + "</tr>"
        for c in names
    )
    return (
        f"<p>Captions that name each class; bars are shares of the set. {words}</p>"
        + _side_by_side("class", sets, rows)
    )


# Texts


def _phrases(figures: Mapping) -> str:
    sets = figures["sets"]
    tables = []
    for order, title in _PHRASES.items():
        frequent = [one["most_frequent"][order] for one in sets.values()]
        rows = "".join(
            f'<tr><th scope="row">{rank}</th>{"".join(map(_phrase, cells))}</tr>'
            for rank, cells in enumerate(
                itertools.zip_longest(*frequent, fillvalue=("", None)), start=1
            )
        )
        tables.append(
            f"<details{' open' if order == '3' else ''}><summary>{title}</summary>"
            f"{_side_by_side('', sets, rows)}</details>"
        )
    return "".join(tables)


def _phrase(cell: tuple[str, int | None]) -> str:
    text, count = cell
    times = "" if count is None else f' <span class="sub">{number(count, 0)}×</span>'
    return f"<td>{_shown(text)}{times}</td>"


def _examples(figures: Mapping) -> str:
    cards = []
    for rank, cluster in enumerate(figures["largest_clusters"], start=1):
        shares = ", ".join(
            f"{percent(share, 1)} of {_shown(name)}" for name, share in cluster["share"].items()
        )
        items = "".join(
            f'<p><span class="tag">{_shown(name)}</span> '
            f'<span class="caption">{_shown(caption)}</span></p>'
            for name, caption in cluster["examples"]
        )
        cards.append(
            f'<li class="card"><div><p><b>Cluster {rank}</b> <span class="sub">{shares}</span></p>'
            f"{items}</div></li>"
        )
    return (
        "<p>The clusters that hold most captions of all sets together, with captions drawn from "
        f'each at random.</p><ul class="cards">{"".join(cards)}</ul>'
    )


_SECTIONS: tuple[tuple[str, str, Callable[[Mapping], str]], ...] = (
    ("sets", "The sets", _table),
    ("clusters", "Clusters", _clusters),
    ("lengths", "Lengths", _lengths),
    ("classes", "Classes", _classes),
    ("phrases", "Most frequent words and phrases", _phrases),
    ("examples", "Inside the largest clusters", _examples),
)  # (anchor, heading, writer), in the page's order
