"""Pages and model cards from this room's templates. A page is one file: no script, nothing loaded.

Whatever comes from data is made inert and escaped, as captions are a language model's words and may
hold markup. jinja2 and matplotlib are imported when a page is written, not before.
"""

import base64
import functools
import io
import json
import re
from typing import Any

import numpy as np
from PIL import Image

from synth2_jax.inert_text import inert
from synth2_jax.pages import numbers

NO_BREAK = "\N{NO-BREAK SPACE}"


def render(template: str, **values: Any) -> str:
    """Renders templates/TEMPLATE, a *.html.j2 or *.md.j2; a value that is missing is a dash."""
    return _environment(template.split(".")[-2]).get_template(template).render(**values)


@functools.cache
def _environment(kind: str):
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("synth2_jax", "pages/templates"),
        autoescape=True,
        finalize=functools.partial(_finalize, kind),
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("finite", "number", "percent", "signed", "signed_percent", "duration"):
        environment.filters[name] = getattr(numbers, name)
    environment.filters |= {"code": _code, "picture": _picture_uri, "inert": inert}
    return environment


def picture(image: np.ndarray, scale: int = 4) -> str:
    """Makes an image u8[H, W, 3] into a PNG data URI, each pixel drawn as scale x scale.

    ValueError on another dtype or shape, or a scale below 1.
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


def _picture_uri(uri: Any) -> str:
    if not str(uri).startswith("data:image/"):
        raise ValueError(f"picture: found {str(uri)[:40]!r}, expected a data:image/ URI")
    return str(uri)


def _finalize(kind: str, value: Any) -> Any:
    """The value as text without markup of an "html" template, which jinja2 escapes, or an "md"."""
    import jinja2
    import markupsafe

    if value is None or isinstance(value, jinja2.Undefined):
        return numbers.DASH
    if hasattr(value, "__html__"):
        return value
    if kind == "md":
        return markupsafe.Markup(re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", inert(str(value))))
    return NO_BREAK.join(map(inert, str(value).split(NO_BREAK)))


def _code(value: Any) -> Any:
    """JSON of a value, or a text, as Markdown's code on one line."""
    import markupsafe

    text = value if isinstance(value, str) else json.dumps(value, default=dict)
    return markupsafe.Markup(f"`{inert(text, 300).replace('`', chr(39))}`")
