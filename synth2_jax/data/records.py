"""Image-caption pairs on disk: TFRecord shards of TF Examples, and one manifest.

A folder with a manifest is complete; `pair_writer` writes it, on a file system with atomic renames.
An image with several captions is several pairs of distinct keys, such as "real-000012-0".

Legend: N image tokens of a picture, K codebook size, t text tokens of a caption, E text width.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging

from synth2_jax.data.tfrecord_lengths import record_lengths
from synth2_jax.errors import UserError
from synth2_jax.files import read_json
from synth2_jax.fingerprint import older_forms
from synth2_jax.side_files import parse_as

FORMAT = "synth2_jax pairs"
VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress"
SOURCES = ("real", "synthetic")
MAX_CODEBOOK_SIZE = 65536  # image tokens are uint16 on disk
IMAGE_TOKENS, IMAGE = "image_tokens", "image"  # a pair has one of them
FIELDS = ("caption", "source", "key")  # in every pair
PROMPT = "prompt"  # only in pairs with their own prompt
TEXT_FEATURES = "text_features"  # only in pairs with encoded captions
ENCODED_BY = ("fingerprint", "width", "text_length", "vocabulary")  # of Provenance.text_encoder
_LATER_FIELDS = ("image_size", "text_encoder")  # missing in old manifests
MADE_BY = "tokenize or synthesize"
_READ_BYTES = 1 << 20
_READ_RECORDS = 512


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture as tokens int[N], its caption, "real" or "synthetic", and a unique key.

    Attributes:
      image_tokens: None in a folder of images.
      prompt: such as a question, replaces the prompt that the task puts before every caption.
      image: a PNG file, in a folder of images.
      caption_cut: the generator read only the beginning of the caption; counted, not written.
      text_features: bf16[t, E], the text encoder's output for the caption and its end of sentence.
    """

    key: str
    image_tokens: np.ndarray | None
    caption: str
    source: str
    prompt: str = ""
    image: bytes = b""
    caption_cut: bool = False
    text_features: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Says who made the pairs of a folder and how; all of it is kept in the manifest.

    Attributes:
      tokenizer: fingerprint of the tokenizer whose codebook the image tokens index.
      num_image_tokens: N.
      codebook_size: K, at most 65536.
      image_size: side in pixels of the images, if images are stored in place of tokens; `tokenizer`
        is "" then, and N and K are 0.
      split: the name under which a task offers these pairs.
      generator: {"checkpoint", "fingerprint"}; None for real pictures.
      sampler: settings of the sampler; None for real pictures.
      captions: how they were written, {"source": "language_model", "prompt": ..., "seed": ...}.
      text_encoder: of the stored features, {"fingerprint", "width": E, "text_length",
        "vocabulary": sha256 of its file, "pairs": fingerprint of the pairs that were encoded}.
      config: resolved config of the run, for the record only: a resumed run may change it.
    """

    tokenizer: str
    num_image_tokens: int
    codebook_size: int
    image_size: int = 0
    split: str = "train"
    generator: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    captions: Mapping[str, Any] | None = None
    text_encoder: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.image_size and not 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise UserError(
                f"pairs: found a codebook of {self.codebook_size}, expected 1 to "
                f"{MAX_CODEBOOK_SIZE}: image tokens are stored as uint16"
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a folder of pairs.

    `work` is a hash of all that determines it: provenance, its index and the number of shards.
    """

    name: str
    num_pairs: int
    num_bytes: int
    sha256: str
    work: str = ""

    def __post_init__(self):
        if self.name != os.path.basename(self.name) or self.name in ("", ".", ".."):
            raise ValueError(f"found a shard of the name {self.name!r:.80}, expected a file's")
        if min(self.num_pairs, self.num_bytes) < 0:
            raise ValueError(f"found {self.num_pairs} pairs in {self.num_bytes} bytes")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a folder of pairs.

    `counts` are {source: number of pairs}, `skipped` {reason: number of pairs}, `skipped_examples`
    some of them, [{"key", "reason", "detail"}]. `captions_cut` captions were too long for the
    generator.
    """

    provenance: Provenance
    counts: Mapping[str, int]
    shards: tuple[Shard, ...]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skipped_examples: tuple[Mapping[str, str], ...] = ()
    captions_cut: int = 0

    def __post_init__(self):
        if sum(self.counts.values()) != self.num_pairs:
            raise ValueError(
                f"found {self.num_pairs} pairs in the shards, expected {dict(self.counts)}"
            )

    @property
    def num_pairs(self) -> int:
        return sum(shard.num_pairs for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """A hash of the contents: equal if and only if all shards are equal byte by byte."""
        fields = ("name", "num_pairs", "num_bytes", "sha256")
        digests = json.dumps([{f: getattr(shard, f) for f in fields} for shard in self.shards])
        return hashlib.sha256(digests.encode()).hexdigest()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Reads a folder's manifest and checks that each shard is there with its size.

    Raises:
      UserError: no manifest, a malformed one, a shard missing or of another size.
    """
    folder = pathlib.Path(folder)
    manifest = parse_manifest(folder)
    for shard in manifest.shards:
        if not is_there(folder, shard):
            path = folder / shard.name
            found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
            raise UserError(
                f"pairs {folder}: shard {shard.name}: {found}, expected {shard.num_bytes} bytes; "
                "run the stage that made it again"
            )
    return manifest


