"""What the report's HTML is built from: numbers, pictures, verdicts and names as text.

Whatever comes from data is escaped: captions are a language model's words and may hold markup. A
number that is missing or not finite is a dash.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from synth2_jax.pages.style import STYLE

DASH = "–"
KICKER = (
    '<p class="kicker">synth2_jax · method of Synth² (arXiv 2403.07750) · built-in data set '
    "Scenes</p>"
)
_LARGEST = 1e100  # differences of such numbers are finite too
PERCENT = "\N{NO-BREAK SPACE}%"
NOTHING = '<p class="none">Not part of this run.</p>'
REAL, MIXED = "real", "real_synthetic"
ARM_NAMES = {
    REAL: "real only",
    MIXED: "real + synthetic",
    "synthetic": "synthetic only",
    "captions_only": "blank images",
    "shuffled": "shuffled images",
    "rendered": "true images",
}


def document(title: str, body: str) -> str:
    """A whole page: no script, nothing loaded."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def picture(image: np.ndarray, scale: int = 4) -> str:
    """Makes an image u8[H, W, 3] into a PNG data URI, each pixel drawn as scale x scale.

    Raises:
      ValueError: another dtype or shape, or a scale below 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or scale < 1:
        raise ValueError(
            f"picture: found {image.dtype}{list(image.shape)} at scale {scale}, "
            "expected uint8[H, W, 3] and a scale of at least 1"
        )
    height, width = image.shape[:2]
    drawn = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def lookup(tree, *path):
    """The value at a path of keys, or None where any of them is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def finite(value) -> float | None:
    """The value as a float; None where it is missing, no number, or none that a chart can show."""
    if isinstance(value, (int, float, np.number)) and abs(value) <= _LARGEST:
        return float(value)
    return None


def escaped(value) -> str:
    """The value as text that holds no markup."""
    return DASH if value is None else html.escape(str(value))


def number(value, digits: int = 1) -> str:
    """1234.5 -> "1,234.5"."""
    value = finite(value)
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", "−")


def percent(share, digits: int = 0) -> str:
    """0.31 -> "31 %"."""
    share = finite(share)
    return DASH if share is None else number(100 * share, digits) + PERCENT


def signed(value, digits: int = 1, unit: str = "") -> str:
    """2 -> "+2.0"."""
    value = finite(value)
    return DASH if value is None else f"{value:+,.{digits}f}".replace("-", "−") + unit


def duration(seconds) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    seconds = finite(seconds)
    if seconds is None:
        return DASH
    if seconds < 99.5:
        return f"{number(seconds, 0 if seconds >= 10 else 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def image_tag(uri, alt: str, css: str = "") -> str:
    """A picture; ValueError when it is not a data URI of an image, a dash when it is missing."""
    if uri is None:
        return f'<span class="picture {css} missing">{DASH}</span>'
    if not str(uri).startswith("data:image/"):
        raise ValueError(f"picture: found {str(uri)[:40]!r}, expected a data:image/ URI")
    return f'<img class="picture {css}" src="{escaped(uri)}" alt="{escaped(alt)}" loading="lazy">'


def mark(share, words: str) -> str:
    """Tick or cross with words, so that nothing hangs on colour; None is neither."""
    share = finite(share)
    if share is None:
        return f'<span class="mark open">{DASH} {words}</span>'
    sign, css = ("✓", "right") if share >= 1 else ("✗", "wrong")
    return f'<span class="mark {css}"><b>{sign}</b> {words}</span>'


def figure(body: str, caption: str) -> str:
    """A chart with its caption."""
    return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


# Arms


def ordered_arms(*trees) -> list[str]:
    """Names of the arms in any of these dicts, the two that are compared first."""
    found = dict.fromkeys(name for tree in trees for name in (tree or {}))
    return [a for a in (REAL, MIXED) if a in found] + [a for a in found if a not in (REAL, MIXED)]


def arm_name(arm: str) -> str:
    """The arm as the page names it."""
    return ARM_NAMES.get(arm) or escaped(arm).replace("_", " ")


def arm_colour(arm: str, arms: Sequence[str]) -> int:
    """Index of the arm's colour and marker; the compared arms always have the same."""
    others = [a for a in arms if a not in (REAL, MIXED)]
    return {REAL: 0, MIXED: 1}.get(arm, 2 + others.index(arm) % 4 if arm in others else 2)
