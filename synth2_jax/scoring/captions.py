"""CIDEr-D, CIDEr, BLEU and ROUGE-L of captions, numerically as pycocoevalcap computes them.

The metrics return that package's own scale: 1 is perfect for BLEU and ROUGE-L, 10 for CIDEr. Papers
print 100 times that ("CIDEr 33.4" is 0.334 here), and so does `score_captions`, whose numbers go
into results: 100 is perfect for BLEU and ROUGE-L, 1000 for CIDEr. What papers and pycocoevalcap
call CIDEr is CIDEr-D; so is the key "cider" of `score_captions`. The metric that was called so
first is `cider_plain`, which pycocoevalcap has no more.

A CIDEr depends on the tokenizer and on the document frequencies behind its tf-idf weights, so every
score has a `provenance` line that names both. Scores with different lines do not compare.

A caption is a string, which `words.tokenize` splits, or a sequence of tokens, taken as it is.
Legend: B images.
"""

import collections
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from synth2_jax.scoring import words

Caption = str | Sequence[str]
Tokens = tuple[str, ...]
NGram = tuple[str, ...]

MAX_ORDER = 4
PAPER_SCALE = 100.0

_GIVEN_TOKENS = "given tokens"


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric over a set of images.

    `per_image` is f64[B]. `corpus` is its mean, except for BLEU, which pools counts over images.
    """

    name: str
    corpus: float
    per_image: np.ndarray
    provenance: str


def as_printed(provenance: str, **scores: float) -> dict[str, float | str]:
    """The scores times 100, as papers print them, and "provenance", which says so."""
    scaled = {name: PAPER_SCALE * score for name, score in scores.items()}
    return scaled | {"provenance": f"{provenance}, scale=x{PAPER_SCALE:g}"}


def span(groups: Iterable[Sequence]) -> str:
    """The smallest and the largest size of the groups: "5", or "1-5"."""
    sizes = {len(group) for group in groups}
    return "-".join(map(str, sorted({min(sizes), max(sizes)})))


@dataclasses.dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram occurs, and where that was counted."""

    counts: Mapping[NGram, int]
    num_images: int
    source: str
    tokenizer: str

    def __str__(self) -> str:
        return f"{self.source} ({self.num_images} images)"


def document_frequency(
    references: Sequence[Sequence[Caption]], source: str = "these references"
) -> DocumentFrequency:
    """Counts, for every n-gram up to order 4, the images that have it in any reference."""
    tokenizer = _tokenizer_of(caption for group in references for caption in group)
    counts = collections.Counter()
    for group in references:
        tokens = [_tokens(reference) for reference in group]
        counts.update({g for t in tokens for n in range(1, MAX_ORDER + 1) for g in _ngrams(t, n)})
    return DocumentFrequency(counts, len(references), source, tokenizer)


class Pairs:
    """Tokenized candidates, one an image, and one or more references of each.

    Attributes:
      tokenizer: the name of what split the captions.
      provenance: the line about all this.

    Raises:
      ValueError: no images, counts that differ, an image without references, or strings and tokens
        mixed.
    """

    def __init__(self, candidates: Sequence[Caption], references: Sequence[Sequence[Caption]]):
        if len(candidates) != len(references):
            raise ValueError(
                f"{len(candidates)} candidates, but references of {len(references)} images"
            )
        if not candidates:
            raise ValueError("no captions to score")
        for image, group in enumerate(references):
            if isinstance(group, str) or not group:
                raise ValueError(f"references[{image}] is {group!r}, expected a list of captions")
        self.tokenizer = _tokenizer_of([*candidates, *(r for group in references for r in group)])
        self.candidates = [_tokens(c) for c in candidates]
        self.references = [[_tokens(r) for r in group] for group in references]
        self.provenance = (
            f"tokenizer={self.tokenizer}, images={len(candidates)}, "
            f"references per image={span(references)}"
        )

    def __iter__(self):
        return zip(self.candidates, self.references, strict=True)


