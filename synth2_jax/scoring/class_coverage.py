"""Which classes of a list a caption set names, and how evenly.

Legend: C classes, N captions.
"""

import collections
from collections.abc import Sequence

import numpy as np

from synth2_jax.scoring import words
from synth2_jax.scoring.n_grams import TokenizedCaptions


def class_coverage(captions: TokenizedCaptions, spellings: Sequence[Sequence[str]]) -> np.ndarray:
    """Counts the captions that name each class, once each however often they do: i64[C].

    `spellings` holds for each class everything that names it, such as ("wolf", "wolves"): its words
    in a row. "carpet" does not name "car"; "hot dog" names "dog".

    Raises:
      ValueError: no classes, or one that has no spelling with a word in it.
    """
    if not spellings:
        raise ValueError("no classes to look for")
    classes_of = _classes_by_name(captions, spellings)
    pairs = [np.zeros(0, np.int64)]
    for order in sorted({len(name) for name in classes_of}):
        found = captions.n_grams(order)
        places_by_n_gram = np.argsort(found.ids_G, kind="stable")
        end_U = np.cumsum(found.counts_U)
        for u, n_gram in enumerate(found.word_ids_Un.tolist()):
            for index in classes_of.get(tuple(n_gram), ()):
                places = places_by_n_gram[end_U[u] - found.counts_U[u] : end_U[u]]
                pairs.append(index * captions.num_captions + found.captions_G[places])
    named = np.unique(np.concatenate(pairs)) // max(1, captions.num_captions)
    return np.bincount(named, minlength=len(spellings))


def _classes_by_name(
    captions: TokenizedCaptions, spellings: Sequence[Sequence[str]]
) -> dict[tuple[int, ...], set[int]]:
    """{ids of a spelling's words: classes it names}, of spellings whose words all occur."""
    id_of = {word: i for i, word in enumerate(captions.vocabulary)}
    classes_of = collections.defaultdict(set)
    for index, spelled in enumerate(spellings):
        names = [tokens for name in spelled if (tokens := words.tokenize(name))]
        if not names:
            raise ValueError(f"class {index + 1}: found {list(spelled)}, expected a word")
        for name in names:
            if all(word in id_of for word in name):
                classes_of[tuple(id_of[word] for word in name)].add(index)
    return classes_of
