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
    "bleu1": lambda c, r: captions.bleu(c, r)[0],
    "bleu4": lambda c, r: captions.bleu(c, r)[3],
    "rouge_l": captions.rouge_l,
}
PERFECT = {"cider_d": 10.0, "cider_plain": 10.0, "bleu1": 1.0, "bleu4": 1.0, "rouge_l": 1.0}


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


# Hand-computed.


def test_cider_d_of_a_short_match():
    # Two images, so every word has idf ln 2 and cosines do not depend on it. Image 0: cosine 1 for
    # orders 1 and 2, no n-grams of orders 3 and 4: 10 * (1 + 1 + 0 + 0) / 4 = 5. Image 1: nothing.
    score = captions.cider_d(["a b", "x y"], [["a b"], ["c d"]])
    np.testing.assert_allclose(score.per_image, [5.0, 0.0], rtol=1e-12)
    assert score.corpus == pytest.approx(2.5)


def test_cider_d_clips_repeated_words_and_penalises_length():
    # With L = ln 2: c = {a: 3L}, r = {a: L, b: L}. Order 1: min(3L, L) L / (3L * sqrt(2) L) =
    # 1 / (3 sqrt(2)); higher orders share nothing. One word longer: exp(-1 / (2 * 36)).
    score = captions.cider_d(["a a a", "z"], [["a b"], ["c d"]])
    assert score.per_image[0] == pytest.approx(10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72))


def test_cider_d_weighs_words_by_inverse_document_frequency():
    # Three images. df(a) = 2, df(b) = df(c) = 1: u = ln(3/2), v = ln 3. c = {a: u, b: v},
    # r = {a: u, c: v}: cosine u^2 / (u^2 + v^2); bigrams differ.
    score = captions.cider_d(["a b", "", ""], [["a c"], ["a d"], ["b e"]])
    u, v = math.log(3 / 2), math.log(3)
    assert score.per_image[0] == pytest.approx(10 / 4 * u**2 / (u**2 + v**2))


def test_cider_d_averages_over_references():
    # 5 against the first reference as in the short match, 0 against the second.
    score = captions.cider_d(["a b", "x"], [["a b", "e f"], ["c d"]])
    assert score.per_image[0] == pytest.approx(2.5)


def test_cider_plain_neither_clips_nor_penalises_length():
    # As above: 3L * L / (3L * sqrt(2) L) = 1 / sqrt(2), and no factor for the longer one.
    score = captions.cider_plain(["a a a", "z"], [["a b"], ["c d"]])
    assert score.per_image[0] == pytest.approx(10 / 4 / math.sqrt(2))


def test_bleu_clips_to_the_largest_reference_count():
    # Papineni's example: "the" occurs 7 times, at most twice in a reference: 2/7. A reference is as
    # long as the candidate, so there is no brevity penalty.
    score = captions.bleu(
        ["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]]
    )[0]
    assert score.corpus == pytest.approx(2 / 7)


def test_bleu_brevity_penalty():
    # Both words and the bigram match; half as long as the reference: exp(1 - 4/2).
    bleu1, bleu2, bleu3, _ = captions.bleu(["a b"], [["a b c d"]])
    assert bleu1.corpus == pytest.approx(math.exp(-1))
    assert bleu2.corpus == pytest.approx(math.exp(-1))
    assert bleu3.corpus < 0.005


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    # Lengths 2 and 4 are both 1 away from 3; with 4 the penalty would be exp(1 - 4/3).
    assert captions.bleu(["a b c"], [["a b c d", "x y"]])[0].corpus == pytest.approx(1.0)


def test_bleu_pools_counts_over_images():
    # 1 of 1 and 0 of 3 unigrams: pooled 1/4, where the mean over images would be 1/2.
    score = captions.bleu(["a", "b c d"], [["a"], ["x y z"]])[0]
    assert score.corpus == pytest.approx(1 / 4)
    np.testing.assert_allclose(score.per_image, [1, 0], atol=1e-8)


def test_bleu4_is_the_geometric_mean_of_precisions():
    # "a b c d e" against "a b c d f": 4/5, 3/4, 2/3, 1/2.
    score = captions.bleu(["a b c d e"], [["a b c d f"]])[3]
    assert score.corpus == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))


def test_rouge_l_of_a_subsequence():
    # Longest common subsequence "a c d": P = 3/4, R = 3/5; (1 + 1.44) P R / (R + 1.44 P) =
    # 2.44 * 0.45 / (0.6 + 1.08) = 1.098 / 1.68.
    assert captions.rouge_l(["a b c d"], [["a c e d f"]]).corpus == pytest.approx(1.098 / 1.68)


def test_rouge_l_takes_precision_and_recall_from_different_references():
    # "a b" against "a b c d": P 1, R 1/2; against "a": P 1/2, R 1. Best of both: 1.
    assert captions.rouge_l(["a b"], [["a b c d", "a"]]).corpus == pytest.approx(1.0)