def score_captions(
    candidates: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    *,
    frequency: DocumentFrequency | None = None,
) -> dict[str, float | str]:
    """{"cider" (CIDEr-D), "bleu1" to "bleu4", "rouge_l"} times 100, and "provenance".

    CIDEr takes the document frequencies of `references` by default.

    Raises:
      ValueError: as `Pairs`, or frequencies counted with another tokenizer.
    """
    pairs = Pairs(candidates, references)
    cider = cider_d(pairs, frequency)
    others = {score.name: score.corpus for score in (*bleu(pairs), rouge_l(pairs))}
    return as_printed(cider.provenance, cider=cider.corpus, **others)


def cider_d(pairs: Pairs, frequency: DocumentFrequency | None = None, sigma: float = 6.0) -> Score:
    """CIDEr-D (Vedantam et al., arXiv 1411.5726, section 6): 0 to 10.

    Ten times the mean over orders 1 to 4 and over references of

        exp(-(|c| - |r|)^2 / (2 sigma^2)) * sum_g min(c_g, r_g) r_g / (||c|| ||r||)

    where c_g and r_g are tf-idf weights of the n-gram g. Scored against its own references a single
    image gets 0 whatever its caption, since log(1 / 1) weighs every n-gram; that warns.

    Raises:
      ValueError: frequencies counted with another tokenizer.
    """

    def penalty(difference: int) -> float:
        return math.exp(-(difference**2) / (2 * sigma**2))

    return _cider("cider_d", pairs, frequency, lambda c, r: min(c, r) * r, penalty)


def cider_plain(pairs: Pairs, frequency: DocumentFrequency | None = None) -> Score:
    """CIDEr as first defined (arXiv 1411.5726, section 3), without stemming: 0 to 10.

    Ten times the mean cosine of tf-idf vectors over orders 1 to 4 and over references: CIDEr-D
    without its clipping and its penalty for another length. Raises as `cider_d`.
    """
    return _cider("cider_plain", pairs, frequency, lambda c, r: c * r, lambda difference: 1.0)


def _cider(
    name: str,
    pairs: Pairs,
    frequency: DocumentFrequency | None,
    common: Callable[[float, float], float],
    penalty: Callable[[int], float],
) -> Score:
    """The mean of cosines; two weights have `common`, a difference in length costs `penalty`."""
    frequency = _frequency_for(pairs, frequency)
    per_image = np.zeros(len(pairs.candidates))
    for image, (candidate, group) in enumerate(pairs):
        candidate_vectors = _tfidf(candidate, frequency)
        total = 0.0
        for reference in group:
            vectors = zip(candidate_vectors, _tfidf(reference, frequency), strict=True)
            # A norm is 0 when the caption is shorter than the order or all idf are 0.
            cosines = sum(
                sum(common(c[g], r[g]) for g in c if g in r) / (c_norm * r_norm)
                for (c, c_norm), (r, r_norm) in vectors
                if c_norm > 0 and r_norm > 0
            )
            total += cosines * penalty(len(candidate) - len(reference))
        per_image[image] = 10.0 * total / (MAX_ORDER * len(group))
    provenance = f"{pairs.provenance}, df={frequency}"
    return Score(name, float(per_image.mean()), per_image, provenance)


def _frequency_for(pairs: Pairs, frequency: DocumentFrequency | None) -> DocumentFrequency:
    if frequency is None:
        own = document_frequency(pairs.references)
        frequency = dataclasses.replace(own, tokenizer=pairs.tokenizer)
    if frequency.tokenizer != pairs.tokenizer:
        raise ValueError(
            f"document frequencies were counted with tokenizer={frequency.tokenizer}, "
            f"the captions have tokenizer={pairs.tokenizer}"
        )
    if frequency.num_images < 2:
        warnings.warn(
            f"CIDEr is 0 for every caption: its document frequencies come from {frequency}; "
            "score more images together or pass the frequencies of a larger corpus",
            stacklevel=4,
        )
    return frequency


