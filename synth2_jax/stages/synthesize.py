"""`synth2 synthesize`: makes synthetic pairs: image tokens for captions, by the generator.

No pixel is rendered. A shard is the unit of work: after a kill, the same command makes only the
shards that are missing.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.caption_writing.folder import CAPTIONS, read_manifest
from synth2_jax.data.pair_shards import make_pairs
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Manifest, Provenance
from synth2_jax.errors import UserError, naming
from synth2_jax.files import JsonLinesFile
from synth2_jax.loading.text_encoders import with_text_encoder
from synth2_jax.loading.trained import load_trained
from synth2_jax.synthesis.token_generator import SynthesizeConfig, TokenGenerator, local_mesh


def run(config: Any, workdir: str) -> Manifest:
    """Synthesizes the pairs that are missing; returns the manifest."""
    cfg = config_lib.build(SynthesizeConfig, config)
    mesh, rules = local_mesh(cfg), sharding.axis_rules(cfg.mesh)
    with naming("--config.generator", cfg.generator):
        trained = load_trained(cfg.generator, "generator", mesh=mesh, rules=rules)
    complete = with_text_encoder(trained, cfg.text_encoder, mesh=mesh, rules=rules)
    generator = TokenGenerator(complete, cfg)
    folder = pathlib.Path(cfg.captions)
    with naming("--config.captions", cfg.captions):
        captions = JsonLinesFile(folder / CAPTIONS)
        if not captions.num_rows:
            raise UserError(f"{folder / CAPTIONS}: found no captions, expected one a line")
        origin = {**read_manifest(folder, captions), "sha256": captions.sha256}
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
            captions=origin,
            config=dataclasses.asdict(cfg),
        ),
        num_shards=cfg.num_shards,
    )
    num_pairs = captions.num_rows * cfg.samples_per_caption
    bounds = [num_pairs * shard // cfg.num_shards for shard in range(cfg.num_shards + 1)]
    manifest = make_pairs(
        writer,
        "synthesize",
        lambda shards: (sum(bounds[shard + 1] - bounds[shard] for shard in shards), "pairs"),
        lambda shards, *watched: generator.pairs(
            _requests(captions, cfg.samples_per_caption, shards, bounds), *watched
        ),
        cfg.max_skipped,
    )
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
