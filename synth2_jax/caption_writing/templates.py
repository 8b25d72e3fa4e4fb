"""Prompt templates: texts with the slots {class_name}, {style} and {length}.

Braces are doubled to write them in a text, as in `str.format`.
"""

import dataclasses
import hashlib
import pathlib
import string

from synth2_jax.errors import UserError, nearest
from synth2_jax.text import prompts

SLOTS = ("class_name", "style", "length")
BUILT_IN = {
    "class": prompts.CLASS_PROMPT,
    "chat": prompts.CHAT_CLASS_PROMPT,
    "describe": prompts.DESCRIBE_PROMPT,
}


@dataclasses.dataclass(frozen=True)
class Template:
    """Text with slots.

    Raises UserError on a slot that is not in SLOTS, on braces that do not close, and when
    {class_name} is missing: all classes would get the same prompt.
    """

    text: str
    name: str = "template"

    def __post_init__(self):
        for slot in self.slots:
            if slot not in SLOTS:
                raise UserError(f"{self.name}: unknown slot {{{slot}}}; {nearest(slot, SLOTS)}")
        if "class_name" not in self.slots:
            raise UserError(f"{self.name}: found no slot {{class_name}}, expected it in the text")

    @property
    def slots(self) -> tuple[str, ...]:
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise UserError(f"{self.name}: {error}. Write {{{{ for a brace.") from error
        for _, slot, form, conversion in parts:
            if form or conversion:
                raise UserError(
                    f"{self.name}: slot {{{slot}}} has a format, expected only its name"
                )
        return tuple(slot for _, slot, _, _ in parts if slot is not None)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Makes prompts from a template; styles and lengths take turns over the draws of a class.

    `lengths` are in words. Raises UserError if a slot has no values, or values have no slot.
    """

    template: Template
    styles: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    def __post_init__(self):
        for slot, values in (("style", self.styles), ("length", self.lengths)):
            if (slot in self.template.slots) != bool(values):
                raise UserError(
                    f"{self.template.name}: found {'no' if values else 'a'} slot {{{slot}}} and "
                    f"{len(values)} {slot}s, expected both or neither"
                )

    def targets(self, draw: int) -> dict[str, str | int]:
        """Returns {"style": ..., "length": ...} of a draw, for the slots that the template has."""
        found: dict[str, str | int] = {}
        if self.styles:
            draw, turn = divmod(draw, len(self.styles))
            found["style"] = self.styles[turn]
        if self.lengths:
            found["length"] = self.lengths[draw % len(self.lengths)]
        return found

    def prompt(self, class_name: str, draw: int) -> str:
        """Returns the whole text that the model reads."""
        return self.template.text.format(class_name=class_name, **self.targets(draw))


def load_template(name: str) -> Template:
    """Returns a built-in template, or reads one from a file, without line breaks at its end.

    Raises UserError on a missing file, text that is not UTF-8, and as `Template`.
    """
    if name in BUILT_IN:
        return Template(BUILT_IN[name], f"template {name}")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(
            f"template {name!r}: no such file; expected a text file or one of {sorted(BUILT_IN)}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"template {name}: not UTF-8: {error}. Save the file as UTF-8.") from error
    return Template(text.replace("\r\n", "\n").rstrip("\n"), f"template {name}")