def _tfidf(tokens: Tokens, frequency: DocumentFrequency) -> list[tuple[dict[NGram, float], float]]:
    """For every order, the tf-idf weights of the n-grams and their Euclidean norm."""
    log_images = math.log(max(1, frequency.num_images))
    vectors = []
    for order in range(1, MAX_ORDER + 1):
        weights = {
            ngram: count * (log_images - math.log(max(1, frequency.counts.get(ngram, 0))))
            for ngram, count in collections.Counter(_ngrams(tokens, order)).items()
        }
        vectors.append((weights, math.sqrt(sum(w * w for w in weights.values()))))
    return vectors


def bleu(pairs: Pairs) -> tuple[Score, ...]:
    """BLEU-1 to BLEU-4 (Papineni et al., 2002): 0 to 1, counts pooled over images.

    The brevity penalty uses, for every image, the reference length closest to the candidate's, the
    shorter one on a tie. pycocoevalcap's constants against division by zero are kept: an order
    without a match gives a small number rather than 0.
    """
    # Columns: candidate length, reference length, then per order the n-grams that match and the
    # n-grams proposed.
    counts = np.zeros((len(pairs.candidates), 2 + 2 * MAX_ORDER))
    for image, (candidate, group) in enumerate(pairs):
        length = len(candidate)
        closest = min((abs(len(reference) - length), len(reference)) for reference in group)[1]
        counts[image, :2] = length, closest
        for order in range(1, MAX_ORDER + 1):
            most = collections.Counter()
            for reference in group:
                most |= collections.Counter(_ngrams(reference, order))
            matches = collections.Counter(_ngrams(candidate, order)) & most
            counts[image, 2 * order :][:2] = matches.total(), max(0, length - order + 1)

    corpus = _bleu_of_counts(counts.sum(axis=0, keepdims=True))[0]
    per_image = _bleu_of_counts(counts)
    return tuple(
        Score(f"bleu{k + 1}", float(corpus[k]), per_image[:, k], pairs.provenance)
        for k in range(MAX_ORDER)
    )


def _bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 of each row of `bleu`'s counts: f64[rows, 4]."""
    tiny, small = 1e-15, 1e-9  # pycocoevalcap's: nothing over nothing is 1e-6, a miss almost 0
    length, closest = counts[:, 0], counts[:, 1]
    precision = (counts[:, 2::2] + tiny) / (counts[:, 3::2] + small)
    mean = np.cumprod(precision, axis=1) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + tiny) / (closest + small)
    return mean * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)[:, None]


def rouge_l(pairs: Pairs, beta: float = 1.2) -> Score:
    """ROUGE-L (Lin, 2004): 0 to 1, the F-measure of the longest common subsequence.

    As in pycocoevalcap the best precision and the best recall may come from different references.
    """
    per_image = np.zeros(len(pairs.candidates))
    for image, (candidate, group) in enumerate(pairs):
        # pycocoevalcap splits at spaces, so that no words are one empty word to it.
        candidate, group = candidate or ("",), [reference or ("",) for reference in group]
        common = [_longest_common_subsequence(candidate, reference) for reference in group]
        precision = max(common) / len(candidate)
        recall = max(n / len(reference) for n, reference in zip(common, group, strict=True))
        if precision > 0:
            per_image[image] = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return Score("rouge_l", float(per_image.mean()), per_image, pairs.provenance)


def _longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    best = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            longest = diagonal + 1 if token == other else max(best[j], best[j - 1])
            diagonal, best[j] = best[j], longest
    return best[-1]


def _tokenizer_of(captions: Iterable[Caption]) -> str:
    names = {words.TOKENIZER if isinstance(c, str) else _GIVEN_TOKENS for c in captions}
    if len(names) > 1:
        raise ValueError("some captions are strings and some are tokens, expected one kind")
    return names.pop() if names else _GIVEN_TOKENS


def _tokens(caption: Caption) -> Tokens:
    return tuple(words.tokenize(caption) if isinstance(caption, str) else caption)


def _ngrams(tokens: Tokens, order: int) -> list[NGram]:
    return [tokens[i : i + order] for i in range(len(tokens) - order + 1)]