def is_there(folder: pathlib.Path, shard: Shard) -> bool:
    """Returns whether the shard's file exists and has its size."""
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.num_bytes


def parse_manifest(folder: pathlib.Path) -> Manifest:
    """Reads a folder's manifest without looking at its shards."""
    path = folder / MANIFEST
    if not path.is_file():
        why = "writing it has not finished" if (folder / PROGRESS).exists() else "no pairs here"
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        there = f". Folders in it that have one: {', '.join(inside[:8])}" if inside else ""
        raise UserError(f"pairs {folder}: no {MANIFEST} ({why}){there}")
    values = read_json(path, MADE_BY)
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if values.get(key) != expected:
            raise UserError(
                f"{path}: not a manifest of pairs (found {key} {values.get(key)!r:.40}, expected "
                f"{expected!r})"
            )
    fields = {field.name for field in dataclasses.fields(Provenance)}
    for name in sorted(fields - values.keys() - set(_LATER_FIELDS)):
        raise UserError(f"{path}: {name} is missing; expected what `synth2 {MADE_BY}` leaves there")
    rest = {field.name for field in dataclasses.fields(Manifest)} & values.keys()
    found = {name: values[name] for name in rest}
    found["provenance"] = {name: values[name] for name in fields & values.keys()}
    manifest = parse_as(Manifest, found, path, MADE_BY)
    if values.get("num_pairs") != manifest.num_pairs:
        raise UserError(
            f"{path}: num_pairs is {values.get('num_pairs')!r:.40}, expected the "
            f"{manifest.num_pairs} of the shards; the file was changed since `synth2` wrote it"
        )
    return manifest


def check_tokenizer(
    manifest: Manifest, fingerprint: str, folder: str | os.PathLike[str] = ""
) -> None:
    """Raises UserError, naming both, unless `fingerprint` is the tokenizer of the pairs."""
    found = manifest.provenance.tokenizer
    if manifest.provenance.image_size:
        raise UserError(
            f"pairs {folder}: found images, expected image tokens of tokenizer {fingerprint}; run "
            "`synth2 tokenize` without --on-the-fly"
        )
    without_later_settings, digest = older_forms(fingerprint)
    if found == fingerprint:
        return
    if found == without_later_settings:
        logging.warning(
            "pairs %s: an older synth2 stored tokenizer %s; assuming it was %s",
            *(folder, found, fingerprint),
        )
        return
    hint = ""
    if found == digest:  # old versions stored no settings
        hint = (
            ". The parameters are the same. If an older synth2 made these pairs with these "
            f"settings too, write {fingerprint} as tokenizer in {MANIFEST}"
        )
    raise UserError(
        f"pairs {folder}: found image tokens of tokenizer {found}, expected tokenizer "
        f"{fingerprint}{hint}"
    )


