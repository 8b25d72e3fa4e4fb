"""`synth2 encode_captions`: stores with each pair what a text encoder makes of its caption.

A generator with `stored_text_features` is trained on them without the encoder in its step, in its
memory or in its checkpoints; a T5-XXL there costs more than the generator. Models that read no
features are better off with the pairs as they were, which are a small part of the bytes.

A shard is the unit of work, of any number of processes: after a kill, the same command makes only
the shards that are missing.

Legend: T text tokens.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import records, views
from synth2_jax.data.pair_shards import Result, make_pairs
from synth2_jax.data.pair_writer import PairWriter
from synth2_jax.data.records import Manifest
from synth2_jax.errors import UserError, naming
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.text_encoders import LoadedTextEncoder, load_text_encoder
from synth2_jax.models.text_encoder import TextEncoderConfig
from synth2_jax.synthesis.caption_encoder import CaptionEncoder
from synth2_jax.text.vocabulary import Vocabulary, load_vocabulary


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
    mesh, rules = sharding.make_mesh(cfg.mesh, jax.local_devices()), sharding.axis_rules(cfg.mesh)
    sharding.check_rows(cfg.batch_size, mesh, "--config.batch_size")
    with naming("--config.text_encoder", cfg.text_encoder):
        encoder = load_text_encoder(cfg.text_encoder, cfg.model, mesh=mesh, rules=rules)
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
    encoding = CaptionEncoder(encoder, vocabulary, length, cfg.batch_size, mesh, rules)

    def results(shards: Sequence[int], *watched: Any) -> Iterator[Result]:
        read = functools.partial(views.read_shard, pairs, pathlib.Path(cfg.pairs))
        return encoding.pairs(((n, read(pairs.shards[n].name)) for n in shards), *watched)

    return make_pairs(
        writer,
        "encode_captions",
        lambda shards: (sum(pairs.shards[shard].num_pairs for shard in shards), "captions"),
        results,
    )


def _text_of(cfg: EncodeCaptionsConfig, encoder: LoadedTextEncoder) -> tuple[Vocabulary, int]:
    """Vocabulary and T; UserError if they are not given or do not fit the encoder."""
    name, length = cfg.vocabulary or encoder.vocabulary, cfg.text_length or encoder.text_length
    for key, found in (("vocabulary", name), ("text_length", length)):
        if not found:
            raise UserError(f"--config.{key}: empty, and {cfg.text_encoder} does not say it either")
    vocabulary = load_vocabulary(name)
    if cfg.vocabulary:
        where = f"the text encoder in {cfg.text_encoder}"
        vocabulary.check_table(encoder.config.vocab_size, where)
    return vocabulary, length
