"""Secrets, such as an API key, in every spelling that a message may have them in."""

import base64
import contextlib
import html
import logging
import re
from collections.abc import Iterator

_MOST_READ, _MOST_QUOTED = 10_000, 300  # characters of a message
_MOST_PER_CHARACTER = 16  # of a secret, as it is spelled in a message


class Secrets:
    """Texts that no file, message or log may hold.

    They are found as they are; with characters escaped as JSON, Python, URLs and HTML do it; and in
    base64, also as a part of a longer text, as a header has it.
    """

    def __init__(self, *secrets: str):
        spellings = [spelling for text in secrets for spelling in (_escaped(text), *_base64(text))]
        self._pattern = re.compile("|".join(spellings) or r"(?!)")  # that never matches
        self._longest = _MOST_PER_CHARACTER * max(map(len, secrets), default=0)

    def are_in(self, text: str) -> bool:
        """Whether one of them is in `text`."""
        return self._pattern.search(text) is not None

    def without(self, text: str) -> str:
        """`text` with *** in their place."""
        return self._pattern.sub("***", text)

    @contextlib.contextmanager
    def kept_from_logs(self, *packages: str) -> Iterator[None]:
        """Meanwhile the loggers of these packages, which are imported, log *** in their place."""

        def without_secrets(record: logging.LogRecord) -> bool:
            record.msg, record.args, record.exc_info = self.without(record.getMessage()), (), None
            return True

        known = [
            logging.getLogger(name)
            for name in list(logging.root.manager.loggerDict)
            if name.partition(".")[0] in packages
        ]
        for logger in known:
            logger.addFilter(without_secrets)
        try:
            yield
        finally:
            for logger in known:
                logger.removeFilter(without_secrets)

    def quoted(self, text: str) -> str:
        """The beginning of `text` on one line, without secrets and what a terminal would obey."""
        found = self.without(text[:_MOST_READ])
        if len(text) > _MOST_READ:  # half of a secret may be at its end
            found = found[: max(0, len(found) - self._longest)]
        return repr(" ".join(found.split())[:_MOST_QUOTED])[1:-1]


def _escaped(text: str) -> str:
    """A pattern of `text` as it is, or with any of its characters escaped, in upper or lower case.

    Each character is matched in one way only, and each repetition has a limit: a server may send
    text that would otherwise take for ever.
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
    """Patterns of what base64 makes of `text` behind 0, 1 or 2 bytes, whatever is around them."""
    found = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text.encode()).decode()
        own = encoded[(4 * before + 2) // 3 : (before + len(text.encode())) * 4 // 3]
        pattern = re.escape(own).replace(r"\+", r"[-+]").replace("/", "[/_]")
        found.append(pattern)
    return found
