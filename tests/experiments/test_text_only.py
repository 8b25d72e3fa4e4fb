import numpy as np
import pytest

from synth2_jax.experiments.text_only import PENALTY, _nearest, _word_counts, tokens_from_text

CODES_KC = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])


def test_words_that_decide_a_token_are_learned_at_each_position():
    """The first token follows the colour, the second one the shape; a new combination has both."""
    real = ["a red ring", "a blue ring", "a red cross"] * 20
    tokens_PN = np.array([[1, 0], [2, 0], [1, 3]] * 20)
    found = tokens_from_text(
        real, tokens_PN, ["a blue cross", "a red ring", "cross, blue!"], CODES_KC
    )
    assert found.dtype == np.int32 and found.tolist() == [[2, 3], [1, 0], [2, 3]]


def test_captions_without_a_known_word_get_the_code_nearest_to_the_bias():
    found = tokens_from_text(["red", "red"], np.array([[3], [3]]), ["unknown"], CODES_KC)
    assert found.tolist() == [[3]]  # all that all pairs share is in the bias


def test_the_regression_is_ridge_regression_by_the_rows_of_a_larger_least_squares():
    """With sqrt(penalty) times the identity as more rows, but for the bias; solved by lstsq."""
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(list("abcde"), 3)) for _ in range(30)]
    tokens_PN = rng.integers(0, 4, (30, 2))
    counts, vocabulary = _word_counts(captions)
    more = np.sqrt(PENALTY) * np.eye(counts.shape[1])[1:]
    targets = CODES_KC[tokens_PN].reshape(30, -1)
    padded = np.concatenate([targets, np.zeros((len(more), targets.shape[1]))])
    weights = np.linalg.lstsq(np.concatenate([counts, more]), padded, rcond=None)[0]
    asked, _ = _word_counts(["a b c", "e e d"], vocabulary)
    by_hand = [
        [int(np.argmin(((CODES_KC - x) ** 2).sum(1))) for x in row.reshape(-1, 2)]
        for row in asked @ weights
    ]
    assert tokens_from_text(captions, tokens_PN, ["a b c", "e e d"], CODES_KC).tolist() == by_hand


@pytest.mark.parametrize("number", [1, 257])
def test_the_nearest_code_is_that_of_the_squared_distances(number):
    rng = np.random.default_rng(number)
    predicted = rng.normal(2, 3, (number, 6))
    expected = [
        [int(np.argmin(((CODES_KC - x) ** 2).sum(1))) for x in row.reshape(3, 2)]
        for row in predicted
    ]
    assert _nearest(predicted, CODES_KC).tolist() == expected
