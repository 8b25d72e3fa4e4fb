"""Scores of pairs on the disk: one file a shard, in a folder for each score and its settings."""

import hashlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from synth2_jax.data.records import Shard
from synth2_jax.errors import UserError
from synth2_jax.files import write_bytes, write_json, write_text


class ScoreFiles:
    """The files of one score, one a shard; their folder's name is the hash of its settings."""

    def __init__(
        self, place: pathlib.Path, name: str, settings: Mapping[str, Any], dtype: np.dtype
    ):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = place / f"{name}-{digest}"
        self._settings, self._dtype = settings, dtype

    def _path(self, shard: Shard, suffix: str = ".npy") -> pathlib.Path:
        return self._folder / f"{shard.name}{suffix}"

    def is_missing(self, shard: Shard) -> bool:
        return not self._path(shard).exists()

    def write(self, shard: Shard, scores: np.ndarray) -> None:
        """Appears whole, or not at all."""
        if not (self._folder / "settings.json").exists():
            write_json(self._folder / "settings.json", self._settings)
        contents = _npy(scores)
        # First: a score is there when its file is, and is trusted when it was written before these.
        digest = hashlib.sha256(contents).hexdigest()
        write_text(self._path(shard, ".sha256"), f"{digest}\n")
        write_bytes(self._path(shard), contents)

    def read(self, shard: Shard) -> np.ndarray:
        """The scores of a shard; UserError when they are not as they were written."""
        path, checksum = self._path(shard), self._path(shard, ".sha256")
        contents = path.read_bytes()
        empty = _npy(np.zeros(shard.num_pairs, self._dtype))
        header = len(empty) - shard.num_pairs * np.dtype(self._dtype).itemsize
        found = hashlib.sha256(contents).hexdigest()
        expected = checksum.read_bytes().decode("latin-1").strip() if checksum.exists() else found
        is_whole = len(contents) == len(empty) and contents[:header] == empty[:header]
        if found != expected or not is_whole:
            raise UserError(
                f"{path}: damaged (sha256 {found}, expected {expected:.64}; {len(contents)} bytes, "
                f"expected {len(empty)}). Delete it, and the same command scores the shard again"
            )
        return np.frombuffer(contents, self._dtype, offset=header)


def _npy(array: np.ndarray) -> bytes:
    contents = io.BytesIO()
    np.save(contents, array)
    return contents.getvalue()
