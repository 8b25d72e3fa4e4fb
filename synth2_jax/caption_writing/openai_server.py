"""Captions from any server that speaks OpenAI's chat API, asked by the `openai` package.

Answers are checked and go to a journal before they are used, so that nothing that was paid for is
asked twice. The API key comes from the environment and is in no file, message or log; neither is
what a server echoes of it. A body is read up to a limit, whatever a server sends.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.answers import Answer, ErrorAnswer, error_in, is_name, parse_answer
from synth2_jax.caption_writing.chat_text import caption_in
from synth2_jax.caption_writing.drafts import Draft, Request
from synth2_jax.caption_writing.journal import Journal
from synth2_jax.caption_writing.secret_texts import Secrets
from synth2_jax.errors import UserError

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
_DEFAULT_URL = "https://api.openai.com/v1"
_POLL_SECONDS = 0.2  # how often a waiting source lets its caller look up
_MAX_WAIT = 60.0  # seconds, of backoff and of what a server asks for
_AHEAD = 4  # requests under way or waiting to be read, for each that may be concurrent
_MAX_FAILED_IN_A_ROW = 16
_MAX_BODY = 4 << 20  # bytes of a response
_FATAL = {
    401: "refuses the API key",
    402: "has no credit left",
    403: "refuses access",
    404: "knows no such model or address",
}
# What servers write into an error that says more than its status.
_STATUS_OF_CODE = {
    "insufficient_quota": 402,
    "billing_hard_limit_reached": 402,
    "billing_not_active": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
}
_PASSING = {408, 409, 425, 429}  # and 500 and more: the same request may do better later
_UNFINISHED = {"length", "content_filter"}
_OURS = ("messages", "model", "n", "stream")  # fields of a body that are not for the user to change
_SECRET_CHARACTERS = 8  # what is shorter is no secret, but what a server without keys is given
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Attributes:

    model: as the server calls it.
    base_url: such as "http://localhost:8000/v1"; "" for OPENAI_BASE_URL or OpenAI's own. Without
      user, password or query: those are secrets.
    temperature, top_p: of sampling.
    max_tokens: of an answer; None leaves it to the server.
    extra_body: further fields of the request's body, such as {"top_k": 40}; None leaves a field
      out, as {"seed": None} for a server that knows no seeds.
    concurrency: requests under way at a time.
    requests_per_minute: None for as fast as they are answered.
    timeout: seconds for one answer, whole.
    max_attempts: times a request is sent before it is given up.
    input_price, output_price: for a million tokens, in any currency; 0 leaves costs unreported.
    max_cost: nothing more is asked once all runs of the workdir have spent that.
    """

    model: str
    base_url: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 64
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 60.0
    max_attempts: int = 6
    input_price: float = 0.0
    output_price: float = 0.0
    max_cost: float | None = None

    def __post_init__(self):
        config_lib.check_counts(self, "max_tokens", "concurrency", "max_attempts")
        for name in _OURS:
            if name in self.extra_body:
                raise UserError(f"extra_body: found {name!r}, expected other fields")
        if not self.model or not is_name(self.model):
            raise UserError(
                f"model: found {self.model!r:.40}, expected the name of a model of the server's"
            )
        for name in ("requests_per_minute", "timeout", "max_cost"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}: found {value}, expected more than 0")
        if min(self.input_price, self.output_price, self.temperature) < 0:
            raise UserError("found a negative price or temperature, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, expected more than 0, at most 1")
        if self.max_cost is not None and not self.input_price + self.output_price:
            raise UserError("max_cost: needs input_price or output_price, found neither")

    def sampling(self) -> dict[str, Any]:
        """The fields of a request's body that shape an answer, in JSON's types."""
        found = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            **self.extra_body,
        }
        plain = json.loads(config_lib.to_json(found))
        return {name: value for name, value in plain.items() if value is not None}


@dataclasses.dataclass
class Usage:
    """Counts over a journal; `cost` is None where no price is known."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0  # answers that did not say what they took
    cost: float | None = None

    def add(self, answer: Answer) -> None:
        self.answers += 1
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            self.without_usage += 1
        else:
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens


class _Passing(Exception):
    """Why an attempt failed that may do better later; `wait` is in seconds, None if unknown."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class _Refused(Exception):
    """The server does not take this very request."""


