"""`synth2 synthesize`: makes synthetic pairs: image tokens for captions, by the generator.

No pixel is rendered. A shard is the unit of work: after a kill, the same command makes only the
shards that are missing.

Legend: B batch, N image tokens, T text tokens.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.records import Manifest, Pair, Provenance, Skipped
from synth2_jax.errors import UserError
from synth2_jax.files import JsonLinesFile, read_json
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.vq_tokenizer import VQTokenizer
from synth2_jax.progress import Progress
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages import pair_shards
from synth2_jax.stages.captions import CAPTIONS, MANIFEST
from synth2_jax.stages.device_stream import BusyClock, in_background, on_device
from synth2_jax.stages.model_text import text_ids
from synth2_jax.stages.text_encoders import with_text_encoder
from synth2_jax.stages.trained import load_trained
from synth2_jax.training.objectives import GeneratorTask
from synth2_jax.training.stop_signal import StopSignal
from synth2_jax.training.train_state import Params
from synth2_jax.training.trained import Trained
from synth2_jax.vocabulary import load_vocabulary

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
    mesh: how the generator lies on the devices of one process; processes share no work.
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


def _manifest(folder: pathlib.Path, captions: JsonLinesFile) -> dict[str, Any]:
    """Who wrote the captions; UserError where it is the manifest of other ones."""
    manifest = read_json(folder / MANIFEST, "captions")
    for key, found in (("num_captions", captions.num_rows), ("sha256", captions.sha256)):
        expected = manifest.get(key, found)  # other people's may not say it
        if expected != found:
            raise UserError(
                f"{captions.path}: found {key} {found}, expected {expected!r:.80} as in "
                f"{MANIFEST}. Run `synth2 captions` again, or delete {key} from {MANIFEST}"
            )
    return manifest


def run(config: Any, workdir: str) -> Manifest:
    """Synthesizes the pairs that are missing; returns the manifest."""
    cfg = config_lib.build(SynthesizeConfig, config)
    mesh, rules = _local_mesh(cfg), sharding.axis_rules(cfg.mesh)
    trained = load_trained(cfg.generator, "generator", mesh=mesh, rules=rules)
    complete = with_text_encoder(trained, cfg.text_encoder, mesh=mesh, rules=rules)
    generator = TokenGenerator(complete, cfg)
    folder = pathlib.Path(cfg.captions)
    captions = JsonLinesFile(folder / CAPTIONS)
    if not captions.num_rows:
        raise UserError(f"{folder / CAPTIONS}: found no captions, expected one a line")
    tokenizer = trained.objective.task.tokenizer
    writer = PairWriter(
        workdir,
        Provenance(
            tokenizer=trained.fingerprint("tokenizer"),
            num_image_tokens=tokenizer.num_tokens,
            codebook_size=tokenizer.codebook_size,
            generator=trained.provenance("generator"),
            sampler={
                **dataclasses.asdict(cfg.sampler),
                "guidance": dataclasses.asdict(cfg.guidance),
                "samples_per_caption": cfg.samples_per_caption,
                "seed": cfg.seed,
            },
            captions={**_manifest(folder, captions), "sha256": captions.sha256},
            config=dataclasses.asdict(cfg),
        ),
        num_shards=cfg.num_shards,
    )
    num_pairs = captions.num_rows * cfg.samples_per_caption
    bounds = [num_pairs * shard // cfg.num_shards for shard in range(cfg.num_shards + 1)]
    shards = pair_shards.my_shards(writer)
    total = sum(bounds[shard + 1] - bounds[shard] for shard in shards)
    budget = pair_shards.SkipBudget("synthesize", cfg.max_skipped, "config.max_skipped")
    if shards:
        with (
            StopSignal() as stop,
            BusyClock() as clock,
            Progress("synthesize", total, "pairs") as progress,
        ):
            requests = _requests(captions, cfg.samples_per_caption, shards, bounds)
            results = generator.pairs(requests, clock, progress)
            pair_shards.write_shards(writer, pair_shards.watched(results, stop, budget))
        logging.info("synthesize: the device was busy %.1f %% of the time", 100 * clock.share)
    budget.check(*writer.written())
    manifest = pair_shards.finish(workdir, writer)
    if manifest.captions_cut:
        logging.warning(
            "%d of %d captions are cut: the generator reads %d tokens, end of sentence included",
            *(manifest.captions_cut, manifest.num_pairs, trained.objective.task.text_length),
        )
    return manifest


def _requests(
    captions: JsonLinesFile, samples_per_caption: int, shards: Sequence[int], bounds: Sequence[int]
) -> Iterator[tuple[int, tuple[int, str] | None]]:
    """(shard, (number, caption)) of each pair to make, each shard ended by (shard, None)."""
    for shard in shards:
        numbers = range(bounds[shard], bounds[shard + 1])
        first, last = numbers.start // samples_per_caption, -(-numbers.stop // samples_per_caption)
        for line, row in captions.rows(first, last):
            caption = row.get("caption")
            if not isinstance(caption, str):
                raise UserError(
                    f"{captions.path}: line {line} is {row!r:.60}, expected a text as its caption"
                )
            for sample in range(samples_per_caption):
                number = (line - 1) * samples_per_caption + sample
                if number in numbers:
                    yield shard, (number, caption)
        yield shard, None


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
        self._mesh = _local_mesh(config)
        self._params = trained.params
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
        items, texts, numbers = [], [], []
        for tag, request in requests:
            if request is None:
                items.append((tag, None))
            else:
                number, caption = request
                key = f"synthetic-{number:09d}-0"
                ids = self._vocabulary.encode(caption)
                if ids:
                    cut = len(ids) > self._length - 1  # the last token is the end of sentence
                    items.append((tag, Pair(key, None, caption, "synthetic", caption_cut=cut)))
                    texts.append(caption)
                    numbers.append(number)
                else:
                    items.append((tag, Skipped(key, "caption without tokens", f"{caption!r:.60}")))
            if len(texts) == self._batch_size or len(items) > 16 * self._batch_size:
                yield items, self._filled(texts, numbers)
                items, texts, numbers = [], [], []
        if items:
            yield items, self._filled(texts, numbers)

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
        """i32[batch_size, N], of which the first rows are the captions'; does not wait for it."""
        return self._dispatch(*self._filled(captions, numbers))

    def __call__(self, captions: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
        """i32[B, N] of up to batch_size captions; row i depends on its caption and number alone."""
        return np.asarray(self.dispatch(captions, numbers))[: len(captions)]


def _local_mesh(config: SynthesizeConfig) -> Mesh:
    mesh = sharding.make_mesh(config.mesh, jax.local_devices())
    sharding.check_rows(config.batch_size, mesh, "config.batch_size")
    return mesh
