"""Caption settings of a loaded VLM."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.vocabulary import Vocabulary


def caption_decode(
    section: Mapping[str, Any] | None, data: DataConfig, vocabulary: Vocabulary, where: str
) -> TextDecodeConfig:
    """Returns how a VLM writes captions: by default at most as long as those it was trained on.

    `section` may leave anything out, `data` is what the VLM was trained on; `where` is as in
    `config.build`, which raises UserError for a wrong section.
    """
    decode = config_lib.build(TextDecodeConfig, section, where)
    if section and "max_length" in section:
        return decode
    longest = data.text_length - len(vocabulary.encode(data.prompt))
    return dataclasses.replace(decode, max_length=max(1, longest))
