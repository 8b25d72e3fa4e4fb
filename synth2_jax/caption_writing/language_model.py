"""Writes captions by a language model in this process.

Legend: B batch, P prompt tokens, T generated tokens.
"""

import collections
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from synth2_jax.caption_writing.chat_text import caption_in
from synth2_jax.caption_writing.drafts import Draft, Request
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.sampling.captions import make_write
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.vocabulary import EOS_ID, Vocabulary


class LanguageModelSource:
    """Captions from a language model in this process, prompted class by class.

    Synth², section 3.1.

    Args:
      config, params: the model. Prompts of a Gemma are in its chat format (`prompts.in_turns`).
      vocabulary: its vocabulary.
      decode: how to sample: with nucleus, as otherwise all captions of a class are the same.
      seed: draw i of a class depends only on (seed, class, i), not on its batch.
      batch_size: captions that are written at once.

    Raises UserError if the vocabulary is not the model's.
    """

    def __init__(
        self,
        config: LanguageModelConfig | GemmaConfig,
        params: Any,
        vocabulary: Vocabulary,
        decode: TextDecodeConfig,
        *,
        seed: int,
        batch_size: int,
    ):
        config.check_vocabulary(vocabulary, "language_model")
        self._vocabulary = vocabulary
        self._batch_size = batch_size
        self._params = jax.device_put(params)
        model = config.make()
        # One program for each end token.
        self._write = functools.cache(lambda end_id: jax.jit(make_write(model, decode, end_id)))
        self._key = jax.random.key(seed)
        self._row_keys = jax.jit(
            jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(self._key, row[0]), row[1]))
        )

    def write(self, requests: Sequence[Request]) -> Iterator[Draft]:
        """Yields drafts in batches of prompts with the same length and the same end token."""
        groups = collections.defaultdict(list)
        for request in requests:
            prompt = self._vocabulary.encode(request.prompt)
            groups[len(prompt), self._vocabulary.end_id(prompt)].append((request, prompt))
        for (_, end_id), group in groups.items():
            for start in range(0, len(group), self._batch_size):
                rows = group[start : start + self._batch_size]
                # One shape, one compilation.
                filled, prompts = zip(
                    *rows, *[rows[-1]] * (self._batch_size - len(rows)), strict=True
                )
                keys = np.array([(row.class_index, row.draw) for row in filled], np.uint32)
                prompts_BP = np.array(prompts, np.int32)
                ids_BT, *_ = self._write(end_id)(self._params, prompts_BP, self._row_keys(keys))
                for (request, _), ids in zip(rows, np.asarray(ids_BT), strict=False):
                    text = caption_in(self._vocabulary.decode(ids.tolist()))
                    finished = bool(np.isin(ids, (EOS_ID, end_id)).any())
                    yield Draft(request.class_name, request.draw, text, finished)
