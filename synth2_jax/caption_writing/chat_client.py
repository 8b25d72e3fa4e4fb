"""Sends one request to a server with OpenAI's chat API, by the `openai` package.

A response is read up to a limit, and secrets that a server repeats are removed.
"""

import asyncio
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from synth2_jax.caption_writing.answers import Answer, ErrorAnswer, error_in, parse_answer
from synth2_jax.caption_writing.server_access import (
    CERTIFICATES,
    PROXIES,
    ServerAccess,
    environment_names,
)
from synth2_jax.errors import UserError

PACKAGES = ("openai", "httpx2", "httpcore2")  # their logs show headers
_MAX_BODY = 4 << 20  # bytes of a response
_FATAL = {
    401: "refuses the API key",
    402: "has no credit left",
    403: "refuses access",
    404: "knows no such model or address",
}
# An error's code may say more than the status of its response.
_STATUS_OF_CODE = {
    **dict.fromkeys(
        ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"), 402
    ),
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    "model_not_found": 404,
}
_RETRIED = {408, 409, 425, 429}  # and 500 and more


class RetryError(Exception):
    """A request failed, and may succeed later; `wait` is in seconds, None if unknown."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class RefusedError(Exception):
    """The server does not take this request, and would not take it later."""


class ChatClient:
    """Sends requests; belongs to one event loop. `timeout` is in seconds, for one whole answer.

    Raises:
      UserError: no package `openai`, or proxies or certificates that cannot be used.
    """

    def __init__(self, access: ServerAccess, timeout: float):
        try:
            import httpx2  # the HTTP client of openai
            import openai
        except ImportError as error:
            raise UserError(
                "server: needs the package `openai`. Run pip install 'synth2-jax[openai]'."
            ) from error
        self._openai, self._stream_class = openai, httpx2.AsyncByteStream
        self._access, self._timeout = access, timeout
        try:
            http_client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._limit]})
        except Exception as error:  # of the library that reads the variable
            read = CERTIFICATES if isinstance(error, OSError) else PROXIES
            names = ", ".join(environment_names(read)) or "server"
            socks = "Install the package socksio, or " if isinstance(error, ImportError) else ""
            raise UserError(
                f"{names}: cannot be used ({access.quoted(str(error))}). "
                f"{socks}{'correct' if socks else 'Correct'} or unset the variable."
            ) from None
        self._client = openai.AsyncOpenAI(
            api_key=access.key,
            base_url=access.base_url,
            max_retries=0,  # the caller retries: it keeps answers, and limits speed and cost
            timeout=timeout,
            http_client=http_client,
            default_headers={"Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._client.close()

    async def answer(self, body: Mapping[str, Any]) -> Answer:
        """Sends one request and returns the answer, without secrets.

        Raises:
          RetryError: no answer, or a malformed one.
          RefusedError: the server does not take this request.
          UserError: the server takes no request at all: a wrong key, no credit, no such model.
        """
        try:
            answer = parse_answer(await self._content(body), body["model"])
        except ErrorAnswer as error:
            raise self._failure(200, error.codes, str(error), {}) from None
        except ValueError as error:
            raise RetryError(f"malformed answer: {self._access.quoted(str(error))}") from None
        texts, without = ("text", "model", "finish_reason"), self._access.secrets.without
        clean = {name: without(getattr(answer, name)) for name in texts}
        return dataclasses.replace(answer, **clean, server=self._access.base_url)

    async def _content(self, body: Mapping[str, Any]) -> str:
        """Returns the body of the response. Raises as `answer`."""
        openai, quoted = self._openai, self._access.quoted
        try:
            # The client's own limit is between two bytes; a server may send one now and then.
            async with asyncio.timeout(self._timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=body["model"],
                    messages=body["messages"],
                    extra_body={k: v for k, v in body.items() if k not in ("model", "messages")},
                )
                return response.http_response.content.decode("utf-8", "replace")
        except RetryError:
            raise
        except (TimeoutError, openai.APITimeoutError):
            raise RetryError(f"no answer within {self._timeout:g} s") from None
        except openai.APIStatusError as error:
            found = error.response
            said = error_in(found.content.decode("utf-8", "replace"))
            raise self._failure(found.status_code, *said, found.headers) from None
        except openai.APIConnectionError as error:
            proxies = ", ".join(environment_names(PROXIES))
            through = f" (through {proxies})" if proxies else ""
            raise RetryError(quoted(f"{error} {error.__cause__ or ''}") + through) from None
        except Exception as error:  # of a library, on whatever a server may send
            raise RetryError(f"{type(error).__name__}: {quoted(str(error))}") from None

    def _failure(
        self, status: int, codes: Sequence[str], said: str, headers: Mapping[str, str]
    ) -> Exception:
        """Returns the exception for a response without an answer. An error may have status 200."""
        said = f"status {status}: {self._access.quoted(said)}"
        known = [_STATUS_OF_CODE[code] for code in codes if code in _STATUS_OF_CODE]
        if status == 200:
            known += [int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)]
        status = (known or [status])[0]
        if status in _FATAL:
            return UserError(f"server {self._access.base_url}: {_FATAL[status]}; {said}")
        if status in _RETRIED or status >= 500 or status == 200:
            return RetryError(said, retry_after(headers))
        return RefusedError(said)

    async def _limit(self, response: Any) -> None:
        """Limits the size of a body before it is read; refuses a compressed one, which may grow."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise RetryError(f"found a body in {encoding!r:.40}, expected no compression")
        whole = response.stream

        class Limited(self._stream_class):
            async def __aiter__(self):
                size = 0
                async for part in whole:
                    size += len(part)
                    if size > _MAX_BODY:
                        raise RetryError(f"a body of more than {_MAX_BODY >> 20} MiB")
                    yield part

            async def aclose(self):
                await whole.aclose()

        response.stream = Limited()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server asks to wait; None if it gives no number."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
