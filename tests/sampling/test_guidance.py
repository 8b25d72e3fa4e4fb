import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.sampling.guidance import GuidanceConfig, guidance_scales, guided
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, parallel_decode, row_keys

B, N, V = 2, 4, 5
BIAS = jax.random.normal(jax.random.key(1), (2 * B, 1, V))


def logits_fn2(ids):
    assert ids.shape == (2 * B, N)
    return jnp.sin(ids[..., None] * jnp.arange(1.0, V + 1)[None, None]) + BIAS


IDS = jnp.asarray([[0, 1, 2, 5], [3, 5, 5, 4]])
CONDITIONAL = np.sin(np.asarray(IDS)[..., None] * np.arange(1.0, V + 1)) + np.asarray(BIAS)[:B]
UNCONDITIONAL = np.sin(np.asarray(IDS)[..., None] * np.arange(1.0, V + 1)) + np.asarray(BIAS)[B:]


def test_scale_zero_is_conditional():
    logits = guided(logits_fn2, GuidanceConfig(scale=0.0), num_steps=3)(IDS, 1)
    np.testing.assert_allclose(logits, CONDITIONAL, atol=1e-6)


def test_muse_form_of_two_separate_calls():
    config = GuidanceConfig(scale=2.5, ramp="constant")
    for step in range(3):
        logits = jax.jit(guided(logits_fn2, config, num_steps=3))(IDS, step)
        np.testing.assert_allclose(logits, 3.5 * CONDITIONAL - 2.5 * UNCONDITIONAL, atol=1e-5)


def test_scales_literal():
    np.testing.assert_allclose(guidance_scales(GuidanceConfig(4.0, "constant"), 4), [4, 4, 4, 4])
    np.testing.assert_allclose(guidance_scales(GuidanceConfig(4.0, "linear"), 4), [1, 2, 3, 4])
    np.testing.assert_allclose(
        guidance_scales(GuidanceConfig(4.0, "constant", (0.25, 0.75)), 4), [0, 4, 4, 0]
    )
    np.testing.assert_allclose(
        guidance_scales(GuidanceConfig(10.0, "linear", (0.3, 1.0)), 10),
        [0, 0, 0, 4, 5, 6, 7, 8, 9, 10],
    )


def test_outside_the_interval_is_conditional():
    logits_fn = guided(logits_fn2, GuidanceConfig(2.0, "constant", (0.5, 1.0)), num_steps=4)
    np.testing.assert_allclose(logits_fn(IDS, 1), CONDITIONAL, atol=1e-6)
    np.testing.assert_allclose(logits_fn(IDS, 2), 3 * CONDITIONAL - 2 * UNCONDITIONAL, atol=1e-5)


def test_bfloat16_logits_are_combined_in_float32():
    logits = guided(
        lambda ids: logits_fn2(ids).astype(jnp.bfloat16), GuidanceConfig(), num_steps=2
    )(IDS, 0)
    assert logits.dtype == jnp.float32


def test_guidance_steers_the_sampler():
    """Conditional prefers code 1, unconditional code 2: a strong scale leaves only code 1."""
    preference = jnp.stack([jnp.eye(V)[1] + jnp.eye(V)[2], 2 * jnp.eye(V)[2]])

    def logits_fn2(ids):
        batch = ids.shape[0] // 2
        return jnp.broadcast_to(jnp.repeat(preference, batch, 0)[:, None], (*ids.shape, V))

    def sample(scale):
        fn = guided(logits_fn2, GuidanceConfig(scale, "constant"), num_steps=2)
        keys = row_keys(jax.random.key(0), 64)
        config = ParallelDecodeConfig(num_steps=2)
        return parallel_decode(fn, keys, num_tokens=N, mask_id=V, config=config)

    assert (sample(30.0) == 1).all()
    assert 0.1 < (sample(0.0) == 1).mean() < 0.6


def test_mistakes_are_named():
    with pytest.raises(UserError, match="linear"):
        GuidanceConfig(ramp="liner")
    with pytest.raises(UserError, match="interval"):
        GuidanceConfig(interval=(0.7, 0.2))
