import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.models.quantizer import (
    Quantizer,
    codebook_statistics,
    count_codes,
    initial_statistics,
    revive_dead_codes,
    seen_codes,
    squared_distances,
    update_statistics,
)

K, C = 12, 5


def _quantizer(**kwargs):
    quantizer = Quantizer(codebook_size=K, embedding_dim=C, **kwargs)
    encoded = jax.random.normal(jax.random.key(1), (3, 4, C))
    variables = nn.unbox(quantizer.init(jax.random.key(0), encoded))
    variables["params"]["codebook"] = jax.random.normal(jax.random.key(2), (K, C))
    return quantizer, variables, encoded


def _literal(codebook, usage_decay=0.99, **kwargs):
    """A quantizer with these codes, and a function that shows it one batch in training."""
    codebook = jnp.asarray(codebook, jnp.float32)
    size, width = codebook.shape
    quantizer = Quantizer(codebook_size=size, embedding_dim=width, **kwargs)
    start = nn.unbox(initial_statistics(size, width, reservoir_size=4))

    def train(encoded, stats=start, microbatches=1):
        variables = {"params": {"codebook": codebook}}
        out = quantizer.apply(variables, encoded)
        batches = jnp.split(encoded, microbatches)
        parts = [seen_codes(quantizer.apply(variables, part), True, 4) for part in batches]
        seen = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        return out, update_statistics(stats, seen, usage_decay)

    return train


def test_ids_are_the_nearest_codes_of_numpy():
    quantizer, variables, encoded = _quantizer()
    out = quantizer.apply(variables, encoded)
    codebook = np.asarray(variables["params"]["codebook"])
    distances = ((np.asarray(encoded)[:, :, None] - codebook) ** 2).sum(-1)
    assert out["ids_BN"].dtype == jnp.int32
    np.testing.assert_array_equal(out["ids_BN"], distances.argmin(-1))
    np.testing.assert_allclose(out["distances_BNK"], distances, atol=1e-5)
    np.testing.assert_array_equal(out["quantized_BNC"], codebook[distances.argmin(-1)])
    out, _ = _literal([[5.0], [1.0], [-1.0], [1.0]])(jnp.zeros((1, 2, 1)))
    np.testing.assert_array_equal(out["ids_BN"], [[1, 1]])  # the lowest id wins a tie


