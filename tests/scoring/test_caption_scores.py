"""Tests of caption metrics: hand-computed cases, properties, a slow reference from the formulas."""

import functools
import math
import warnings

import numpy as np
import pytest

from synth2_jax.scoring import captions

METRICS = {
    "cider_d": captions.cider_d,
    "cider_plain": captions.cider_plain,
    **{f"bleu{n}": lambda pairs, n=n: captions.bleu(pairs)[n - 1] for n in (1, 2, 3, 4)},
    "rouge_l": captions.rouge_l,
}
PERFECT = {name: 10.0 if name.startswith("cider") else 1.0 for name in METRICS}


def score(name, candidates, references, **options):
    return METRICS[name](captions.Pairs(candidates, references), **options)


def random_pairs(num_images, seed, vocabulary=12):
    """Token captions of 0 to 9 words from a small vocabulary, with 1 to 4 references of 1 to 9."""
    rng = np.random.default_rng(seed)

    def caption(shortest):
        return tuple(f"w{i}" for i in rng.zipf(1.5, rng.integers(shortest, 10)) % vocabulary)

    references = [[caption(1) for _ in range(rng.integers(1, 5))] for _ in range(num_images)]
    # Half of the candidates begin as a reference does, so that long n-grams match too.
    candidates = [
        caption(0) if rng.random() < 0.5 else group[0][:7] + caption(0)[:2] for group in references
    ]
    return candidates, references


# With L = ln 2 as the idf of each word where two images share none.
L, U, V = math.log(2), math.log(3 / 2), math.log(3)
THE = "the the the the the the the"
CAT = ["the cat is on the mat", "there is a cat on the mat"]


@pytest.mark.parametrize(
    "name, candidates, references, corpus, first",
    [
        # Image 0: cosine 1 for orders 1 and 2, no n-grams of orders 3 and 4: 10 * 2 / 4.
        ("cider_d", ["a b", "x y"], [["a b"], ["c d"]], 2.5, 5.0),
        # c = {a: 3L}, r = {a: L, b: L}. Order 1: min(3L, L) L / (3L * sqrt(2) L); higher orders
        # share nothing. One word longer: exp(-1 / (2 * 36)).
        (
            *("cider_d", ["a a a", "z"], [["a b"], ["c d"]], None),
            10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72),
        ),
        # Neither clipped nor penalised: 3L * L / (3L * sqrt(2) L).
        ("cider_plain", ["a a a", "z"], [["a b"], ["c d"]], None, 10 / 4 / math.sqrt(2)),
        # Three images. df(a) = 2, df(b) = df(c) = 1. c = {a: U, b: V}, r = {a: U, c: V}.
        (
            *("cider_d", ["a b", "", ""], [["a c"], ["a d"], ["b e"]], None),
            10 / 4 * U**2 / (U**2 + V**2),
        ),
        # The mean over references: 5 as above against the first, 0 against the second.
        ("cider_d", ["a b", "x"], [["a b", "e f"], ["c d"]], None, 2.5),
        # Papineni's example: "the" occurs 7 times, at most twice in a reference.
        ("bleu1", [THE], [CAT], 2 / 7, None),
        # Both words and the bigram match; half as long as the reference: exp(1 - 4/2).
        ("bleu1", ["a b"], [["a b c d"]], math.exp(-1), None),
        ("bleu2", ["a b"], [["a b c d"]], math.exp(-1), None),
        # References of 2 and 4 words are equally close; with 4 the penalty would be exp(1 - 4/3).
        ("bleu1", ["a b c"], [["a b c d", "x y"]], 1.0, None),
        # 1 of 1 and 0 of 3 unigrams: pooled 1/4, where the mean over images would be 1/2.
        ("bleu1", ["a", "b c d"], [["a"], ["x y z"]], 1 / 4, 1.0),
        ("bleu4", ["a b c d e"], [["a b c d f"]], (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4), None),
        # "a c d": P = 3/4, R = 3/5; (1 + 1.44) P R / (R + 1.44 P).
        ("rouge_l", ["a b c d"], [["a c e d f"]], 1.098 / 1.68, None),
        # The best precision and the best recall, of different references.
        ("rouge_l", ["a b"], [["a b c d", "a"]], 1.0, None),
        # As in pycocoevalcap, to which no words are one empty word.
        ("rouge_l", [""], [["a b", ""]], 1.0, None),
    ],
)
def test_scores_computed_by_hand(name, candidates, references, corpus, first):
    found = score(name, candidates, references)
    if corpus is not None:
        assert found.corpus == pytest.approx(corpus)
    if first is not None:
        assert found.per_image[0] == pytest.approx(first)


