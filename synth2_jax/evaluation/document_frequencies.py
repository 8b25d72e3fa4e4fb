"""Document frequencies for CIDEr from a corpus of captions: a folder of pairs, or a COCO file."""

import collections
import json
import os
import pathlib

from synth2_jax.data import records
from synth2_jax.data.references import image_key
from synth2_jax.errors import UserError
from synth2_jax.scoring.captions import DocumentFrequency, document_frequency

_KEY = "--config.document_frequencies"


def read_document_frequencies(path: str | os.PathLike[str]) -> DocumentFrequency:
    """Counts the images whose captions have an n-gram.

    Args:
      path: a folder of pairs, of any tokenizer; or a JSON file of captions as COCO has them,
        {"annotations": [{"image_id", "caption"}]}.

    Raises:
      UserError: neither of them, or no captions in it.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = ((image_key(pair.key), pair.caption) for pair in records.read_pairs(path))
    else:
        try:
            rows = json.loads(path.read_bytes())["annotations"]
            found = [(str(row["image_id"]), row["caption"]) for row in rows]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"{_KEY}: cannot read {path} ({type(error).__name__}: {error}), expected a folder "
                "of pairs or a JSON file of captions as COCO has them"
            ) from error
    captions = collections.defaultdict(list)
    for image, caption in found:
        if not isinstance(caption, str):
            raise UserError(
                f"{_KEY}: {path}: image {image} has the caption {caption!r:.60}, expected a text"
            )
        captions[image].append(caption)
    if not captions:
        raise UserError(f"{_KEY}: {path} has no captions, expected some")
    return document_frequency(list(captions.values()), path.name)