def check_text_features(
    provenance: Provenance,
    text_encoder: Mapping[str, Any],
    folder: str | os.PathLike[str],
    as_in: str = "",
) -> None:
    """Raises UserError, naming both, unless this encoder encoded the captions of `folder`.

    `text_encoder` is as `Provenance.text_encoder`; the pairs of `as_in` have it.
    """
    as_in = as_in and f", as in {as_in}"
    found = provenance.text_encoder
    if found is None:
        raise UserError(
            f"pairs {folder}: found captions without features, expected those of text encoder "
            f"{text_encoder['fingerprint']}{as_in}; run `synth2 encode_captions`"
        )
    for key in ENCODED_BY:
        if found[key] != text_encoder[key]:
            raise UserError(
                f"pairs {folder}: found features by a text encoder of {key} {found[key]}, expected "
                f"{text_encoder[key]}{as_in}"
            )


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Reads every byte; the UserError names the first shard that differs from the manifest."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        found = sha256_of(pathlib.Path(folder) / shard.name)
        if found != shard.sha256:
            raise UserError(
                f"pairs {folder}: shard {shard.name} has sha256 {found}, expected {shard.sha256}"
            )
    return manifest


def read_pairs(folder: str | os.PathLike[str], *, text_features: bool = False) -> Iterator[Pair]:
    """Reads all pairs of a folder in the order of writing, `image_tokens` as i32[N].

    `text_features` also reads the features of the captions, which are much larger than the rest.
    """
    manifest = read_manifest(folder)
    encoder = manifest.provenance.text_encoder if text_features else None
    for shard in manifest.shards:
        yield from read_shard(pathlib.Path(folder) / shard.name, encoder["width"] if encoder else 0)


def read_shard(path: pathlib.Path, text_width: int = 0) -> Iterator[Pair]:
    """Reads the pairs of one file in order; with `text_width`, E, also their `text_features`.

    Raises:
      UserError: the file is damaged; names the offset if it is known.
    """
    from google.protobuf.message import DecodeError

    from synth2_jax.data.tensorflow_cpu import one_line, tf

    damaged = (tf.errors.DataLossError, DecodeError, ValueError, KeyError)
    try:
        for _ in record_lengths(path):
            pass  # raises ValueError on a record that is longer than the file
        blocks = tf.data.TFRecordDataset(str(path), buffer_size=_READ_BYTES).batch(_READ_RECORDS)
        for block in blocks:
            for record in block.numpy():
                yield _pair(tf.train.Example.FromString(record), text_width)
    except damaged as error:
        raise UserError(
            f"pairs: shard {path} is damaged, {one_line(error)}; write it again"
        ) from error


def _pair(example: Any, text_width: int) -> Pair:
    values = {
        name: b"".join(feature.bytes_list.value)
        for name, feature in example.features.feature.items()
    }
    tokens, features = values.get(IMAGE_TOKENS), None
    if text_width:
        bits = np.frombuffer(values[TEXT_FEATURES], "<u2").astype(np.uint16)
        features = bits.view(ml_dtypes.bfloat16).reshape(-1, text_width)
    return Pair(
        values["key"].decode(),
        None if tokens is None else np.frombuffer(tokens, "<u2").astype(np.int32),
        values["caption"].decode(),
        values["source"].decode(),
        values.get(PROMPT, b"").decode(),
        values.get(IMAGE, b""),
        text_features=features,
    )


def to_json(value: Any) -> str:
    """JSON with sorted keys: equal values are equal texts."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def manifest_json(manifest: Manifest) -> str:
    """Returns the contents of MANIFEST."""
    values = dataclasses.asdict(manifest) | provenance_values(manifest.provenance)
    del values["provenance"]
    fixed = {"format": FORMAT, "version": VERSION, "num_pairs": manifest.num_pairs}
    return to_json(fixed | values)


def provenance_values(provenance: Provenance) -> dict[str, Any]:
    """Returns JSON values, without `text_encoder` if the captions are not encoded."""
    values = dataclasses.asdict(provenance)
    return {k: v for k, v in values.items() if k != "text_encoder" or v is not None}


def sha256_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
