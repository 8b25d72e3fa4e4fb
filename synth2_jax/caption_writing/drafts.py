"""What is asked of a source of captions, and what it gives."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Draw number `draw` of a class; `prompt` is what the model reads."""

    class_index: int
    class_name: str
    draw: int
    prompt: str


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """One caption as it was written: for which class, from which draw, and whether it ended.

    Attributes:
      class_name: None where a file does not say, and no class list was given to find it by.
      drop_reason: why it is dropped unread, such as "not UTF-8"; "" for a caption to judge.
      model: who wrote it, where the source learns that with each answer.
      seed: of this draft, where it has one of its own.
    """

    class_name: str | None
    draw: int
    caption: str
    finished: bool = True
    drop_reason: str = ""
    model: str = ""
    seed: int | None = None
