"""Image tokens of captions by a trained generator, in batches of one shape.

Legend: B batch, N image tokens, T text tokens.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.records import Pair
from synth2_jax.data.skipped import Skipped
from synth2_jax.device_stream import BusyClock, in_background, in_rows, on_device
from synth2_jax.loading.run import Trained
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.vq_tokenizer import VQTokenizer
from synth2_jax.progress import Progress
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.text.caption_ids import text_ids
from synth2_jax.text.vocabulary import load_vocabulary
from synth2_jax.training.tasks import GeneratorTask
from synth2_jax.training.train_state import Params

_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig:
    """Attributes:

    generator: workdir or export of a generator.
    captions: folder that `synth2 captions` wrote.
    text_encoder: path of the text encoder, for a generator that was trained on stored features; ""
      for the one that its training config names.
    samples_per_caption: images for each caption.
    sampler: how tokens are drawn.
    guidance: how closely images follow their captions.
    batch_size: images a batch, over the devices of one process.
    num_shards: files of pairs.
    seed: of the images.
    max_skipped: the run stops when a larger share of the captions has no token to read.
    mesh: of the devices of one process; processes share no work.
    """

    generator: str
    captions: str
    text_encoder: str = ""
    samples_per_caption: int = 1
    sampler: ParallelDecodeConfig = ParallelDecodeConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    batch_size: int = 256
    num_shards: int = 4
    seed: int = 0
    max_skipped: float = 0.01
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        config_lib.check_seeds(self, "seed")
        config_lib.check_counts(self, "samples_per_caption", "batch_size", "num_shards")


def make_generate_numbered(task: GeneratorTask, config: SynthesizeConfig) -> Callable:
    """Returns `(params, text_tokens_BT, numbers_B) -> ids_BN`, to be jitted.

    A row depends on its caption and its number alone; `params` are those of a generator's run.
    """
    generate = make_generate(Generator(task.generator), config.sampler, config.guidance)
    tokenizer = VQTokenizer(task.tokenizer)

    def generate_numbered(params: Params, text_tokens_BT: jax.Array, numbers_B: jax.Array):
        key = jax.random.key(config.seed)
        keys_B = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)
        codebook_KC = tokenizer.apply({"params": params["tokenizer"]}, method="codes")
        return generate(
            params["generator"], codebook_KC, text_tokens_BT, text_tokens_BT != 0, keys_B
        )

    return generate_numbered


class TokenGenerator:
    """Captions -> image token ids, in batches of one shape.

    Args:
      trained: a generator with its text encoder, on the mesh of `config` or in numpy arrays;
        captions are tokenized by the vocabulary that it was trained with.
      config: sampler, guidance, batch size and seed are used.
    """

    def __init__(self, trained: Trained, config: SynthesizeConfig):
        task = trained.objective.task
        self._batch_size = config.batch_size
        self._length = task.text_length
        self._vocabulary = load_vocabulary(
            config_lib.build(DataConfig, trained.config["data"]).vocabulary
        )
        self._mesh, self._params = local_mesh(config), trained.params
        generate = make_generate_numbered(task, config)

        def generate_on_mesh(params, text_tokens_BT, numbers_B):
            with sharding.constraints(self._mesh, sharding.axis_rules(config.mesh)):
                return generate(params, text_tokens_BT, numbers_B)

        self._generate = jax.jit(generate_on_mesh)

    def pairs(
        self,
        requests: Iterable[tuple[int, tuple[int, str] | None]],
        clock: BusyClock | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Pair | Skipped | None]]:
        """The pair of each (tag, (number, caption)); (tag, None) stays in its place."""
        with contextlib.closing(in_background(self._batches(requests), _BATCHES_AHEAD)) as batches:
            for items, ids_BN in on_device(self._dispatch, batches, clock):
                rows = iter(ids_BN)
                for tag, item in items:
                    if isinstance(item, Pair):
                        item = dataclasses.replace(item, image_tokens=next(rows))
                    yield tag, item
                if progress:
                    progress.add(sum(item is not None for _, item in items))

    def _batches(self, requests):
        """(items, (text_tokens i32[B,T], numbers u32[B])); pairs among the items have no tokens."""
        items = ((tag, request and self._item(*request)) for tag, request in requests)
        for part in in_rows(items, self._batch_size, lambda item: isinstance(item[1], Pair)):
            pairs = [item for _, item in part if isinstance(item, Pair)]
            numbers = [int(pair.key.split("-")[1]) for pair in pairs]  # see `_item`
            yield part, self._filled([pair.caption for pair in pairs], numbers)

    def _item(self, number: int, caption: str) -> Pair | Skipped:
        key = f"synthetic-{number:09d}-0"
        ids = self._vocabulary.encode(caption)
        if not ids:
            return Skipped(key, "caption without tokens", f"{caption!r:.60}")
        cut = len(ids) > self._length - 1  # the last token is the end of sentence
        return Pair(key, None, caption, "synthetic", caption_cut=cut)

    def _filled(
        self, captions: Sequence[str], numbers: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A batch of the one shape that is compiled; rows that fill it up are zeros."""
        text_BT = np.zeros((self._batch_size, self._length), np.int32)
        numbers_B = np.zeros(self._batch_size, np.uint32)
        text_BT[: len(captions)] = text_ids(captions, self._vocabulary, self._length)
        numbers_B[: len(numbers)] = numbers
        return text_BT, numbers_B

    def _dispatch(self, text_BT: np.ndarray, numbers_B: np.ndarray) -> jax.Array:
        where = sharding.batch_sharding(self._mesh)
        text_BT, numbers_B = jax.device_put((text_BT, numbers_B), where)
        return self._generate(self._params, text_BT, numbers_B)

    def dispatch(self, captions: Sequence[str], numbers: Sequence[int]) -> jax.Array:
        """Returns i32[batch_size, N] without waiting for it; its first rows are the captions'."""
        return self._dispatch(*self._filled(captions, numbers))

    def __call__(self, captions: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
        """i32[B, N] of up to batch_size captions; row i depends on its caption and number alone."""
        return np.asarray(self.dispatch(captions, numbers))[: len(captions)]


def local_mesh(config: SynthesizeConfig) -> Mesh:
    """Returns the mesh over the devices of this process."""
    mesh = sharding.make_mesh(config.mesh, jax.local_devices())
    sharding.check_rows(config.batch_size, mesh, "--config.batch_size")
    return mesh