class OpenAIServerSource:
    """Drafts from a server, in the order of their requests, whatever the order of the answers.

    Args:
      config: what to ask, and how fast.
      journal: open; answers in it are used and new ones are added.
      seed: every request has a seed of its own, from (seed, class name, draw).

    Raises:
      UserError: no `openai` package, no OPENAI_API_KEY, one that no header can hold, or an address
        that holds secrets.
    """

    def __init__(self, config: ServerConfig, journal: Journal, *, seed: int):
        try:
            import httpx2  # what openai speaks HTTP by
            import openai
        except ImportError as error:
            raise UserError(
                "server: needs the package `openai`; pip install 'synth2-jax[openai]'"
            ) from error
        self._openai, self._httpx = openai, httpx2
        self._config = config
        self._journal = journal
        self._seed = seed
        self._sampling = config.sampling()
        self._key = _checked_key(os.environ.get(KEY_VARIABLE, ""))
        key = [self._key] if len(self._key) >= _SECRET_CHARACTERS else []
        proxies = [_password(os.environ[name]) for name in _environment_names(_PROXIES)]
        self._secrets = Secrets(*key)
        self._quoted = Secrets(*key, *filter(None, proxies)).quoted
        if self._secrets.are_in(config_lib.to_json(config)):
            raise UserError(
                f"config.server: holds the API key, expected it in {KEY_VARIABLE} alone"
            )
        url = config.base_url or os.environ.get(URL_VARIABLE, "") or _DEFAULT_URL
        self.base_url = _checked_url(url, holds_key=self._secrets.are_in(url))
        self._failed_in_a_row = 0
        self._next_slot = 0.0
        self._closing = False
        self._fatal: UserError | None = None
        self.retries = 0
        self.failed = 0
        self.answered = 0
        self._spent = self._counted(journal.answers())

    def write(self, requests: Sequence[Request]) -> Iterator[Draft | None]:
        """Drafts in the order of `requests`; None now and then while it waits for the next.

        Close the generator to stop early: what is under way is still waited for, up to `timeout`,
        and kept.

        Raises:
          UserError: the server refuses the key or the model, many requests in a row have failed, or
            the next one may cost too much.
        """
        waiting: collections.deque[asyncio.Task] = collections.deque()
        pending = iter(requests)
        self._closing, self._fatal = False, None
        logs = self._secrets.kept_from_logs("openai", "httpx2", "httpcore2")
        with logs, asyncio.Runner() as runner:
            loop = runner.get_loop()
            client = self._client()
            semaphore = asyncio.Semaphore(self._config.concurrency)
            try:
                while True:
                    while len(waiting) < _AHEAD * self._config.concurrency:
                        if (request := next(pending, None)) is None:
                            break
                        task = self._draft(client, semaphore, request)
                        waiting.append(loop.create_task(task))
                    if not waiting:
                        return
                    while not waiting[0].done():
                        runner.run(_moment(waiting[0]))
                        if self._fatal:
                            raise self._fatal
                        if not waiting[0].done():
                            yield None
                    yield waiting.popleft().result()
            finally:
                self._closing = True
                runner.run(self._wind_up(client, waiting))

    def usage(self) -> dict[str, Any]:
        """Tokens and cost of all runs of the journal; for a manifest."""
        return dataclasses.asdict(self._counted(self._journal.answers()))

    def summary(self) -> str:
        """What this run and all runs have asked for and paid, on one line."""
        total = self._counted(self._journal.answers())
        line = (
            f"{self.answered} answers in this run, {self.retries} retries, {self.failed} failed; "
            f"{total.answers} in all, {total.prompt_tokens} prompt and {total.completion_tokens} "
            "completion tokens"
        )
        if total.without_usage:
            line += f", {total.without_usage} answers did not say"
        return line if total.cost is None else f"{line}; cost {total.cost:g}"

    def _client(self) -> Any:
        """Raises UserError, naming the variables, where proxies or certificates are not usable."""
        try:
            http_client = self._openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [self._limit]}
            )
        except Exception as error:  # of whichever library reads the variable
            read = _CERTIFICATES if isinstance(error, OSError) else _PROXIES
            names = ", ".join(_environment_names(read)) or "server"
            socks = "Install the package socksio, or " if isinstance(error, ImportError) else ""
            raise UserError(
                f"{names}: no client can be made ({self._quoted(str(error))}). "
                f"{socks}{'correct' if socks else 'Correct'} or unset the variable."
            ) from None
        # Attempts are counted here alone: each is journaled, slowed down and given up by one rule.
        return self._openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self.base_url,
            max_retries=0,
            timeout=self._config.timeout,
            http_client=http_client,
            default_headers={"Accept-Encoding": "identity"},
        )

    async def _limit(self, response: Any) -> None:
        """Limits the body before it is read. One that unpacks to any size is refused."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise _Passing(f"a body packed with {encoding!r:.40}, expected none")
        whole = response.stream

        class Limited(self._httpx.AsyncByteStream):
            async def __aiter__(self):
                size = 0
                async for part in whole:
                    size += len(part)
                    if size > _MAX_BODY:
                        raise _Passing(f"a body of more than {_MAX_BODY >> 20} MiB")
                    yield part

            async def aclose(self):
                await whole.aclose()

        response.stream = Limited()

    async def _draft(self, client: Any, semaphore: asyncio.Semaphore, request: Request) -> Draft:
        body = self._body(request)
        key = _digest({**body, "class": request.class_name, "draw": request.draw})
        answer = self._journal.get(key)
        problem = ""
        if answer is None:
            async with semaphore:
                try:
                    answer, problem = await self._ask(client, body)
                    if answer is not None:
                        self._journal.append(key, answer)
                except UserError as error:  # of any request, not only of the one that is waited for
                    self._fatal = self._fatal or error
                    self._closing = True
                    return Draft(request.class_name, request.draw, "", problem="not asked")
            if answer is not None:
                self.answered += 1
                self._spent.add(answer)
        if answer is None:
            return Draft(request.class_name, request.draw, "", problem=problem)
        return Draft(
            request.class_name,
            request.draw,
            caption_in(answer.text),
            finished=answer.finish_reason not in _UNFINISHED,
            model=answer.model,
            seed=body.get("seed"),
        )

    def _body(self, request: Request) -> dict[str, Any]:
        text = f"{self._seed}\n{request.class_name}\n{request.draw}"
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": request.prompt}],
            **self._sampling,
        }
        if "seed" not in self._config.extra_body:
            body["seed"] = int.from_bytes(digest) >> 1  # servers take signed 32 bits
        return body

    async def _ask(self, client: Any, body: dict[str, Any]) -> tuple[Answer | None, str]:
        """(answer, "") or (None, the problem)."""
        why = ""
        for attempt in range(self._config.max_attempts):
            await self._slot()
            if self._closing:
                return None, "not asked"
            self._check_cost()
            self._journal.check_room()
            try:
                answer = await self._attempt(client, body)
            except _Refused as error:
                why, problem = str(error), "refused by the server"
                break
            except _Passing as error:
                why, problem = str(error), "no answer"
                if attempt + 1 < self._config.max_attempts:
                    self.retries += 1
                    await self._back_off(attempt, error.wait)
            else:
                self._failed_in_a_row = 0
                return answer, ""
        self.failed += 1
        self._failed_in_a_row += 1
        logging.warning("server: a request failed: %s", why)
        if self._failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            raise UserError(
                f"server {self.base_url}: {_MAX_FAILED_IN_A_ROW} requests in a row failed, the "
                f"last: {why}; answers so far are kept, and the same command goes on"
            )
        return None, problem

    async def _attempt(self, client: Any, body: dict[str, Any]) -> Answer:
        """One request: the answer, or an exception that says in clean words what went wrong."""
        content = await self._sent(client, body)
        try:
            answer = parse_answer(content, body["model"])
        except ErrorAnswer as error:
            raise self._failure(200, error.codes, str(error), {}) from None
        except ValueError as error:
            raise _Passing(f"malformed answer: {self._quoted(str(error))}") from None
        texts = ("text", "model", "finish_reason")
        clean = {name: self._secrets.without(getattr(answer, name)) for name in texts}
        return dataclasses.replace(answer, **clean, server=self.base_url)

    async def _sent(self, client: Any, body: dict[str, Any]) -> str:
        """The body of the response; raises as `_attempt`."""
        openai = self._openai
        try:
            # The client's own limit is between two bytes; a server may drip for ever.
            async with asyncio.timeout(self._config.timeout):
                response = await client.chat.completions.with_raw_response.create(
                    model=body["model"],
                    messages=body["messages"],
                    extra_body={k: v for k, v in body.items() if k not in ("model", "messages")},
                )
                return response.http_response.content.decode("utf-8", "replace")
        except _Passing:
            raise
        except (TimeoutError, openai.APITimeoutError):
            raise _Passing(f"no answer within {self._config.timeout:g} s") from None
        except openai.APIStatusError as error:
            found = error.response
            said = error_in(found.content.decode("utf-8", "replace"))
            raise self._failure(found.status_code, *said, found.headers) from None
        except openai.APIConnectionError as error:
            proxies = ", ".join(_environment_names(_PROXIES))
            through = f" (through {proxies})" if proxies else ""
            said = self._quoted(f"{error} {error.__cause__ or ''}")
            raise _Passing(f"{said}{through}") from None
        except Exception as error:  # whatever a library makes of what a server sends
            raise _Passing(f"{type(error).__name__}: {self._quoted(str(error))}") from None

    def _failure(
        self, status: int, codes: Sequence[str], said: str, headers: Mapping[str, str]
    ) -> Exception:
        """What a response without an answer means; an error may come with the status 200."""
        said = f"status {status}: {self._quoted(said)}"
        known = [_STATUS_OF_CODE[code] for code in codes if code in _STATUS_OF_CODE]
        if status == 200:
            known += [int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)]
        status = (known or [status])[0]
        if status in _FATAL:
            return UserError(f"server {self.base_url}: {_FATAL[status]}; {said}")
        if status in _PASSING or status >= 500 or status == 200:
            return _Passing(said, _retry_after(headers))
        return _Refused(said)

    async def _slot(self) -> None:
        """Waits for this request's turn, so that no more than so many a minute are sent."""
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next_slot)
        if self._config.requests_per_minute:
            self._next_slot = turn + 60 / self._config.requests_per_minute
        while turn > now and not self._closing:
            await asyncio.sleep(min(turn - now, _POLL_SECONDS))
            now = asyncio.get_running_loop().time()

    async def _back_off(self, attempt: int, wait: float | None) -> None:
        loop = asyncio.get_running_loop()
        if wait is not None:  # the server's own word holds for all requests
            wait = min(wait, _MAX_WAIT)
            self._next_slot = max(self._next_slot, loop.time() + wait)
        else:
            # Full jitter, so that requests that failed together do not come back together.
            wait = random.uniform(0, min(_MAX_WAIT, 0.5 * 2**attempt))
        end = loop.time() + wait
        while (left := end - loop.time()) > 0 and not self._closing:
            await asyncio.sleep(min(left, _POLL_SECONDS))

    async def _wind_up(self, client: Any, waiting: Sequence[asyncio.Task]) -> None:
        if waiting:
            await asyncio.wait(waiting, timeout=self._config.timeout)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with contextlib.suppress(Exception):
            await client.close()

    def _counted(self, answers: Sequence[Answer]) -> Usage:
        usage = Usage()
        for answer in answers:
            usage.add(answer)
        usage.cost = self._cost(usage)
        return usage

    def _cost(self, usage: Usage) -> float | None:
        cfg = self._config
        if not cfg.input_price + cfg.output_price:
            return None
        paid = usage.prompt_tokens * cfg.input_price + usage.completion_tokens * cfg.output_price
        return round(paid / 1e6, 6)

    def _check_cost(self) -> None:
        limit = self._config.max_cost
        if limit is not None and (cost := self._cost(self._spent)) >= limit:
            raise UserError(
                f"server: answers have cost {cost:g}, as much as config.server.max_cost={limit:g}; "
                "they are kept, and with a higher limit the same command goes on"
            )


