import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.sampling.guidance import GuidanceConfig, guidance_scales, guided

B, N, V = 2, 4, 5
BIAS = jax.random.normal(jax.random.key(1), (2 * B, 1, V))


def both(ids):
    assert ids.shape == (2 * B, N)
    return jnp.sin(ids[..., None] * jnp.arange(1.0, V + 1)[None, None]) + BIAS


def conditional(ids):
    assert ids.shape == (B, N)
    return jnp.sin(ids[..., None] * jnp.arange(1.0, V + 1)[None, None]) + BIAS[:B]


def never(ids):
    raise AssertionError("no step needs it")


IDS = jnp.asarray([[0, 1, 2, 5], [3, 5, 5, 4]])
WAVES = np.sin(np.asarray(IDS)[..., None] * np.arange(1.0, V + 1))
CONDITIONAL, UNCONDITIONAL = WAVES + np.asarray(BIAS)[:B], WAVES + np.asarray(BIAS)[B:]


@pytest.mark.parametrize(
    "config",
    [GuidanceConfig(scale=0.0), GuidanceConfig(interval=(0.5, 0.5))],
    ids=["scale 0", "empty interval"],
)
def test_without_guidance_there_is_no_unconditional_row(config):
    logits = guided(never, conditional, config, num_steps=3)[1](IDS, 1)
    np.testing.assert_array_equal(logits, conditional(IDS))


def test_scales_literal():
    for config, expected in (
        (GuidanceConfig(4.0, "constant"), [4, 4, 4, 4]),
        (GuidanceConfig(4.0, "linear"), [1, 2, 3, 4]),
        (GuidanceConfig(4.0, "constant", (0.25, 0.75)), [0, 4, 4, 0]),
        (GuidanceConfig(10.0, "linear", (0.3, 1.0)), [0, 0, 0, 4, 5, 6, 7, 8, 9, 10]),
    ):
        np.testing.assert_allclose(guidance_scales(config, len(expected)), expected)


@pytest.mark.parametrize("ramp", ["constant", "linear"])
def test_a_full_interval_is_one_product_of_the_double_batch_at_each_step(ramp):
    config = GuidanceConfig(2.5, ramp)
    logits_fn_S = guided(both, never, config, num_steps=3)
    assert len(set(logits_fn_S)) == 1
    for step, scale in enumerate(guidance_scales(config, 3)):
        first, second = jnp.split(both(jnp.concatenate([IDS, IDS])), 2)
        expected = (1 + scale) * first - scale * second
        np.testing.assert_array_equal(logits_fn_S[step](IDS, step), expected)


def test_outside_the_interval_is_conditional():
    config = GuidanceConfig(2.0, "constant", (0.25, 0.75))
    logits_fn_S = [jax.jit(fn) for fn in guided(both, conditional, config, num_steps=4)]
    for step in range(4):
        expected = 3 * CONDITIONAL - 2 * UNCONDITIONAL if step in (1, 2) else CONDITIONAL
        np.testing.assert_allclose(logits_fn_S[step](IDS, step), expected, atol=1e-5)


def test_bfloat16_logits_are_combined_in_float32():
    def rounded(fn):
        return lambda ids: fn(ids).astype(jnp.bfloat16)

    config = GuidanceConfig(interval=(0.0, 0.5))
    logits_fn_S = guided(rounded(both), rounded(conditional), config, num_steps=2)
    assert {fn(IDS, step).dtype for step, fn in enumerate(logits_fn_S)} == {jnp.dtype("float32")}


def test_mistakes_are_named():
    with pytest.raises(UserError, match="linear"):
        GuidanceConfig(ramp="liner")
    with pytest.raises(UserError, match="interval"):
        GuidanceConfig(interval=(0.7, 0.2))
