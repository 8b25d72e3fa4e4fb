"""Requests to a source of captions, and the drafts it returns."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request for one draft: draw number `draw` of a class. The model reads `prompt`."""

    class_index: int
    class_name: str
    draw: int
    prompt: str


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """One caption before it is checked.

    Attributes:
      class_name: None if a file does not give it and there is no class list to find it in.
      finished: whether the model ended the caption itself.
      drop_reason: why there is no caption to check, such as "not UTF-8"; "" if there is one.
      model: the model's name, if each answer reports it.
      seed: the draft's own seed, if it has one.
    """

    class_name: str | None
    draw: int
    caption: str
    finished: bool = True
    drop_reason: str = ""
    model: str = ""
    seed: int | None = None
