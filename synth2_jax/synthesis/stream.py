"""Synthetic pairs that go straight into the training of a VLM, without touching a disk.

`synth2 train` with `config.stream` makes a share of each batch by a generator, for the
comparison with pairs that were stored (Synth², section 3: generation on the fly); stored pairs are
cheaper as soon as they are used twice.

Legend: B rows of this process, N image tokens, T text tokens.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from synth2_jax import sharding
from synth2_jax.caption_writing.folder import CAPTIONS
from synth2_jax.config import check_seeds
from synth2_jax.data import records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import ChangedError, DamagedError, UserError, naming
from synth2_jax.files import read_json_lines
from synth2_jax.loading.text_encoders import with_text_encoder
from synth2_jax.loading.trained import load_trained
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.pixels import make_encode
from synth2_jax.sharding import ALL_ROWS, DataLayout
from synth2_jax.synthesis.token_generator import SynthesizeConfig, TokenGenerator
from synth2_jax.text.caption_ids import vlm_text
from synth2_jax.text.vocabulary import load_vocabulary
from synth2_jax.training.checkpoints import DataIterator


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
        check_seeds(self, "seed")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: found {self.share}, expected above 0 and at most 1")

    def num_synthetic(self, batch_size: int) -> int:
        """Rows of a batch that are made, at least one."""
        return max(1, round(self.share * batch_size))


class StreamedBatches:
    """Batches of real rows and of synthetic ones that are made for them; a `DataIterator`.

    Synthetic row i depends on the seed and i alone, and both kinds are spread evenly over the rows
    of a batch: on any mesh and number of processes, and after any kill, the same batches come.

    Args:
      config: what to make.
      data: vocabulary, prompt, text length and batch size of the training.
      tokenizer_fingerprint: of the VLM's tokenizer; a generator of another is refused.
      real: the other rows of each batch, as image tokens or as images, which the tokenizer encodes
        here; None for synthetic rows alone.
      layout: which rows of every batch this process makes.
    """

    def __init__(
        self,
        config: StreamConfig,
        data: DataConfig,
        tokenizer_fingerprint: str,
        real: DataIterator | None,
        layout: DataLayout = ALL_ROWS,
    ):
        self._per_batch = config.num_synthetic(data.batch_size)
        self._mine = layout.rows(self._per_batch)
        # Of n rows from the first on, n * share are synthetic, rounded down.
        made = np.arange(data.batch_size + 1) * self._per_batch // data.batch_size
        self._is_synthetic = np.diff(made)[layout.rows(data.batch_size)].astype(bool)
        self._mesh = sharding.make_mesh(sharding.MeshConfig(), jax.local_devices())
        with naming("--config.stream.generator", config.generator):
            trained = load_trained(config.generator, "generator", mesh=self._mesh)
        found = trained.fingerprint("tokenizer")
        if found != tokenizer_fingerprint:
            raise UserError(
                f"--config.stream.generator={config.generator}: makes image tokens of tokenizer "
                f"{found}, expected tokenizer {tokenizer_fingerprint}"
            )
        with naming("--config.stream.captions", config.captions):
            path = pathlib.Path(config.captions) / CAPTIONS
            self._captions = [row.get("caption") for row in read_json_lines(path)]
            if not self._captions or not all(isinstance(text, str) for text in self._captions):
                raise UserError(f"{path}: expected a text as each line's caption")
        settings = dataclasses.asdict(config)
        text_encoder = settings.pop("text_encoder")  # which the generator determines
        complete = with_text_encoder(
            trained, text_encoder, mesh=self._mesh, where="--config.stream.text_encoder"
        )
        synthesis = SynthesizeConfig(
            generator=config.generator,
            captions=config.captions,
            sampler=config.sampler,
            guidance=config.guidance,
            batch_size=self._filled_up(len(self._mine)),
            seed=config.seed,
        )
        self._generator = TokenGenerator(complete, synthesis)
        tokenizer = trained.objective.task.tokenizer
        self._image_shape = (tokenizer.image_size, tokenizer.image_size, 3)
        self._encode = functools.partial(
            jax.jit(make_encode(tokenizer)), trained.params["tokenizer"]
        )
        self._vocabulary = load_vocabulary(data.vocabulary)
        self._prompt, self._length = data.prompt, data.text_length
        self._seed, self._real = config.seed, real
        self._identity = {
            **settings,
            "generator": trained.fingerprint("generator"),
            "captions": [len(self._captions), _sha256(self._captions)],
            "text_length": data.text_length,
            "prompt": data.prompt,
            "vocabulary": records.sha256_of(pathlib.Path(self._vocabulary.path))[:16],
        }
        self._number = 0  # of rows that all processes have made
        self._pending: jax.Array | None = None
        self.last_keys: list[str] = []

    def __next__(self) -> dict[str, np.ndarray]:
        numbers = (self._number + self._mine).tolist()
        captions = [self._caption(number) for number in numbers]
        pending = self._make() if self._pending is None else self._pending
        real = {} if self._real is None else next(self._real)
        if "image" in real:
            real["image_tokens"] = self._tokens_of(real.pop("image"))
        prompts = [self._prompt] * len(captions)
        tokens_BT, mask_BT = vlm_text(captions, prompts, self._vocabulary, self._length)
        self._number += self._per_batch
        # Asked for now, so that the device makes them while the host prepares the next batch.
        self._pending = self._make()
        batch = {
            "image_tokens": np.asarray(pending)[: len(captions)],
            "text_tokens": tokens_BT,
            "loss_mask": mask_BT,
            "is_synthetic": np.ones(len(captions), bool),
        }
        self.last_keys = [f"stream-{number:09d}" for number in numbers]
        if not real:
            return batch
        self.last_keys = [*getattr(self._real, "last_keys", ()), *self.last_keys]
        return {name: self._mixed(np.asarray(real[name]), rows) for name, rows in batch.items()}

    @property
    def totals(self) -> dict[str, int]:
        """Counts of the rows drawn so far, for the log."""
        made = self._number // self._per_batch * len(self._mine)
        return {**getattr(self._real, "totals", {}), "data/stream_examples": made}

    def get_state(self) -> bytes:
        """The position after the last batch delivered."""
        real = b"" if self._real is None else self._real.get_state()
        real = base64.b64encode(real).decode()
        state = {"identity": self._identity, "number": self._number, "real": real}
        return json.dumps(state).encode()

    def set_state(self, state: bytes) -> None:
        """Resumes where `get_state` was called; UserError on the position of another stream."""
        real = self._open(state)
        if self._real is not None:
            self._real.set_state(real)

    def restart(self, state: bytes, step: int) -> str:
        """Resumes with the rows that follow: they are the same on any mesh."""
        real = self._open(state)
        if self._real is None:
            return "resuming the data exactly"
        return self._real.restart(real, step)

    def _open(self, state: bytes) -> bytes:
        """Moves to a position; returns that of the real rows."""
        try:
            values = json.loads(state)
            found = values["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError("data position: these bytes are not one of a stream") from error
        expected = json.loads(json.dumps(self._identity))
        # Older positions hold the number of captions alone, and nothing of how text is read.
        if found.get("captions") == len(self._captions):
            found["captions"] = expected["captions"]
        for key in ("text_length", "prompt", "vocabulary"):
            found.setdefault(key, expected[key])
        for key in expected:
            if found.get(key) != expected[key]:
                raise ChangedError(
                    f"--config.stream: the checkpoint was saved with stream.{key} "
                    f"{found.get(key)!r}, this run has {expected[key]!r}"
                )
        self._number, self._pending = values["number"], None
        return base64.b64decode(values["real"])

    def _make(self) -> jax.Array:
        """Begins to make the rows of the next batch."""
        numbers = (self._number + self._mine).tolist()
        return self._generator.dispatch([self._caption(number) for number in numbers], numbers)

    def _filled_up(self, num_rows: int) -> int:
        """Rows of the next larger batch that the devices divide."""
        return -(-num_rows // self._mesh.size) * self._mesh.size

    def _tokens_of(self, images: np.ndarray) -> jax.Array:
        """i32[B, N] of images u8[B, H, W, 3], as the training step makes them; does not wait."""
        if images.shape[1:] != self._image_shape:
            raise UserError(
                f"--config.data.folders: found images of shape {images.shape[1:]}, expected the "
                f"tokenizer's {self._image_shape}"
            )
        missing = self._filled_up(len(images)) - len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        where = sharding.batch_sharding(self._mesh)
        return self._encode(jax.device_put(filled, where))[: len(images)]

    def _mixed(self, real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
        """Rows of both kinds, each in its place in the batch."""
        rows = np.empty((len(self._is_synthetic), *real.shape[1:]), real.dtype)
        rows[~self._is_synthetic], rows[self._is_synthetic] = real, synthetic
        return rows

    def _caption(self, number: int) -> str:
        epoch, index = divmod(number, len(self._captions))
        return self._captions[_order(self._seed, epoch, len(self._captions))[index]]


def _sha256(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The captions of an epoch, shuffled."""
    return np.random.default_rng((seed, epoch)).permutation(count)
