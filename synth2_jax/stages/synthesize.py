"""`synth2 synthesize`: captions -> image tokens by the generator, as shards of synthetic pairs.

No pixel is rendered. A shard is the unit of work: after a kill, the same command makes only the
shards that are missing.

Legend: B batch, N image tokens, T text tokens.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.records import Manifest, Pair, PairWriter, Provenance, read_manifest
from synth2_jax.errors import UserError
from synth2_jax.files import read_json, read_json_lines
from synth2_jax.models.maskgit import Generator
from synth2_jax.progress import Progress
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages.captions import CAPTIONS, MANIFEST
from synth2_jax.training.objectives import GeneratorTask
from synth2_jax.training.stop_signal import StopSignal
from synth2_jax.training.train_state import Params
from synth2_jax.training.trained import Trained, load_trained
from synth2_jax.vocabulary import EOS_ID, Vocabulary, load_vocabulary


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig:
    """Attributes:

    generator: workdir of the generator's training run.
    captions: folder that `synth2 captions` wrote.
    samples_per_caption: pictures of each caption.
    sampler, guidance: how tokens are drawn.
    batch_size: pictures a batch, over the devices of one process.
    mesh: where the generator lies, of the devices of one process: processes share no work.
    """

    generator: str
    captions: str
    samples_per_caption: int = 1
    sampler: ParallelDecodeConfig = ParallelDecodeConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    batch_size: int = 256
    num_shards: int = 4
    seed: int = 0
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        config_lib.check_counts(
            self, "synthesize", "samples_per_caption", "batch_size", "num_shards"
        )


def run(config: Any, workdir: str) -> Manifest:
    """Synthesizes the pairs that are missing; returns the manifest."""
    cfg = config_lib.build(SynthesizeConfig, config)
    mesh, rules = _local_mesh(cfg), sharding.axis_rules(cfg.mesh)
    trained = load_trained(cfg.generator, "generator", mesh=mesh, rules=rules)
    generate = TokenGenerator(trained, cfg)
    folder = pathlib.Path(cfg.captions)
    distinct = _read_captions(folder / CAPTIONS)
    written_by = read_json(folder / MANIFEST, "captions")
    if num_cut := generate.num_cut(distinct):
        written_by["cut"] = num_cut
        logging.warning(
            "%d of %d captions are cut: the generator reads %d tokens, end of sentence included",
            *(num_cut, len(distinct), trained.objective.task.text_length),
        )
    captions = [caption for caption in distinct for _ in range(cfg.samples_per_caption)]
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
            captions=written_by,
            config=dataclasses.asdict(cfg),
        ),
        num_shards=cfg.num_shards,
    )
    mine = range(jax.process_index(), cfg.num_shards, jax.process_count())
    missing = [index for index in writer.missing() if index in mine]
    bounds = np.linspace(0, len(captions), cfg.num_shards + 1).astype(int)
    total = sum(int(bounds[i + 1] - bounds[i]) for i in missing)
    with StopSignal() as stop, Progress("synthesize", total, "pairs") as progress:
        for index in missing:
            numbers = range(bounds[index], bounds[index + 1])
            ids = []
            for start in range(0, len(numbers), cfg.batch_size):
                if stop.received:
                    stop.exit()
                part = numbers[start : start + cfg.batch_size]
                ids.append(generate([captions[i] for i in part], part))
                progress.add(len(part))
            tokens = np.concatenate(ids) if ids else np.zeros((0, tokenizer.num_tokens), np.int32)
            writer.write_shard(
                index,
                [
                    Pair(f"synthetic-{i:09d}-0", row, captions[i], "synthetic")
                    for i, row in zip(numbers, tokens, strict=True)
                ],
            )
    if jax.process_count() == 1:
        return writer.finish()
    multihost_utils.sync_global_devices("synthesize: all shards are there")
    manifest = writer.finish() if jax.process_index() == 0 else None
    multihost_utils.sync_global_devices("synthesize: the manifest is there")
    return manifest or read_manifest(workdir)


def make_generate_numbered(task: GeneratorTask, config: SynthesizeConfig) -> Callable:
    """Returns `(params, text_tokens_BT, numbers_B) -> ids_BN`, to be jitted.

    A row depends on its caption and its number alone; `params` are those of a generator's run.
    """
    generate = make_generate(Generator(task.generator), config.sampler, config.guidance)

    def generate_numbered(params: Params, text_tokens_BT: jax.Array, numbers_B: jax.Array):
        key = jax.random.key(config.seed)
        keys_B = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)
        codebook_KC = params["tokenizer"]["quantizer"]["codebook"]
        return generate(
            params["generator"], codebook_KC, text_tokens_BT, text_tokens_BT != 0, keys_B
        )

    return generate_numbered


class TokenGenerator:
    """Captions -> image token ids, in batches of one shape.

    Args:
      trained: a generator, on the mesh of `config` or in numpy arrays; captions are tokenized by
        the vocabulary that it was trained with.
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

    def num_cut(self, captions: Sequence[str]) -> int:
        """How many lose their end; UserError on one of which nothing is left."""
        room = self._length - 1  # the last token is the end of sentence
        num_tokens = [len(self._vocabulary.encode(caption)) for caption in captions]
        for number, (caption, length) in enumerate(zip(captions, num_tokens, strict=True), start=1):
            if min(length, room) < 1:
                raise UserError(
                    f"captions: line {number}, {caption!r}, leaves no tokens; the generator reads "
                    f"{self._length}, end of sentence included, and expected at least one more"
                )
        return sum(length > room for length in num_tokens)

    def __call__(self, captions: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
        """i32[B, N] of up to batch_size captions; row i depends on its caption and number alone."""
        text_BT = text_ids(captions, self._vocabulary, self._length)
        fill = self._batch_size - len(captions)
        text_BT = np.concatenate([text_BT, np.repeat(text_BT[-1:], fill, axis=0)])
        numbers_B = np.concatenate([np.asarray(numbers), np.zeros(fill)]).astype(np.uint32)
        where = sharding.batch_sharding(self._mesh)
        text_BT, numbers_B = jax.device_put((text_BT, numbers_B), where)
        return np.asarray(self._generate(self._params, text_BT, numbers_B))[: len(captions)]


def _local_mesh(config: SynthesizeConfig) -> Mesh:
    mesh = sharding.make_mesh(config.mesh, jax.local_devices())
    sharding.check_rows(config.batch_size, mesh, "synthesize.batch_size")
    return mesh


def text_ids(captions: Sequence[str], vocabulary: Vocabulary, length: int) -> np.ndarray:
    """i32[B, T] as the generator was trained on: caption and end of sentence, padded with 0."""
    rows = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(rows, captions, strict=True):
        ids = [*vocabulary.encode(caption)[: length - 1], EOS_ID]
        row[: len(ids)] = ids
    return rows


def _read_captions(path: pathlib.Path) -> list[str]:
    captions = []
    for number, row in enumerate(read_json_lines(path), start=1):
        caption = row.get("caption")
        if not isinstance(caption, str):
            raise UserError(f"{path}: line {number} is {row!r:.60}, expected a text as its caption")
        captions.append(caption)
    if not captions:
        raise UserError(f"{path}: found no captions, expected one a line")
    return captions
