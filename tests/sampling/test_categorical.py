import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.sampling.categorical import categorical

BELOW_ONE = np.float32(1 - 2**-24)  # the largest float32 below 1


def reference(logits, uniform):
    """Plain loops, in float64: blocks of 128 classes, then the classes of one block."""

    def first_beyond(weights, share):
        sums = np.cumsum(weights)
        return next(index for index, at in enumerate(sums) if at > share * sums[-1])

    out = []
    for row, (first, second) in zip(np.exp(logits.astype(np.float64)), uniform, strict=True):
        blocks = [row[start : start + 128] for start in range(0, len(row), 128)]
        block = first_beyond([block.sum() for block in blocks], first)
        out.append(128 * block + first_beyond(blocks[block], second))
    return out


@pytest.mark.parametrize("num_classes", [1, 7, 128, 129, 300, 1024])
def test_equals_the_reference(num_classes):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(200, num_classes)) * 3).astype(np.float32)
    uniform = rng.uniform(size=(200, 2)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(categorical)(logits, uniform), reference(logits, uniform))


def test_draws_follow_the_probabilities():
    # Two blocks of unequal mass, and a class in each that must not come.
    logits = np.full(130, -np.inf, np.float32)
    classes, probs = [0, 5, 128, 129], [0.5, 0.2, 0.25, 0.05]
    logits[classes] = np.log(probs) + 3
    uniform = jax.random.uniform(jax.random.key(0), (20_000, 2))
    drawn = np.asarray(categorical(jnp.broadcast_to(logits, (20_000, 130)), uniform))
    found = np.bincount(drawn, minlength=130) / len(drawn)
    np.testing.assert_allclose(found[classes], probs, atol=0.015)
    assert found[classes].sum() == 1


@pytest.mark.parametrize("first", [0.0, BELOW_ONE])
@pytest.mark.parametrize("second", [0.0, BELOW_ONE])
def test_a_class_of_no_probability_is_never_drawn(first, second):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(500, 1000)).astype(np.float32) * 10
    possible = rng.uniform(size=logits.shape) < 0.02
    possible[:, 500] = True
    logits[~possible] = -np.inf
    uniform = np.tile(np.float32([first, second]), (500, 1))
    drawn = np.asarray(categorical(jnp.asarray(logits), jnp.asarray(uniform)))
    assert possible[np.arange(500), drawn].all()
    if first == second == 0:
        np.testing.assert_array_equal(drawn, possible.argmax(1))


def test_leading_axes_and_large_logits():
    logits = jnp.zeros((2, 3, 4)).at[..., 2].set(1e30)
    drawn = categorical(logits, jax.random.uniform(jax.random.key(0), (2, 3, 2)))
    np.testing.assert_array_equal(drawn, np.full((2, 3), 2))
    assert drawn.dtype == jnp.int32