# Properties.


@pytest.mark.parametrize("name", METRICS)
def test_equal_captions_are_perfect_and_others_worth_nothing(name):
    texts = ["a red cube on a table", "two green balls near it", "one more blue cone there"]
    found = score(name, texts, [[t] for t in texts])
    np.testing.assert_allclose([found.corpus, *found.per_image], PERFECT[name])
    for candidate in ("", "q r s t u"):
        found = score(name, [candidate, candidate], [["a b c d e"], ["f g h i j"]])
        np.testing.assert_allclose([found.corpus, *found.per_image], 0, atol=1e-8)


@pytest.mark.parametrize("name", METRICS)
def test_order_of_images_and_references_does_not_matter(name):
    candidates, references = random_pairs(20, seed=1)
    found = score(name, candidates, references)
    order = np.random.default_rng(0).permutation(20)
    others = [candidates[i] for i in order], [list(reversed(references[i])) for i in order]
    other = score(name, *others)
    assert other.corpus == pytest.approx(found.corpus, abs=1e-12)
    np.testing.assert_allclose(other.per_image, found.per_image[order], atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_strings_are_tokenized_and_tokens_are_not(name):
    from_text = score(
        name, ["A dog's ball.", "Two cats!"], [["the dog's red ball"], ["two cats, here"]]
    )
    from_tokens = score(
        name,
        [["a", "dog", "'s", "ball"], ["two", "cats"]],
        [[["the", "dog", "'s", "red", "ball"]], [["two", "cats", "here"]]],
    )
    np.testing.assert_array_equal(from_text.per_image, from_tokens.per_image)
    assert "tokenizer=ptb-like" in from_text.provenance
    assert "tokenizer=given tokens" in from_tokens.provenance


# The document frequency.


def test_one_image_needs_frequencies_of_a_corpus():
    with pytest.warns(UserWarning, match=r"CIDEr is 0 for every caption.*1 images"):
        assert score("cider_d", ["a b c d"], [["a b c d"]]).corpus == 0
    frequency = captions.document_frequency([["a b c d"], ["e f"], ["a g"]], source="train split")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score("cider_d", ["a b c d"], [["a b c d"]], frequency=frequency)
    assert found.corpus == pytest.approx(10.0)
    assert "df=train split (3 images)" in found.provenance


def test_frequencies_count_images_not_occurrences():
    counts = captions.document_frequency([["a a", "a b"], ["a"]]).counts
    assert counts == {("a",): 2, ("b",): 1, ("a", "a"): 1, ("a", "b"): 1}
    candidates, references = random_pairs(15, seed=2)  # those of the references change nothing
    frequency = captions.document_frequency(references)
    np.testing.assert_array_equal(
        score("cider_d", candidates, references, frequency=frequency).per_image,
        score("cider_d", candidates, references).per_image,
    )
    with pytest.raises(ValueError, match=r"tokenizer=given tokens.*tokenizer=ptb-like"):
        score("cider_d", ["a", "b"], [["a"], ["b"]], frequency=frequency)


# The whole report.


def test_score_captions_is_a_hundred_times_the_metrics_and_says_how_it_was_made():
    candidates, references = random_pairs(30, seed=3)
    report = captions.score_captions(candidates, references)
    expected = {name: score(name, candidates, references).corpus for name in METRICS}
    expected["cider"] = expected.pop("cider_d")
    del expected["cider_plain"]
    assert report.keys() == {*expected, "provenance"}
    for name, value in expected.items():
        assert report[name] == pytest.approx(100 * value), name
    report = captions.score_captions(["a b", "c"], [["a b", "b"], ["c"]])
    assert report["provenance"] == (
        "tokenizer=ptb-like, images=2, references per image=1-2, "
        "df=these references (2 images), scale=x100"
    )


@pytest.mark.parametrize(
    "candidates, references, message",
    [
        (["a"], [["a"], ["b"]], "1 candidates, but references of 2 images"),
        ([], [], "no captions to score"),
        (["a", "b"], [["a"], []], r"references\[1\] is \[\]"),
        (["a", "b"], ["a", "b"], r"references\[0\] is 'a'"),
        (["a", ["b"]], [["a"], ["b"]], "some captions are strings and some are tokens"),
    ],
)
def test_captions_that_do_not_fit_are_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        captions.score_captions(candidates, references)


# A slow reference, written from the papers' formulas and sharing nothing with the module.


def slow_count(ngram, tokens):
    n = len(ngram)
    return sum(tuple(tokens[i : i + n]) == tuple(ngram) for i in range(len(tokens) - n + 1))


def slow_vocabulary(references, order):
    texts = [text for group in references for text in group]
    return sorted({tuple(t[i : i + order]) for t in texts for i in range(len(t) - order + 1)})


def slow_cider(candidates, references, defended):
    images = range(len(candidates))
    result = np.zeros(len(candidates))
    for order in (1, 2, 3, 4):
        ngrams = slow_vocabulary([*references, candidates], order)
        df = np.array(
            [sum(any(slow_count(g, t) for t in group) for group in references) for g in ngrams]
        )
        idf = np.log(len(references) / np.maximum(1, df))
        vector = functools.cache(
            lambda t, ngrams=ngrams, idf=idf: idf * [slow_count(g, t) for g in ngrams]
        )
        for i in images:
            for reference in references[i]:
                c, r = vector(candidates[i]), vector(reference)
                norms = np.linalg.norm(c) * np.linalg.norm(r)
                value = (np.minimum(c, r) if defended else c) @ r / norms if norms else 0.0
                delta = len(candidates[i]) - len(reference)
                value *= math.exp(-(delta**2) / (2 * 6.0**2)) if defended else 1.0
                result[i] += 10 * value / 4 / len(references[i])
    return result


def slow_bleu(candidates, references, max_order):
    log_precision = 0.0
    for order in range(1, max_order + 1):
        matched = proposed = 0
        for candidate, group in zip(candidates, references, strict=True):
            for ngram in slow_vocabulary([[candidate]], order):
                count = slow_count(ngram, candidate)
                proposed += count
                matched += min(count, max(slow_count(ngram, r) for r in group))
        log_precision += math.log(matched / proposed) / max_order
    length = sum(map(len, candidates))
    reference_length = sum(
        min(sorted(map(len, group)), key=lambda n: abs(n - len(candidate)))
        for candidate, group in zip(candidates, references, strict=True)
    )
    return math.exp(log_precision + min(0.0, 1 - reference_length / length))


def slow_rouge_l(candidate, group):
    @functools.cache
    def lcs(a, b):
        if not a or not b:
            return 0
        return 1 + lcs(a[1:], b[1:]) if a[0] == b[0] else max(lcs(a[1:], b), lcs(a, b[1:]))

    if not candidate:
        return 0.0
    precision = max(lcs(candidate, r) / len(candidate) for r in group)
    recall = max(lcs(candidate, r) / len(r) for r in group)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_agree_with_the_slow_reference(seed):
    candidates, references = random_pairs(40, seed)
    expected = {
        "cider_d": slow_cider(candidates, references, defended=True),
        "cider_plain": slow_cider(candidates, references, defended=False),
        "rouge_l": [slow_rouge_l(c, r) for c, r in zip(candidates, references, strict=True)],
    }
    for name, per_image in expected.items():
        found = score(name, candidates, references).per_image
        np.testing.assert_allclose(found, per_image, atol=1e-9, err_msg=name)
    for order in (1, 2, 3, 4):
        found = score(f"bleu{order}", candidates, references).corpus
        assert found == pytest.approx(slow_bleu(candidates, references, order), abs=1e-9)
