"""Who writes captions. Each source takes class names and gives captions with their provenance.

Legend: B batch, P prompt tokens, T generated tokens.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from synth2_jax.captioners.prompts import class_prompt
from synth2_jax.models.language_model import LanguageModel, LanguageModelConfig
from synth2_jax.sampling.captions import make_write
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.vocabulary import EOS_ID, Vocabulary


@dataclasses.dataclass(frozen=True)
class Draft:
    """One caption as it was written: for which class, from which draw, and whether it ended."""

    class_name: str
    draw: int
    caption: str
    finished: bool


class LanguageModelSource:
    """Captions from a language model in this process, prompted class by class.

    Synth², section 3.1.

    Args:
      config, params: the model.
      vocabulary: its vocabulary.
      decode: how to sample; nucleus, or every caption of a class is the same.
      seed: draw i of a class depends on (seed, class, i) alone, whatever the batches are.
      batch_size: captions at a time.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        params: Any,
        vocabulary: Vocabulary,
        decode: TextDecodeConfig,
        *,
        seed: int,
        batch_size: int,
    ):
        self._vocabulary = vocabulary
        self._batch_size = batch_size
        self._params = jax.device_put(params)
        self._write = jax.jit(make_write(LanguageModel(config), decode))
        self._key = jax.random.key(seed)
        self._row_keys = jax.jit(
            jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(self._key, row[0]), row[1]))
        )

    def write(self, requests: Sequence[tuple[int, str, int]]) -> Iterator[Draft]:
        """Drafts for (class index, class name, draw) requests, batched by length of prompt."""
        by_length = collections.defaultdict(list)
        for request in requests:
            prompt = self._vocabulary.encode(class_prompt(request[1]))
            by_length[len(prompt)].append((request, prompt))
        for group in by_length.values():
            for start in range(0, len(group), self._batch_size):
                yield from self._write_batch(group[start : start + self._batch_size])

    def _write_batch(self, rows: list) -> Iterator[Draft]:
        filled = rows + [rows[-1]] * (self._batch_size - len(rows))  # one shape, one compilation
        keys_B = self._row_keys(np.array([(r[0], r[2]) for r, _ in filled], np.uint32))
        prompts_BP = np.array([prompt for _, prompt in filled], np.int32)
        ids_BT = np.asarray(self._write(self._params, prompts_BP, keys_B)[0])
        for (request, _), ids in zip(rows, ids_BT[: len(rows)], strict=True):
            text = self._vocabulary.decode(ids.tolist())
            yield Draft(request[1], request[2], text, bool((ids == EOS_ID).any()))


CaptionFilter = Callable[[Draft], str | None]


def usual_filter(min_words: int = 3) -> CaptionFilter:
    """Returns a function that names why a draft is dropped, or returns None for a good one.

    Dropped are captions that did not end, are too short, do not name their class, or were written
    before, word for word.
    """
    seen: set[str] = set()

    def reason(draft: Draft) -> str | None:
        if not draft.finished:
            return "unfinished"
        if len(draft.caption.split()) < min_words:
            return "too short"
        # From the start of a word, so that "red" is not found in "covered"; plurals name it too.
        if not re.search(rf"(?<!\w){re.escape(draft.class_name)}", draft.caption, re.IGNORECASE):
            return "class not named"
        if draft.caption in seen:
            return "duplicate"
        seen.add(draft.caption)
        return None

    return reason
