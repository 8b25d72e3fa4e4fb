"""`synth2 encode_captions`: stores with each pair what a text encoder makes of its caption.

A generator with `stored_text_features` is trained on them without the encoder in its step, in its
memory or in its checkpoints; a T5-XXL there costs more than the generator. Models that read no
features are better off with the pairs as they were, which are a small part of the bytes.

A shard is the unit of work, of any number of processes: after a kill, the same command makes only
the shards that are missing.

Legend: B batch, T text tokens, t those of one caption, E text width.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import pair_shards, records, views
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Manifest, Pair
from synth2_jax.errors import UserError, naming
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.text_encoders import LoadedTextEncoder, load_text_encoder
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from synth2_jax.progress import Progress
from synth2_jax.sampling.device_stream import BusyClock, in_background, on_device
from synth2_jax.stop_signal import StopSignal
from synth2_jax.text.caption_ids import text_ids
from synth2_jax.text.vocabulary import Vocabulary, load_vocabulary

_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class EncodeCaptionsConfig:
    """Attributes:

    pairs: folder of the pairs, or of a view of pairs, whose rows alone are then written.
    text_encoder: where the encoder is: a T5 of t5x or Hugging Face, or a generator that has one.
    model: what the encoder is; None for what its folder says, which of t5x says nothing.
    vocabulary: a built-in name or the path of a SentencePiece model file; "" for the generator's.
    text_length: T, end of sentence included, as in the generator's training; None for that of the
      generator in `text_encoder`.
    batch_size: captions a batch, over the devices of one process.
    mesh: where the encoder lies, of the devices of one process: processes share no work.
    """

    pairs: str
    text_encoder: str
    model: TextEncoderConfig | None = None
    vocabulary: str = ""
    text_length: int | None = None
    batch_size: int = 256
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        config_lib.check_counts(self, "batch_size", "text_length")


def run(config: Any, workdir: str) -> Manifest:
    """Encodes the captions of the shards that are missing; returns the manifest."""
    cfg = config_lib.build(EncodeCaptionsConfig, config)
    with naming("--config.pairs", cfg.pairs):
        pairs = views.open_pairs(cfg.pairs)
    if pathlib.Path(workdir).resolve() == pathlib.Path(cfg.pairs).resolve():
        raise UserError(f"--workdir={workdir}: the pairs lie there, expected another folder")
    mesh = sharding.make_mesh(cfg.mesh, jax.local_devices())
    sharding.check_rows(cfg.batch_size, mesh, "--config.batch_size")
    with naming("--config.text_encoder", cfg.text_encoder):
        encoder = load_text_encoder(
            cfg.text_encoder, cfg.model, mesh=mesh, rules=sharding.axis_rules(cfg.mesh)
        )
    vocabulary, length = _text_of(cfg, encoder)
    text_encoder = {
        "fingerprint": fingerprint(encoder.params),
        "width": encoder.config.embed_dim,
        "text_length": length,
        "vocabulary": records.sha256_of(pathlib.Path(vocabulary.path)),
        "pairs": pairs.fingerprint,
    }
    provenance = dataclasses.replace(
        pairs.provenance, text_encoder=text_encoder, config=dataclasses.asdict(cfg)
    )
    writer = PairWriter(workdir, provenance, num_shards=len(pairs.shards))
    shards = pair_shards.my_shards(writer)
    total = sum(pairs.shards[shard].num_pairs for shard in shards)
    if shards:
        encode = _make_encode(encoder, mesh, sharding.axis_rules(cfg.mesh))
        batches = _batches(cfg, pairs, shards, vocabulary, length)
        with (
            StopSignal() as stop,
            BusyClock() as clock,
            Progress("encode_captions", total, "captions") as progress,
            contextlib.closing(in_background(batches, _BATCHES_AHEAD)) as batches,
        ):

            def done(count: int) -> None:
                progress.add(count)
                if stop.received:
                    stop.exit("finished shards are kept; the same command goes on")

            results = _encoded(on_device(encode, batches, clock), done)
            pair_shards.write_shards(writer, results)
        logging.info("encode_captions: the device was busy %.1f %% of the time", 100 * clock.share)
    return pair_shards.finish(workdir, writer)


def _text_of(cfg: EncodeCaptionsConfig, encoder: LoadedTextEncoder) -> tuple[Vocabulary, int]:
    """Vocabulary and T; UserError where nobody says them, or where they do not fit the encoder."""
    name, length = cfg.vocabulary or encoder.vocabulary, cfg.text_length or encoder.text_length
    for key, found in (("vocabulary", name), ("text_length", length)):
        if not found:
            raise UserError(f"--config.{key}: empty, and {cfg.text_encoder} does not say it either")
    vocabulary = load_vocabulary(name)
    if cfg.vocabulary:
        where = f"the text encoder in {cfg.text_encoder}"
        vocabulary.check_table(encoder.config.vocab_size, where)
    return vocabulary, length


@dataclasses.dataclass(frozen=True)
class _Part:
    """Pairs of one shard that are encoded together; `is_last` of its shard."""

    shard: int
    pairs: Sequence[Pair]
    lengths: Sequence[int]
    is_last: bool


def _batches(
    cfg: EncodeCaptionsConfig,
    pairs: Manifest | views.View,
    shards: Iterable[int],
    vocabulary: Vocabulary,
    length: int,
) -> Iterator[tuple[_Part, tuple[np.ndarray]]]:
    """(part, (text_tokens i32[B,T],)), of one shape: rows that fill it up are zeros.

    A part ends with its shard, so that a shard comes out the same to the last bit whichever others
    are made with it.
    """
    for shard in shards:
        rest = iter(views.read_shard(pairs, pathlib.Path(cfg.pairs), pairs.shards[shard].name))
        part = list(itertools.islice(rest, cfg.batch_size))
        is_last = False
        while not is_last:
            following = list(itertools.islice(rest, cfg.batch_size))
            is_last = not following
            text_BT = np.zeros((cfg.batch_size, length), np.int32)
            text_BT[: len(part)] = text_ids([pair.caption for pair in part], vocabulary, length)
            lengths = np.count_nonzero(text_BT, axis=1).tolist()
            yield _Part(shard, part, lengths, is_last), (text_BT,)
            part = following


def _encoded(
    results: Iterable[tuple[_Part, np.ndarray]], done: Callable[[int], None]
) -> Iterator[pair_shards.Result]:
    """Every pair with its features, each shard ended by None."""
    for part, features_BTE in results:
        for pair, length, features_TE in zip(part.pairs, part.lengths, features_BTE, strict=False):
            yield part.shard, dataclasses.replace(pair, text_features=features_TE[:length])
        done(len(part.pairs))
        if part.is_last:
            yield part.shard, None


def _make_encode(
    encoder: LoadedTextEncoder, mesh: Mesh, rules: sharding.AxisRules
) -> Callable[[np.ndarray], jax.Array]:
    """text_tokens i32[B,T] -> bf16[B,T,E]."""
    model = TextEncoder(encoder.config)

    def encode(params, text_BT: jax.Array) -> jax.Array:
        with sharding.constraints(mesh, rules):
            features = model.apply({"params": params}, text_BT, text_BT != 0, deterministic=True)
        return features.astype(jnp.bfloat16)

    compiled, where = jax.jit(encode), sharding.batch_sharding(mesh)
    return lambda text_BT: compiled(encoder.params, jax.device_put(text_BT, where))
