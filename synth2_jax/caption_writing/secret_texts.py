"""Finds secrets, such as an API key, in every spelling that a message may hold."""

import base64
import contextlib
import html
import logging
import re
from collections.abc import Iterator

_MOST_READ, _MOST_QUOTED = 10_000, 300  # characters of a message
_MOST_PER_CHARACTER = 16  # characters that spell one character of a secret


class Secrets:
    """Texts that no file, message or log may hold.

    They are found unchanged, with characters escaped as in JSON, Python, URLs and HTML, and in
    base64, also as a part of a longer text, as in a header.
    """

    def __init__(self, *secrets: str):
        spellings = [spelling for text in secrets for spelling in (_escaped(text), *_base64(text))]
        self._pattern = re.compile("|".join(spellings) or r"(?!)")  # (?!) never matches
        self._longest = _MOST_PER_CHARACTER * max(map(len, secrets), default=0)

    def are_in(self, text: str) -> bool:
        """Returns whether `text` holds one of them."""
        return self._pattern.search(text) is not None

    def without(self, text: str) -> str:
        """Returns `text` with *** in place of each secret."""
        return self._pattern.sub("***", text)

    @contextlib.contextmanager
    def kept_from_logs(self, *packages: str) -> Iterator[None]:
        """Makes the loggers of these imported packages log *** in place of each secret."""

        def without_secrets(record: logging.LogRecord) -> bool:
            record.msg, record.args, record.exc_info = self.without(record.getMessage()), (), None
            return True

        with contextlib.ExitStack() as stack:
            for name in list(logging.root.manager.loggerDict):
                if name.partition(".")[0] in packages:
                    logger = logging.getLogger(name)
                    logger.addFilter(without_secrets)
                    stack.callback(logger.removeFilter, without_secrets)
            yield

    def quoted(self, text: str) -> str:
        """Returns the start of `text` on one line, without secrets and control characters."""
        found = self.without(text[:_MOST_READ])
        if len(text) > _MOST_READ:  # it may end with half a secret
            found = found[: max(0, len(found) - self._longest)]
        return repr(" ".join(found.split())[:_MOST_QUOTED])[1:-1]


def _escaped(text: str) -> str:
    """Returns a pattern of `text` unchanged, or with any of its characters escaped.

    Each character matches in one way only, and each repetition has a limit: otherwise a server
    could send text that takes forever.
    """

    def spellings(character: str) -> str:
        code = ord(character)
        ways = (
            rf"%(?:25){{0,4}}(?i:{code:02x})",
            rf"\\{{1,8}}(?:x|u00|U000000)(?i:{code:02x})",
            rf"&\#0{{0,8}}(?:{code}|[xX]0{{0,8}}(?i:{code:x}));",
            re.escape(html.escape(character)),
            rf"\\{{0,8}}{re.escape(character)}",
        )
        return f"(?>{'|'.join(ways)})"

    return f"{re.escape(text)}|{''.join(map(spellings, text))}"


def _base64(text: str) -> list[str]:
    """Returns patterns of `text` in base64, after 0, 1 or 2 bytes and inside a longer text."""
    found = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text.encode()).decode()
        own = encoded[(4 * before + 2) // 3 : (before + len(text.encode())) * 4 // 3]
        found.append(re.escape(own).replace(r"\+", r"[-+]").replace("/", "[/_]"))
    return found
