"""Synthetic pairs that go straight into the training of a VLM, without touching a disk.

`synth2 train` with `config.stream` makes a share of each batch anew by a generator, for the
comparison with pairs that were stored (Synth², section 3: generation on the fly); stored pairs are
cheaper as soon as they are used twice.

Legend: B rows of this process, N image tokens, T text tokens.
"""

import base64
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import DamagedError, UserError
from synth2_jax.files import read_json_lines
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages.captions import CAPTIONS
from synth2_jax.stages.model_text import vlm_text
from synth2_jax.stages.synthesize import SynthesizeConfig, TokenGenerator
from synth2_jax.stages.text_encoders import with_text_encoder
from synth2_jax.stages.trained import load_trained
from synth2_jax.training.checkpoints import DataIterator
from synth2_jax.vocabulary import load_vocabulary


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Attributes:

    generator: workdir of the generator's training run.
    captions: folder that `synth2 captions` wrote; all of them are held in memory.
    text_encoder: as in a synthesize config.
    share: of each batch that is synthetic; 1 trains on nothing else.
    sampler, guidance: how tokens are drawn.
    seed: of the order of the captions, and of the pictures.
    """

    generator: str
    captions: str
    text_encoder: str = ""
    share: float = 0.5
    sampler: ParallelDecodeConfig = ParallelDecodeConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share: found {self.share}, expected above 0 and at most 1")

    def num_synthetic(self, batch_size: int) -> int:
        """Rows of a batch that are made, at least one."""
        return max(1, round(self.share * batch_size))


class StreamedBatches:
    """Batches of real rows and of synthetic ones that are made for them; a `DataIterator`.

    Row i of the stream depends on the seed and i alone: on any number of processes, and after any
    kill, the same pictures come.

    Args:
      config: what to make.
      data: vocabulary, prompt, text length and batch size of the training.
      tokenizer_fingerprint: of the VLM's tokenizer; a generator of another is refused.
      real: the other rows of each batch; None where there are none.
      process_index, process_count: this process makes its part of the rows.

    Raises:
      UserError: no generator or captions, or a generator of another tokenizer.
    """

    def __init__(
        self,
        config: StreamConfig,
        data: DataConfig,
        tokenizer_fingerprint: str,
        real: DataIterator | None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        rows, remainder = divmod(config.num_synthetic(data.batch_size), process_count)
        if remainder:
            raise UserError(
                f"config.stream.share: makes {config.num_synthetic(data.batch_size)} rows a batch, "
                f"expected a multiple of the {process_count} processes"
            )
        self._rows, self._first, self._step_rows = rows, process_index * rows, process_count * rows
        synthesis = SynthesizeConfig(
            generator=config.generator,
            captions=config.captions,
            sampler=config.sampler,
            guidance=config.guidance,
            batch_size=-(-rows // jax.local_device_count()) * jax.local_device_count(),
            seed=config.seed,
        )
        mesh = sharding.make_mesh(synthesis.mesh, jax.local_devices())
        trained = load_trained(config.generator, "generator", mesh=mesh)
        found = trained.fingerprint("tokenizer")
        if found != tokenizer_fingerprint:
            raise UserError(
                f"config.stream.generator: {config.generator} makes image tokens of tokenizer "
                f"{found}, expected tokenizer {tokenizer_fingerprint}"
            )
        path = pathlib.Path(config.captions) / CAPTIONS
        self._captions = [row.get("caption") for row in read_json_lines(path)]
        if not self._captions or not all(isinstance(text, str) for text in self._captions):
            raise UserError(f"{path}: expected a text as each line's caption")
        complete = with_text_encoder(
            trained, config.text_encoder, mesh=mesh, where="config.stream.text_encoder"
        )
        self._generator = TokenGenerator(complete, synthesis)
        self._vocabulary = load_vocabulary(data.vocabulary)
        self._prompt, self._length = data.prompt, data.text_length
        self._seed, self._real = config.seed, real
        settings = dataclasses.asdict(config)
        del settings["text_encoder"]  # which the generator determines
        self._identity = {
            **settings,
            "generator": trained.fingerprint("generator"),
            "captions": len(self._captions),
        }
        self._number = 0  # of rows that all processes have made
        self._pending: jax.Array | None = None
        self.last_keys: list[str] = []

    def __next__(self) -> dict[str, np.ndarray]:
        numbers = self._numbers()
        pending = self._make(numbers) if self._pending is None else self._pending
        captions = [self._caption(number) for number in numbers]
        prompts = [self._prompt] * len(captions)
        tokens_BT, mask_BT = vlm_text(captions, prompts, self._vocabulary, self._length)
        batch = {
            "image_tokens": np.asarray(pending)[: self._rows],
            "text_tokens": tokens_BT,
            "loss_mask": mask_BT,
            "is_synthetic": np.ones(self._rows, bool),
        }
        self._number += self._step_rows
        # Asked for now, so that the device makes them while the host prepares the next batch.
        self._pending = self._make(self._numbers())
        self.last_keys = [f"stream-{number:09d}" for number in numbers]
        if self._real is not None:
            real = next(self._real)
            batch = {name: np.concatenate([real[name], batch[name]]) for name in batch}
            self.last_keys = [*getattr(self._real, "last_keys", ()), *self.last_keys]
        return batch

    @property
    def totals(self) -> dict[str, int]:
        """What was drawn so far, for the log."""
        real = getattr(self._real, "totals", {})
        made = self._number // self._step_rows * self._rows
        return {**real, "data/stream_examples": made}

    def get_state(self) -> bytes:
        """The position after the last batch delivered."""
        real = b"" if self._real is None else self._real.get_state()
        state = {
            "identity": self._identity,
            "number": self._number,
            "real": base64.b64encode(real).decode(),
        }
        return json.dumps(state).encode()

    def set_state(self, state: bytes) -> None:
        """Goes on where `get_state` was called; UserError when that was another stream."""
        values = self._open(state)
        if self._real is not None:
            self._real.set_state(base64.b64decode(values["real"]))

    def restart(self, state: bytes, step: int) -> str:
        """Goes on with the rows that follow: they do not depend on the processes."""
        values = self._open(state)
        if self._real is None:
            return "the data goes on exactly"
        return self._real.restart(base64.b64decode(values["real"]), step)

    def _open(self, state: bytes) -> Mapping[str, Any]:
        try:
            values = json.loads(state)
            found = values["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError("data position: these bytes are not one of a stream") from error
        expected = json.loads(json.dumps(self._identity))
        for key in expected:
            if found.get(key) != expected[key]:
                raise UserError(
                    f"data position: saved with stream.{key} {found.get(key)!r}, this run has "
                    f"{expected[key]!r}; to change data, start from the parameters alone"
                )
        self._number, self._pending = values["number"], None
        return values

    def _numbers(self) -> range:
        start = self._number + self._first
        return range(start, start + self._rows)

    def _make(self, numbers: range) -> jax.Array:
        return self._generator.dispatch([self._caption(number) for number in numbers], numbers)

    def _caption(self, number: int) -> str:
        epoch, index = divmod(number, len(self._captions))
        return self._captions[_order(self._seed, epoch, len(self._captions))[index]]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The captions of an epoch, shuffled."""
    return np.random.default_rng((seed, epoch)).permutation(count)
