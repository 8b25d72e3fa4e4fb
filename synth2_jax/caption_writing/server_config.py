"""Config of a server that writes captions, and the tokens and cost of its answers."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.answers import Answer, is_name
from synth2_jax.errors import UserError

_OURS = ("messages", "model", "n", "stream")  # fields of a request that users may not change


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Attributes:

    model: the server's name for it.
    base_url: such as "http://localhost:8000/v1"; "" for OPENAI_BASE_URL or OpenAI's own. Without
      user, password or query: those are secrets.
    temperature, top_p: settings of sampling.
    max_tokens: longest answer; None leaves it to the server.
    extra_body: further fields of the request's body, such as {"top_k": 40}; None leaves a field
      out, as {"seed": None} for a server that knows no seeds.
    concurrency: requests under way at a time.
    requests_per_minute: most requests that are sent in a minute; None sets no limit.
    timeout: seconds for one whole answer.
    max_attempts: number of times a request is sent before it is given up.
    input_price, output_price: price of a million tokens, in any currency; with 0 no cost is
      reported.
    max_cost: the run stops once all runs of the workdir have spent this; None sets no limit.
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
                raise UserError(f"extra_body: found {name!r}, which synth2 sets. Remove it.")
        if not self.model or not is_name(self.model):
            raise UserError(f"model: found {self.model!r:.40}, expected the name of a model")
        for name in ("requests_per_minute", "timeout", "max_cost"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}: found {value}, expected more than 0")
        for name in ("input_price", "output_price", "temperature"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}: found {getattr(self, name)}, expected at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, expected more than 0, at most 1")
        if self.max_cost is not None and not self.input_price + self.output_price:
            raise UserError("max_cost: needs a price. Set `input_price` or `output_price`.")

    def sampling(self) -> dict[str, Any]:
        """Returns the fields of a request that change its answer, in JSON's types."""
        found = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            **self.extra_body,
        }
        plain = json.loads(config_lib.to_json(found))
        return {name: value for name, value in plain.items() if value is not None}


class Usage:
    """Counts answers and tokens over all runs of a workdir, and their cost."""

    def __init__(self, config: ServerConfig, answers: Iterable[Answer]):
        self._config = config
        self.answers = self.prompt_tokens = self.completion_tokens = 0
        self.without_usage = 0  # answers that do not report their tokens
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        self.answers += 1
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            self.without_usage += 1
        else:
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None when no price is known."""
        cfg = self._config
        if not cfg.input_price + cfg.output_price:
            return None
        paid = self.prompt_tokens * cfg.input_price + self.completion_tokens * cfg.output_price
        return round(paid / 1e6, 6)

    def check_cost(self) -> None:
        """Raises UserError when the answers have cost `max_cost`."""
        limit = self._config.max_cost
        if limit is not None and self.cost >= limit:
            raise UserError(
                f"--config.server.max_cost: reached (answers have cost {self.cost:g}, the limit is "
                f"{limit:g}). The answers are kept; run the same command with a higher limit."
            )

    def describe(self) -> dict[str, Any]:
        """Returns the counts for a manifest."""
        names = ("answers", "prompt_tokens", "completion_tokens", "without_usage", "cost")
        return {name: getattr(self, name) for name in names}

    def summary(self) -> str:
        """Returns the counts in words."""
        line = (
            f"{self.answers} in all, {self.prompt_tokens} prompt and {self.completion_tokens} "
            "completion tokens"
        )
        if self.without_usage:
            line += f", {self.without_usage} answers did not report their tokens"
        return line if self.cost is None else f"{line}; cost {self.cost:g}"
