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
        for names, fits, expected in (
            (("requests_per_minute", "timeout", "max_cost"), lambda x: x > 0, "more than 0"),
            (("input_price", "output_price", "temperature"), lambda x: x >= 0, "at least 0"),
            (("top_p",), lambda x: 0 < x <= 1, "more than 0, at most 1"),
        ):
            for name in names:
                if (value := getattr(self, name)) is not None and not fits(value):
                    raise UserError(f"{name}: found {value}, expected {expected}")
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
        self._counts = dict.fromkeys(
            ("answers", "prompt_tokens", "completion_tokens", "without_usage"), 0
        )
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        counted = None not in (answer.prompt_tokens, answer.completion_tokens)
        self._counts["answers"] += 1
        self._counts["prompt_tokens"] += answer.prompt_tokens if counted else 0
        self._counts["completion_tokens"] += answer.completion_tokens if counted else 0
        self._counts["without_usage"] += not counted

    def describe(self) -> dict[str, Any]:
        """Returns the counts for a manifest, and their "cost" in the currency of the prices.

        The cost is None if no price is known.
        """
        cfg, cost = self._config, None
        if cfg.input_price + cfg.output_price:
            paid = self._counts["prompt_tokens"] * cfg.input_price
            paid += self._counts["completion_tokens"] * cfg.output_price
            cost = round(paid / 1e6, 6)
        return {**self._counts, "cost": cost}

    def check_cost(self) -> None:
        """Raises UserError when the answers have cost `max_cost`."""
        limit, cost = self._config.max_cost, self.describe()["cost"]
        if limit is not None and cost >= limit:
            raise UserError(
                f"--config.server.max_cost: reached (answers have cost {cost:g}, the limit is "
                f"{limit:g}). The answers are kept; run the same command with a higher limit."
            )

    def summary(self) -> str:
        """Returns the counts in words."""
        found = self.describe()
        line = (
            f"{found['answers']} in all, {found['prompt_tokens']} prompt and "
            f"{found['completion_tokens']} completion tokens"
        )
        if found["without_usage"]:
            line += f", {found['without_usage']} answers did not report their tokens"
        return line if found["cost"] is None else f"{line}; cost {found['cost']:g}"