def test_normalized_codes_compare_directions_only():
    quantizer, variables, encoded = _quantizer(l2_normalize_codes=True)
    out = quantizer.apply(variables, encoded)
    codebook = np.asarray(variables["params"]["codebook"])
    codebook = codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)
    cosines = np.asarray(encoded) @ codebook.T
    np.testing.assert_array_equal(out["ids_BN"], cosines.argmax(-1))
    np.testing.assert_allclose(np.linalg.norm(out["encoded_BNC"], axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(out["codes_BNC"], codebook[out["ids_BN"]], atol=1e-6)
    rescaled = quantizer.apply(variables, 7.0 * encoded)
    np.testing.assert_array_equal(rescaled["ids_BN"], out["ids_BN"])


def test_the_largest_dot_product_need_not_be_the_nearest_code():
    train = _literal([[1.0, 0.0], [3.0, 3.0]], code_choice="dot_product")
    out, _ = train(jnp.asarray([[[1.0, 0.1], [1.0, -2.0]]]))
    np.testing.assert_array_equal(out["ids_BN"], [[1, 0]])  # the nearest is code 0 twice
    np.testing.assert_allclose(out["distances_BNK"], [[[-1.0, -3.3], [-1.0, 3.0]]], atol=1e-6)
    np.testing.assert_array_equal(out["quantized_BNC"], [[[3.0, 3.0], [1.0, 0.0]]])


def test_distances_are_float32_for_bfloat16_input():
    x = jax.random.normal(jax.random.key(0), (6, C)).astype(jnp.bfloat16)
    codebook = jax.random.normal(jax.random.key(1), (K, C))
    distances = squared_distances(x, codebook)
    assert distances.dtype == jnp.float32
    exact = ((np.asarray(x, np.float32)[:, None] - np.asarray(codebook)) ** 2).sum(-1)
    np.testing.assert_allclose(distances, exact, atol=1e-5)


def test_straight_through_gradient_is_the_identity():
    quantizer, variables, encoded = _quantizer()
    weights = jax.random.normal(jax.random.key(3), encoded.shape)

    def output(params, encoded):
        out = quantizer.apply({"params": params}, encoded)
        return jnp.sum(weights * out["quantized_BNC"])

    to_codebook, to_encoded = jax.grad(output, argnums=(0, 1))(variables["params"], encoded)
    np.testing.assert_array_equal(to_encoded, weights)
    np.testing.assert_array_equal(to_codebook["codebook"], 0.0)
    embedded = quantizer.apply(variables, jnp.array([[0, K]]), method="embed")
    np.testing.assert_array_equal(np.isnan(embedded).all(-1), [[False, True]])  # K is no code


def test_usage_of_a_literal_case():
    train = _literal([[0.0], [10.0], [20.0]], usage_decay=0.75)
    batch = jnp.array([0.0, 1.0, 11.0, 0.0]).reshape(2, 2, 1)
    _, stats = train(batch)
    np.testing.assert_array_equal(stats["usage"], [3, 1, 0])  # the first batch sets the average
    _, stats = train(jnp.full((2, 2, 1), 19.0), stats)
    np.testing.assert_array_equal(stats["usage"], [0.75 * 3, 0.75 * 1, 0.25 * 4])


def test_reservoir_holds_the_latest_vectors():
    train = _literal([[0.0]])
    _, stats = train(jnp.array([1.0, 2.0]).reshape(1, 2, 1))
    assert sorted(stats["reservoir"].ravel().tolist()) == [1, 1, 2, 2]  # never the initial zeros
    _, stats = train(jnp.array([3.0, 4.0, 5.0]).reshape(1, 3, 1), stats)
    assert {3.0, 4.0, 5.0} < set(stats["reservoir"].ravel().tolist())
    _, stats = train(jnp.arange(100.0, 164.0).reshape(16, 4, 1), stats)
    kept = stats["reservoir"].ravel() - 100.0
    assert len(set(kept.tolist())) == 4 and kept.min() >= 0
    assert len(set((kept % 4).tolist())) > 1  # not one position of the grid only
    assert len(set((kept // 4).tolist())) > 1  # nor one image


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_are_counted_as_the_one_batch_they_are(microbatches):
    """The average decays once, and candidates for revival come from every microbatch."""
    train = _literal([[0.0], [10.0], [20.0]], usage_decay=0.75)
    first, second = jnp.array([0.0, 1.0, 11.0, 0.0]), jnp.array([19.0, 0.0, 1.0, 12.0])
    _, stats = train(first.reshape(4, 1, 1), microbatches=microbatches)
    np.testing.assert_array_equal(stats["usage"], [3, 1, 0])
    assert sorted(stats["reservoir"].ravel().tolist()) == [0, 0, 1, 11]
    _, stats = train(second.reshape(4, 1, 1), stats, microbatches)
    usage = [0.75 * 3 + 0.25 * 2, 0.75 * 1 + 0.25 * 1, 0.25 * 1]
    np.testing.assert_array_equal(stats["usage"], usage)
    assert sorted(stats["reservoir"].ravel().tolist()) == [0, 1, 12, 19]
    _, stats = train(jnp.arange(100.0, 164.0).reshape(64, 1, 1), stats, microbatches)
    kept = (stats["reservoir"].ravel() - 100) // (64 // microbatches)
    assert len(set(kept.tolist())) > 1


def test_without_quantization_vectors_pass_and_nothing_is_counted():
    quantizer, variables, encoded = _quantizer()
    weights = jax.random.normal(jax.random.key(3), encoded.shape)

    def run(params, encoded, quantize):
        out = quantizer.apply({"params": params}, encoded, quantize=quantize)
        seen = jax.tree.map(lambda one: one[None], seen_codes(out, quantize, 1024))
        return out, seen

    params, stats = variables["params"], nn.unbox(initial_statistics(K, C, 1024))
    out, seen = run(params, encoded, False)
    stats = update_statistics(stats, seen, 0.99)
    np.testing.assert_array_equal(out["quantized_BNC"], encoded)
    np.testing.assert_array_equal(out["codes_BNC"], encoded)
    np.testing.assert_array_equal(stats["usage"], 0.0)
    # Candidates of the codes to come are kept all the same.
    rows = {tuple(row) for row in encoded.reshape(-1, C).tolist()}
    assert {tuple(row) for row in stats["reservoir"].tolist()} == rows
    # Ids are told as ever, and the first batch that is quantized is the first to be counted.
    again, seen = run(params, encoded, True)
    np.testing.assert_array_equal(out["ids_BN"], again["ids_BN"])
    expected = np.bincount(np.ravel(again["ids_BN"]), minlength=K)
    np.testing.assert_array_equal(update_statistics(stats, seen, 0.99)["usage"], expected)

    def output(params, encoded):
        out, _ = run(params, encoded, False)
        return jnp.sum(weights * (out["quantized_BNC"] + out["codes_BNC"]))

    to_codebook, to_encoded = jax.grad(output, argnums=(0, 1))(variables["params"], encoded)
    np.testing.assert_array_equal(to_encoded, weights)  # none through the codes
    np.testing.assert_array_equal(to_codebook["codebook"], 0.0)


def test_codebook_statistics():
    counts = count_codes(jnp.array([[0, 0], [2, 0]]), 4)
    np.testing.assert_array_equal(counts, [3, 0, 1, 0])
    for counts, perplexity, share in ([5, 5, 5, 5], 4.0, 1.0), ([0, 9, 0, 0], 1.0, 0.25):
        found = codebook_statistics(jnp.array(counts, jnp.float32))
        expected = [perplexity, share]
        np.testing.assert_allclose([found["perplexity"], found["codes_used"]], expected, rtol=1e-6)


def test_revival_replaces_exactly_the_dead_codes():
    codebook = jnp.arange(12.0).reshape(6, 2)
    usage = jnp.array([5.0, 0.0, 3.0, 0.99, 1.0, 0.5])
    candidates = 100.0 + jax.random.normal(jax.random.key(0), (8, 2))
    revive = jax.jit(revive_dead_codes)
    revived, new_usage, count = revive(codebook, usage, candidates, jax.random.key(1), 1.0)
    dead = np.array([False, True, False, True, False, True])
    assert int(count) == 3
    np.testing.assert_array_equal(revived[~dead], codebook[~dead])
    np.testing.assert_array_equal(new_usage[~dead], usage[~dead])
    rows = {tuple(row) for row in np.asarray(candidates).tolist()}
    drawn = {tuple(row) for row in np.asarray(revived[dead]).tolist()}
    assert len(drawn) == 3 and drawn <= rows  # no candidate twice
    np.testing.assert_allclose(new_usage[dead], np.mean(usage), rtol=1e-6)
    same = revive(codebook, usage + 1.0, candidates, jax.random.key(1), 1.0)  # none is dead
    np.testing.assert_array_equal(same[0], codebook)
    np.testing.assert_array_equal(same[1], usage + 1.0)
    assert int(same[2]) == 0


def test_revival_prefers_what_no_living_code_covers():
    codebook = jnp.array([[0.0], [50.0]])
    candidates = jnp.concatenate([jnp.full((99, 1), 0.001), jnp.full((1, 1), 10.0)])
    usage = jnp.array([9.0, 0.0])
    revived, _, _ = revive_dead_codes(codebook, usage, candidates, jax.random.key(0), 1.0)
    np.testing.assert_array_equal(revived, [[0.0], [10.0]])


def test_revival_of_normalized_codes_compares_directions():
    """The short code covers the direction of the many candidates."""
    candidates = jnp.concatenate([jnp.tile(jnp.eye(2)[:1], (99, 1)), jnp.eye(2)[1:]])
    codes = (jnp.array([[0.001, 0.0], [9.0, 9.0]]), jnp.array([9.0, 0.0]))
    options = (jax.random.key(0), 1.0)
    revived, _, _ = revive_dead_codes(*codes, candidates, *options, l2_normalize_codes=True)
    np.testing.assert_allclose(revived, [[0.001, 0.0], [0.0, 1.0]])


def test_revival_of_a_wholly_dead_codebook_and_with_few_candidates():
    candidates = jnp.array([[1.0], [2.0]])
    codes = (jnp.zeros((5, 1)), jnp.zeros(5))
    revived, usage, count = revive_dead_codes(*codes, candidates, jax.random.key(0), 0.5)
    assert int(count) == 5
    assert set(revived.ravel().tolist()) == {1.0, 2.0}
    np.testing.assert_array_equal(usage, np.full(5, 0.5))  # revived codes are not dead at once
