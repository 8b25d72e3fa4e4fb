"""The report of a demo as one HTML file: results in, page out, no script, nothing loaded."""

from collections.abc import Mapping

from synth2_jax.pages.html import (
    DASH,
    KICKER,
    MIXED,
    PERCENT,
    REAL,
    document,
    duration,
    escaped,
    finite,
    lookup,
    number,
    percent,
    signed,
)
from synth2_jax.pages.report_sections import SECTIONS

TOO_CLOSE = 0.02  # relative CIDEr difference below which one run an arm is called a tie


def render_page(results: Mapping, material: Mapping) -> str:
    """Writes the whole page.

    Args:
      results: what results.json holds. CIDEr, BLEU and ROUGE-L are on the scale papers print (times
        100), shares and `objects_right` lie in [0, 1], times are in seconds. Any key may be absent
        or None.
      material: what is shown beside the numbers: "scenes", "reconstructions", "synthetic", "test",
        "curves" and "losses"; pictures are data URIs (see `pages.html.picture`). Any key may be
        absent or empty.

    Returns:
      One HTML document.

    Raises:
      ValueError: a picture that is not a data URI of an image.
    """
    sections = "\n".join(
        f'<section id="{name}"><h2>{title}</h2>\n{write(results, material)}\n</section>'
        for name, title, write in SECTIONS
    )
    contents = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in SECTIONS)
    tiny = bool(results.get("tiny"))
    notice = (
        '<p class="notice"><strong>Tiny run.</strong> It shows that every stage works and nothing '
        "else: models this small, trained this briefly, learn nothing that could be compared.</p>"
        if tiny
        else ""
    )
    body = f"""<header>
{KICKER}
<h1>What do synthetic pairs add to a caption model?</h1>
<p class="answer">{_answer(results)}</p>
{notice}<p class="fine">One training run per arm. Both arms share the tokenizer, the frozen language
model and the number of steps, and are scored on the same test pictures, balanced over all
combinations of colour and shape.</p>
</header>
<main>
{_key_figures(results)}
<nav aria-label="Contents">{contents}</nav>
{sections}
</main>
<footer>synth2_jax, commit {escaped(results.get("commit"))}. This page needs no network.</footer>"""
    return document("Synth² on Scenes: what synthetic pairs add", body)


# The top of the page


def _gain(after, before) -> float | None:
    """(after - before) / before, or None where that says nothing."""
    after, before = finite(after), finite(before)
    return None if after is None or before is None or before <= 0 else after / before - 1


def _gain_text(gain: float | None) -> str:
    return DASH if gain is None else signed(100 * gain, 1, PERCENT)


def _answer(results: Mapping) -> str:
    if results.get("tiny"):
        return "Plumbing only; the numbers mean nothing."
    real, mixed = (finite(lookup(results, "arms", arm, "cider")) for arm in (REAL, MIXED))
    if real is None or mixed is None:
        return "No answer: this run did not score both arms."
    gain = _gain(mixed, real)
    change = f" ({_gain_text(gain)})" if gain is not None else ""
    both = (
        f"CIDEr is {number(mixed)} with real + synthetic pairs and {number(real)} with real "
        f"pairs only{change}"
    )
    if gain is not None and abs(gain) < TOO_CLOSE:
        return f"Too close to call: {both}, which one run of each arm cannot tell from chance."
    if mixed <= real:
        return f"No gain: {both}."
    before, after = (lookup(results, "arms", arm, "cider_unseen") for arm in (REAL, MIXED))
    unseen = _gain(after, before)
    tail = ""
    if unseen is not None:
        tail = (
            f"; on combinations that no real pair shows it is {number(after)} against "
            f"{number(before)} ({_gain_text(unseen)})"
        )
    return f"Yes, a gain: {both}{tail}."


def _key_figures(results: Mapping) -> str:
    def of(*path):
        return lookup(results, *path)

    gain = _gain(of("arms", MIXED, "cider"), of("arms", REAL, "cider"))
    unseen = _gain(of("arms", MIXED, "cider_unseen"), of("arms", REAL, "cider_unseen"))
    speed = _gain(of("steps_per_second", "embedding"), of("steps_per_second", "pixel"))
    ratio = DASH if speed is None else f"{number(1 + speed, 2)}×"
    figures = (
        ("CIDEr, real only", number(of("arms", REAL, "cider")), "real pairs alone", "arm0"),
        ("CIDEr, real + synthetic", number(of("arms", MIXED, "cider")), "same steps", "arm1"),
        ("Gain in CIDEr", _gain_text(gain), "the paper: +17&nbsp;% (abstract, v1)", ""),
        ("Gain on unseen", _gain_text(unseen), "combinations no real pair shows", ""),
        (
            "Generator",
            percent(of("generator", "objects_right")),
            "objects right in its pictures",
            "",
        ),
        (
            "Tokenizer",
            percent(of("tokenizer", "objects_right")),
            "objects right once reconstructed",
            "",
        ),
        ("Embedding / pixel speed", ratio, "the paper: 1.25× (abstract)", ""),
        ("Time", duration(of("seconds")), "the whole demo", ""),
    )
    tiles = "".join(
        f'<div class="tile {css}"><dt>{name}</dt><dd>{value}</dd><dd class="sub">{note}</dd></div>'
        for name, value, note, css in figures
    )
    return f'<dl class="tiles{" tiny" if results.get("tiny") else ""}">{tiles}</dl>'
