"""Answers of a chat API, checked before anything is stored or used."""

import dataclasses
import html
import json
import re
from typing import Any

_MOST_TOKENS = 10**9  # of one answer; a larger number is a mistake
MOST_NAME = 1000  # characters of a model's name or a server's address
_MOST_SAID = 10_000  # characters of an error that are read
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype|html|head|body)\b", re.IGNORECASE)
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as the journal keeps it; "" or None is what the server does not report.

    Raises ValueError on a value of the wrong type, a count below 0 or above 10^9, and a name that
    cannot be printed.
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    server: str = ""

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise ValueError(f"text: found {type(self.text).__name__}, expected a text")
        for name in ("finish_reason", "model", "server"):
            if not is_name(getattr(self, name)):
                raise ValueError(f"{name}: found {getattr(self, name)!r:.60}, expected a name")
        for name in ("prompt_tokens", "completion_tokens"):
            if getattr(self, name) is not None and not _is_count(getattr(self, name)):
                raise ValueError(f"{name}: found {getattr(self, name)!r:.60}, expected a count")


class ErrorAnswer(Exception):
    """The server sent an error as its answer; `codes` are the error's codes."""

    def __init__(self, codes: tuple[str, ...], said: str):
        super().__init__(said)
        self.codes = codes


def parse_answer(content: str, model: str) -> Answer:
    """Reads the answer in the JSON body of a response. A malformed name or count is left out.

    `model` is the one that was asked, for an answer that does not name its model.

    Raises:
      ErrorAnswer: the body holds an error.
      ValueError: the body holds no answer.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({_plain(content) or error})") from error
    if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
        raise ErrorAnswer(*error_in(content))
    try:
        choice = answer["choices"][0]
        text = choice["message"].get("content")
        written_by, finish_reason = answer.get("model"), choice.get("finish_reason")
        usage = answer.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no choices[0].message in it") from error
    if not isinstance(text, str | None):
        raise ValueError(f"found {type(text).__name__} as content, expected a text")
    return Answer(
        text or "",
        finish_reason if is_name(finish_reason) else "",
        written_by if written_by and is_name(written_by) else model,
        *(counts if all(map(_is_count, counts)) else (None, None)),
    )


def error_in(content: str) -> tuple[tuple[str, ...], str]:
    """Returns (codes, message) of an error in the body of a response."""
    try:
        found = json.loads(content)
        error = found.get("error") or found
    except (ValueError, RecursionError, AttributeError):
        return (), _plain(content) or content[:_MOST_SAID]
    if not isinstance(error, dict):
        return (), str(error)[:_MOST_SAID]
    found = map(error.get, ("code", "type", "status"))
    codes = tuple(str(code) for code in found if is_name(code) or _is_count(code))
    said = error.get("message") or error.get("detail") or content
    return codes, str(said)[:_MOST_SAID]


def _plain(content: str) -> str:
    """Returns the text of an HTML page, which proxies send; "" if `content` is no HTML."""
    if not _HTML.match(content[:_MOST_SAID]):
        return ""
    text = html.unescape(_TAGS.sub(" ", content[:_MOST_SAID]))
    return f"an HTML page, as proxies send: {' '.join(text.split())}"


def is_name(value: Any) -> bool:
    """Returns whether a value can be the name of a model: a short text on one line."""
    return isinstance(value, str) and value.isprintable() and len(value) <= MOST_NAME


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS  # bool is an int too
