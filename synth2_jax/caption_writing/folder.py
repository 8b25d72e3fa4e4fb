"""The folder of captions that `synth2 captions` writes."""

import pathlib
from typing import Any

from synth2_jax.errors import UserError
from synth2_jax.files import JsonLinesFile, read_json

CAPTIONS, MANIFEST, ANSWERS = "captions.jsonl", "manifest.json", "answers.jsonl"


def read_manifest(folder: pathlib.Path, captions: JsonLinesFile) -> dict[str, Any]:
    """Reads the manifest; raises UserError if it belongs to other captions."""
    manifest = read_json(folder / MANIFEST, "captions")
    for key, found in (("num_captions", captions.num_rows), ("sha256", captions.sha256)):
        expected = manifest.get(key, found)  # third-party manifests may lack it
        if expected != found:
            raise UserError(
                f"{captions.path}: found {key} {found}, expected {expected!r:.80} as in "
                f"{MANIFEST}. Run `synth2 captions` again, or delete {key} from {MANIFEST}."
            )
    return manifest