def test_rouge_l_of_no_words_against_none_is_perfect():
    # As in pycocoevalcap, to which no words are one empty word.
    assert captions.rouge_l([""], [["a b", ""]]).corpus == pytest.approx(1.0)


# Properties.


@pytest.mark.parametrize("name", METRICS)
def test_a_caption_equal_to_its_reference_is_perfect(name):
    texts = ["a red cube on a table", "two green balls near it", "one more blue cone there"]
    score = METRICS[name](texts, [[t] for t in texts])
    assert score.corpus == pytest.approx(PERFECT[name])
    np.testing.assert_allclose(score.per_image, PERFECT[name])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("candidate", ["", "q r s t u"], ids=["empty", "disjoint"])
def test_nothing_in_common_is_zero(name, candidate):
    score = METRICS[name]([candidate, candidate], [["a b c d e"], ["f g h i j"]])
    np.testing.assert_allclose([score.corpus, *score.per_image], 0, atol=1e-8)


@pytest.mark.parametrize("name", METRICS)
def test_order_of_images_and_references_does_not_matter(name):
    candidates, references = random_pairs(20, seed=1)
    score = METRICS[name](candidates, references)
    order = np.random.default_rng(0).permutation(20)
    other = METRICS[name](
        [candidates[i] for i in order], [list(reversed(references[i])) for i in order]
    )
    assert other.corpus == pytest.approx(score.corpus, abs=1e-12)
    np.testing.assert_allclose(other.per_image, score.per_image[order], atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_strings_are_tokenized_and_tokens_are_not(name):
    texts, references = ["A dog's ball.", "Two cats!"], [["the dog's red ball"], ["two cats, here"]]
    tokens = [["a", "dog", "'s", "ball"], ["two", "cats"]]
    reference_tokens = [[["the", "dog", "'s", "red", "ball"]], [["two", "cats", "here"]]]
    from_text, from_tokens = (
        METRICS[name](texts, references),
        METRICS[name](tokens, reference_tokens),
    )
    np.testing.assert_array_equal(from_text.per_image, from_tokens.per_image)
    assert "tokenizer=ptb-like" in from_text.provenance
    assert "tokenizer=given tokens" in from_tokens.provenance


# The document frequency.


def test_one_image_scores_zero_and_warns():
    with pytest.warns(UserWarning, match=r"CIDEr is 0 for every caption.*1 images"):
        score = captions.cider_d(["a b c d"], [["a b c d"]])
    assert score.corpus == 0


def test_one_image_with_supplied_frequencies_scores():
    frequency = captions.document_frequency([["a b c d"], ["e f"], ["a g"]], source="train split")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = captions.cider_d(["a b c d"], [["a b c d"]], frequency=frequency)
    assert score.corpus == pytest.approx(10.0)
    assert "df=train split (3 images)" in score.provenance


def test_supplying_the_frequencies_of_the_references_changes_nothing():
    candidates, references = random_pairs(15, seed=2)
    frequency = captions.document_frequency(references)
    np.testing.assert_array_equal(
        captions.cider_d(candidates, references, frequency=frequency).per_image,
        captions.cider_d(candidates, references).per_image,
    )


def test_document_frequency_counts_images_not_occurrences():
    counts = captions.document_frequency([["a a", "a b"], ["a"]]).counts
    assert counts == {("a",): 2, ("b",): 1, ("a", "a"): 1, ("a", "b"): 1}


def test_frequencies_of_another_tokenizer_are_refused():
    frequency = captions.document_frequency([["a b"], ["c"]])
    with pytest.raises(ValueError, match=r"tokenizer=ptb-like.*tokenizer=given tokens"):
        captions.cider_d([["a"], ["b"]], [[["a"]], [["b"]]], frequency=frequency)


# The whole report.


def test_score_captions_is_a_hundred_times_the_metrics():
    candidates, references = random_pairs(30, seed=3)
    report = captions.score_captions(candidates, references)
    expected = {
        "cider": captions.cider_d(candidates, references),
        "rouge_l": captions.rouge_l(candidates, references),
    }
    expected |= {f"bleu{n + 1}": s for n, s in enumerate(captions.bleu(candidates, references))}
    assert report.keys() == {*expected, "provenance"}
    for name, score in expected.items():
        assert report[name] == pytest.approx(100 * score.corpus), name


def test_score_captions_says_how_it_was_made():
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
    for metric, defended in ((captions.cider_d, True), (captions.cider_plain, False)):
        np.testing.assert_allclose(
            metric(candidates, references).per_image,
            slow_cider(candidates, references, defended),
            atol=1e-9,
        )
    np.testing.assert_allclose(
        captions.rouge_l(candidates, references).per_image,
        [slow_rouge_l(c, r) for c, r in zip(candidates, references, strict=True)],
        atol=1e-9,
    )
    np.testing.assert_allclose(
        [score.corpus for score in captions.bleu(candidates, references)],
        [slow_bleu(candidates, references, order) for order in (1, 2, 3, 4)],
        atol=1e-9,
    )
