"""Writes captions by any server with OpenAI's chat API.

Answers are checked and written to a journal before they are used: an answer that was paid for is
never asked for twice.
"""

import asyncio
import collections
import contextlib
import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from synth2_jax.caption_writing.answers import Answer
from synth2_jax.caption_writing.chat_client import PACKAGES, ChatClient, RefusedError, RetryError
from synth2_jax.caption_writing.chat_text import caption_in
from synth2_jax.caption_writing.drafts import Draft, Request
from synth2_jax.caption_writing.journal import Journal
from synth2_jax.caption_writing.server_access import ServerAccess
from synth2_jax.caption_writing.server_config import ServerConfig, Usage
from synth2_jax.errors import UserError

_POLL_SECONDS = 0.2  # a waiting caller gets control back this often
_MAX_WAIT = 60.0  # seconds before a retry
_AHEAD = 4  # tasks for each concurrent request: one slow answer must not stop the others
_MAX_FAILED_IN_A_ROW = 16
_UNFINISHED = {"length", "content_filter"}


class OpenAIServerSource:
    """Drafts from a server, in the order of the requests.

    Args:
      config: the model, its sampling, and limits of speed and cost.
      journal: an open one; its answers are used, and new ones are added.
      seed: each request gets its own seed, made from (seed, class name, draw).

    Attributes:
      usage: function that returns tokens and cost of all runs of the workdir, for a manifest.
      answered, retries, failed: counts of this run.

    Raises as `ServerAccess`.
    """

    def __init__(self, config: ServerConfig, journal: Journal, *, seed: int):
        self._config = config
        self._journal = journal
        self._seed = seed
        self._sampling = config.sampling()
        self._access = ServerAccess(config)
        self.base_url = self._access.base_url
        self._failed_in_a_row = self._next_turn = 0
        self.retries = self.failed = self.answered = 0
        self._stopping = asyncio.Event()
        self._fatal: UserError | None = None
        self._usage = Usage(config, journal.answers.values())
        self.usage = self._usage.describe

    def write(self, requests: Sequence[Request]) -> Iterator[Draft | None]:
        """Yields drafts in the order of `requests`, and None while it waits for the next.

        Close the generator to stop early: answers under way are still waited for, up to `timeout`,
        and kept.

        Raises:
          UserError: as `ChatClient`; the server refuses the key or the model, many requests in a
            row have failed, the limit on cost is reached, or the disk is full.
        """
        waiting: collections.deque[asyncio.Task] = collections.deque()
        pending = iter(requests)
        self._stopping, self._fatal = asyncio.Event(), None  # an event belongs to one loop
        logs = self._access.secrets.kept_from_logs(*PACKAGES)
        with logs, asyncio.Runner() as runner:
            loop = runner.get_loop()
            client = ChatClient(self._access, self._config.timeout)
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
                        runner.run(asyncio.wait([waiting[0]], timeout=_POLL_SECONDS))
                        if self._fatal:
                            raise self._fatal
                        if not waiting[0].done():
                            yield None
                    yield waiting.popleft().result()
            finally:
                self._stopping.set()
                runner.run(self._finish(client, waiting))

    def summary(self) -> str:
        """Returns counts of this run and of all runs, on one line."""
        return (
            f"{self.answered} answers in this run, {self.retries} retries, {self.failed} failed; "
            f"{self._usage.summary()}"
        )

    async def _draft(
        self, client: ChatClient, semaphore: asyncio.Semaphore, request: Request
    ) -> Draft:
        body = self._body(request)
        asked = {**body, "class": request.class_name, "draw": request.draw}
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
        answer, reason = self._journal.answers.get(key), ""
        if answer is None:
            async with semaphore:
                try:
                    answer, reason = await self._ask(client, key, body)
                except UserError as error:  # also of a request that is not waited for yet
                    self._fatal = self._fatal or error
                    self._stopping.set()
                    reason = "not asked"
        if answer is None:
            return Draft(request.class_name, request.draw, "", drop_reason=reason)
        return Draft(
            request.class_name,
            request.draw,
            caption_in(answer.text),
            finished=answer.finish_reason not in _UNFINISHED,
            model=answer.model,
            seed=body.get("seed"),
        )

    def _body(self, request: Request) -> dict[str, Any]:
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": request.prompt}],
            **self._sampling,
        }
        if "seed" not in self._config.extra_body:
            text = f"{self._seed}\n{request.class_name}\n{request.draw}"
            digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
            body["seed"] = int.from_bytes(digest) >> 1  # servers take signed 32 bits
        return body

    async def _ask(
        self, client: ChatClient, key: str, body: dict[str, Any]
    ) -> tuple[Answer | None, str]:
        """Returns (answer, ""), once it is in the journal, or (None, why the draft is dropped)."""
        why, reason = "", "no answer"
        for attempt in range(self._config.max_attempts):
            await self._wait_for_turn()
            if self._stopping.is_set():
                return None, "not asked"
            self._usage.check_cost()
            self._journal.check_room()
            try:
                answer = await client.answer(body)
            except RefusedError as error:
                why, reason = str(error), "refused by the server"
                break
            except RetryError as error:
                why = str(error)
                if attempt + 1 < self._config.max_attempts:
                    self.retries += 1
                    await self._back_off(attempt, error.wait)
            else:
                self._failed_in_a_row = 0
                self._journal.append(key, answer)
                self._usage.add(answer)
                self.answered += 1
                return answer, ""
        self.failed += 1
        self._failed_in_a_row += 1
        logging.warning("server: a request failed: %s", why)
        if self._failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            raise UserError(
                f"server {self.base_url}: {_MAX_FAILED_IN_A_ROW} requests in a row failed, the "
                f"last: {why}. The answers so far are kept; run the same command again to continue."
            )
        return None, reason

    async def _wait_for_turn(self) -> None:
        """Keeps to `requests_per_minute`, and to a time that the server asked to wait."""
        turn = max(time.monotonic(), self._next_turn)
        if self._config.requests_per_minute:
            self._next_turn = turn + 60 / self._config.requests_per_minute
        await self._pause(turn - time.monotonic())

    async def _back_off(self, attempt: int, wait: float | None) -> None:
        if wait is None:
            # Full jitter, so that requests that failed together do not come back together.
            wait = random.uniform(0, min(_MAX_WAIT, 0.5 * 2**attempt))
        else:  # the server asks all requests to wait
            wait = min(wait, _MAX_WAIT)
            self._next_turn = max(self._next_turn, time.monotonic() + wait)
        await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        """Waits; returns at once when the run stops."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    async def _finish(self, client: ChatClient, waiting: Sequence[asyncio.Task]) -> None:
        if waiting:
            await asyncio.wait(waiting, timeout=self._config.timeout)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with contextlib.suppress(Exception):
            await client.close()