def _checked_key(text: str) -> str:
    """The API key without spaces around it; the messages do not repeat it."""
    key = text.strip()
    if not key:
        raise UserError(
            f"{KEY_VARIABLE}: not set in the environment; a server that asks for no key takes "
            "any text"
        )
    if unfit := re.search(r"[^!-~]", key):
        raise UserError(
            f"{KEY_VARIABLE}: character {unfit.start() + 1} of {len(key)} is a space, a line break "
            "or no ASCII, which no header can hold. Copy the key again."
        )
    return key


def _environment_names(names: Sequence[str]) -> list[str]:
    """Those that are set; each is read in lower case too."""
    return [name for n in names for name in (n, n.lower()) if os.environ.get(name)]


def _password(url: str) -> str:
    """What a proxy's address holds of a user and a password; "" for nothing."""
    return url.rpartition("@")[0].rpartition("/")[2].partition(":")[2]


def _checked_url(url: str, *, holds_key: bool) -> str:
    """`url` as it may stand in a manifest; the messages do not repeat what may be a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = None, None
    if not host or not is_name(url) or parts.scheme not in ("http", "https"):
        raise UserError("config.server.base_url: no address, expected http://HOST/v1 or https://")
    if "@" in parts.netloc or parts.query or parts.fragment or holds_key:
        raise UserError(
            "config.server.base_url: holds a user, password, query or key, expected the address "
            f"alone; the key is read from {KEY_VARIABLE}"
        )
    return url.rstrip("/")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; None where it does not say, or says it as a date."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


async def _moment(task: asyncio.Task) -> None:
    """Until a task ends, or a moment has passed; it goes on then."""
    await asyncio.wait([task], timeout=_POLL_SECONDS)
