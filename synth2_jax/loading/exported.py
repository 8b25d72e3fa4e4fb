"""Folders that `synth2 export` writes, opened without reading a parameter.

FOLDER/ has
  model.safetensors   the parameters by path, "vlm.resampler.latents"; of a large model several
                      files with their index, as Hugging Face's tools write and read them
  config.json         what the model is: see `describe`
  vocabulary.model    the SentencePiece model, of models that read or write text
and for people README.md, training.json and load_example.py, which nothing here reads.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from synth2_jax.errors import UserError
from synth2_jax.files import read_json
from synth2_jax.fingerprint import older_forms
from synth2_jax.interop.assemble import assemble, one
from synth2_jax.interop.lazy_array import LazyArray
from synth2_jax.interop.recognise import is_run
from synth2_jax.interop.tensor_files import open_safetensors

FORMAT = "synth2_jax model"
VERSION = 1
CONFIG = "config.json"
VOCABULARY = "vocabulary.model"
_FIELDS = {
    "model_name": str,
    "model": dict,
    "data": dict,
    "run": str,
    "step": int,
    "fingerprints": dict,
    "built_on": dict,
    "sha256": dict,
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported model: its folder, the contents of its config.json, its tensors by name."""

    folder: pathlib.Path
    description: Mapping[str, Any]
    tensors: Mapping[str, LazyArray]

    def config(self) -> dict[str, Any]:
        """Returns what using the model needs as in a run's config, with its own vocabulary."""
        data = dict(self.description["data"])
        if VOCABULARY in self.description["sha256"]:
            data["vocabulary"] = str(self.folder / VOCABULARY)
        return {**self.description, "data": data}

    def params(self, expected: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Returns the parameter tree, of LazyArrays; `expected` are shapes and dtypes by path.

        Raises:
          UserError: tensors that are missing, unknown or misshapen, all in one line.
        """
        recipes = {path: one(tensor_name(path)) for path in expected}
        return assemble(recipes, self.tensors, expected, str(self.folder))

    def check_fingerprints(self, found: Mapping[str, str]) -> None:
        """Raises UserError unless parameters and model are those that were exported.

        `found` are the fingerprints of the parameters that were read; what differs is named with
        its file. The settings that a fingerprint may have behind it are compared with the model.
        """
        told = {p: older_forms(str(f))[1] for p, f in self.description["fingerprints"].items()}
        for part in sorted(told.keys() | found.keys()):
            if told.get(part) != found.get(part):
                raise UserError(
                    f"{self.folder}: {part} has fingerprint {found.get(part)}, but {CONFIG} says "
                    f"{told.get(part)}; changed since the export: "
                    f"{', '.join(self.changed_files()) or CONFIG}"
                )
        expected = self.description.get("model_sha256", "")  # exports of old have none
        if expected and expected != _model_sha256(self.description):
            raise UserError(
                f"{self.folder / CONFIG}: model_name, model or data has changed since the export, "
                "by model_sha256. Undo the change, or export the model again"
            )

    def changed_files(self) -> list[str]:
        """Returns the files that differ from what was exported, by sha256; reads all of them."""
        return [name for name in self.description["sha256"] if self.has_changed(name)]

    def has_changed(self, name: str) -> bool:
        return sha256_of(self.folder / name) != self.description["sha256"][name]


def tensor_name(path: str) -> str:
    """Returns the name in the files of the parameter at a "/"-joined path."""
    return path.replace("/", ".")


def describe(
    *, model_name: str, model: Mapping[str, Any], data: Mapping[str, Any], **others: Any
) -> dict[str, Any]:
    """Returns the contents of config.json.

    Args:
      model_name: a key of training's OBJECTIVES.
      model: its resolved config.
      data: of the training's data what a user of the model needs, such as its prompt.
      others: the other _FIELDS: `run` (the name of its folder), `step`, `fingerprints` of the parts
        of the parameters as they are loaded, `built_on`, `sha256` of the files; and how to sample
        by default, the sections `sampler` and `guidance`, or `decode`.
    """
    held = {"model_name": model_name, "data": data, "model": model}
    fixed = {"format": FORMAT, "version": VERSION}
    return {**fixed, **held, "model_sha256": _model_sha256(held), **others}


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Returns whether a folder claims to be an export: it has a config.json and safetensors.

    So may a run's own folder have, where a part was exported into it.
    """
    folder = pathlib.Path(path)
    claims = (folder / CONFIG).is_file() and any(folder.glob("*.safetensors*"))
    return claims and not is_run(folder)


def open_exported(path: str | os.PathLike[str]) -> Exported:
    """Opens a folder for which `is_exported` holds.

    Raises:
      UserError: another program's folder, a config.json that was edited into something else, files
        that are missing or cut short, or another vocabulary than was exported.
    """
    folder = pathlib.Path(path).absolute()
    description = read_json(folder / CONFIG, "export")
    where = folder / CONFIG
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if description.get(key) != expected:
            raise UserError(
                f"{where}: found {key} {description.get(key)!r}, expected {expected!r} as "
                "`synth2 export` writes it"
            )
    for key, kind in _FIELDS.items():
        if not isinstance(description.get(key), kind):
            found = description.get(key, "nothing")
            raise UserError(f"{where}: {key}: found {found!r:.60}, expected a {kind.__name__}")
    names = description["sha256"]
    lost = [n for n in names if pathlib.PurePath(n).name != n or not (folder / n).is_file()]
    if lost:
        raise UserError(
            f"{where}: {len(lost)} of the {len(names)} files that it names are not in its folder: "
            f"{', '.join(lost)}"
        )
    exported = Exported(folder, description, open_safetensors(folder))
    if VOCABULARY in description["sha256"] and exported.has_changed(VOCABULARY):
        raise UserError(f"{folder / VOCABULARY}: has changed since the export, by its sha256")
    return exported


def _model_sha256(description: Mapping[str, Any]) -> str:
    """Hashes the settings that the parameters depend on and no fingerprint shows."""
    held = [description[name] for name in ("model_name", "model", "data")]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Returns that of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
