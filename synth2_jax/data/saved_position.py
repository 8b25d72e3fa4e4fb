"""A saved position of a training iterator: its file format, and which data it belongs to.

It is a zip of TensorFlow's checkpoint of the iterator (the places in the shards and the examples
that wait in shuffle buffers) and a JSON header with the identity of the data.
"""

import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.errors import ChangedError, DamagedError, UserError
from synth2_jax.files import temporary_folder

_HEADER = "position.json"
_VERSION = 1
Identity = Mapping[str, Any]  # JSON values


def pack(iterator: Iterator, identity: Identity, header: Mapping[str, Any]) -> bytes:
    """The bytes of the position of a tf.data iterator; `header` holds JSON values."""
    header = {"version": _VERSION, "identity": identity, **header}
    packed = io.BytesIO()
    with (
        temporary_folder() as folder,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        archive.writestr(_HEADER, json.dumps(header))
        tf.train.Checkpoint(iterator=iterator).write(f"{folder}/iterator")
        for path in sorted(pathlib.Path(folder).iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


def read_header(state: bytes, identity: Identity) -> dict[str, Any]:
    """Reads the header that `pack` wrote, with its identity; fills in what old versions lack.

    Raises:
      ChangedError: the position is of other data than `identity`, but for `identity["reads"]`;
        names what differs.
      UserError: a position of a later version.
      DamagedError: not a position.
      Exception: of any other type; the position is damaged.
    """
    try:
        header = json.loads(zipfile.ZipFile(io.BytesIO(state)).read(_HEADER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DamagedError("data position: these bytes are not one of this pipeline") from error
    if header["version"] != _VERSION:
        raise UserError(f"data position: version {header['version']}, expected {_VERSION}")
    saved, now = header["identity"], json.loads(json.dumps(identity))
    _fill_in(saved, now)
    for key in sorted({*now, *saved} - {"reads"}):
        if now.get(key) != saved.get(key):
            raise ChangedError(
                f"--config.data: the checkpoint was saved with {key} {saved.get(key)!r}, this run "
                f"has {now.get(key)!r}"
            )
    return {"restarted_at": 0, "skipped": 0, "source_tokens": {}, **header}


def restore(state: bytes, iterator: Iterator) -> None:
    """Moves a tf.data iterator to a position.

    Raises:
      ChangedError: the position is of a pipeline with other steps: a module of the user's was
        edited.
      Exception: of any other type; the position is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(state)) as archive, temporary_folder() as folder:
        archive.extractall(folder)
        try:
            restored = tf.train.Checkpoint(iterator=iterator).read(f"{folder}/iterator")
        except tf.errors.NotFoundError as error:  # the bytes are as they were: zip compares them
            raise ChangedError(
                "--config.data: the steps that make the examples are not those that the checkpoint "
                "was saved with, as when a module of yours or the version of this package changed"
            ) from error
        restored.assert_consumed()


def _fill_in(saved: dict[str, Any], now: Identity) -> None:
    """Adds what older versions left out: `deal`, `schedule`, `vocabulary`, `images_per_text`,
    and `reads`.

    They had `processes` in place of `reads`: the number of processes decided who reads what.
    """
    index, count = saved.pop("processes", (0, 1))
    deal = saved.setdefault("deal", "examples" if count == 1 else "shards")
    saved.setdefault("schedule", {})
    saved.setdefault("images_per_text", 1)
    if "vocabulary" in now:
        saved.setdefault("vocabulary", now["vocabulary"])
    rows = saved["batch_size"] // count
    by_rows = [[index * rows, (index + 1) * rows]]
    saved.setdefault("reads", by_rows if deal == "examples" else [index, count])
