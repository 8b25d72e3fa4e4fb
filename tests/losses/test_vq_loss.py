import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs.paper import tokenizer
from synth2_jax.errors import UserError
from synth2_jax.losses import vq_loss as losses
from synth2_jax.losses.vq_loss import VQLossConfig, vq_loss
from synth2_jax.models.discriminator import Discriminator, DiscriminatorConfig
from synth2_jax.models.vq_tokenizer import VQTokenizer, VQTokenizerConfig

# No residual blocks and one level: these tests are about the losses, and compile in a moment.
SMALL = {"image_size": 8, "channel_multipliers": (1,)}
CODES = {"num_res_blocks": 0, "embedding_dim": 4, "codebook_size": 10, "norm_groups": 4}
MODEL = VQTokenizer(VQTokenizerConfig(**SMALL, **CODES, patch_size=4, filters=8))
JUDGE = Discriminator(DiscriminatorConfig(**SMALL, patch_size=2, filters=4))
IMAGE = jax.random.uniform(jax.random.key(0), (3, 8, 8, 3), minval=-1.0)
GAN = VQLossConfig(adversarial_weight=0.1, adversarial_start=100, r1_weight=10.0)


@pytest.fixture(scope="module")
def params():
    # Any values do, and compiling real initializers takes seconds.
    rng = np.random.default_rng(0)
    tokenizer = functools.partial(MODEL.init, deterministic=True)
    shapes = {
        "tokenizer": jax.eval_shape(tokenizer, jax.random.key(0), IMAGE)["params"],
        "discriminator": jax.eval_shape(JUDGE.init, jax.random.key(0), IMAGE)["params"],
    }

    def draw(leaf):
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape) + 0.05, jnp.float32)

    return jax.tree.map(draw, nn.unbox(shapes))


@pytest.fixture(scope="module")
def forward(params):
    return _forward(params)


@pytest.fixture(scope="module")
def gan_gradients(params):
    """step -> {name of a loss: its gradient, for every parameter}."""

    def gradients(step):
        def sums(params):
            losses = _losses(params, GAN, step)
            return {name: total for name, (total, _) in losses.items()}

        return jax.jacrev(sums)(params)

    return jax.jit(gradients)


@jax.jit
def _forward(params):
    return MODEL.apply({"params": params["tokenizer"]}, IMAGE, deterministic=False)


def _judge(params, image):
    return JUDGE.apply({"params": params}, image)


def _losses(params, config, step=0, **kwargs):
    reconstruction, out = _forward(params)
    judge = {"discriminator": _judge, "discriminator_params": params["discriminator"]}
    return vq_loss(IMAGE, reconstruction, out, step, config, **judge, **kwargs)


def _size(tree):
    return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def test_reconstruction_of_a_literal_case():
    image = jnp.zeros((2, 1, 2, 1))
    other = jnp.array([1.0, 3.0, 0.0, -2.0]).reshape(2, 1, 2, 1)
    np.testing.assert_array_equal(losses.reconstruction_loss(image, other), (5.0 + 2.0, 2.0))
    np.testing.assert_array_equal(losses.reconstruction_loss(image, other, "l1"), (2.0 + 1.0, 2.0))


def test_loss_is_the_weighted_sum_of_its_terms(params):
    weights = dict(reconstruction=0.5, codebook=2.0, commitment=0.25, entropy=0.3)
    weights |= dict(perceptual=0.7, adversarial=0.1, r1=3.0)
    settings = {f"{name}_weight": weight for name, weight in weights.items()}
    config = VQLossConfig(reconstruction="l1", **settings)
    out = jax.jit(lambda: _losses(params, config, features=lambda image: image**2))()
    weights["discriminator"] = 1.0
    expected = sum(weight * out[name][0] for name, weight in weights.items())
    np.testing.assert_allclose(out["loss"][0], expected, rtol=1e-6)
    assert set(out) == {*weights, "loss", "perplexity", "codes_used", "logits_real", "logits_fake"}
    for name, (total, count) in out.items():
        assert total.dtype == count.dtype == jnp.float32, name
        assert total.shape == count.shape == (), name
        assert float(count) == (1.0 if name in ("perplexity", "codes_used") else 3.0), name


def test_terms_of_weight_zero_are_absent_and_need_nothing(forward):
    reconstruction, out = forward
    found = vq_loss(IMAGE, reconstruction, out, 0, VQLossConfig(entropy_weight=0.0))
    terms = {"reconstruction", "codebook", "commitment"}
    assert set(found) == terms | {"loss", "perplexity", "codes_used"}


def test_sums_and_counts_of_batches_add_up(forward):
    reconstruction, _ = forward
    whole = losses.reconstruction_loss(IMAGE, reconstruction)
    rows = np.split(range(3), [1])
    parts = [losses.reconstruction_loss(IMAGE[row], reconstruction[row]) for row in rows]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "moved", "still"),
    [("codebook", "quantizer", "encoder"), ("commitment", "encoder", "quantizer")],
)
def test_the_codebook_and_the_encoder_are_pulled_apart(gan_gradients, name, moved, still):
    gradient = gan_gradients(0)[name]["tokenizer"]
    assert _size(gradient[moved]) > 0
    assert _size(gradient[still]) == _size(gradient["decoder"]) == 0


@pytest.mark.parametrize(
    "name, owner, other",
    [
        ("reconstruction", "tokenizer", "discriminator"),
        ("adversarial", "tokenizer", "discriminator"),
        ("discriminator", "discriminator", "tokenizer"),
        ("r1", "discriminator", "tokenizer"),
    ],
)
def test_each_loss_moves_its_own_network_only(gan_gradients, name, owner, other):
    gradient = gan_gradients(100)[name]
    assert _size(gradient[owner]) > 0
    assert _size(gradient[other]) == 0


def test_one_gradient_of_the_sum_serves_both_networks(gan_gradients):
    gradients = gan_gradients(100)
    tokenizer = dict(reconstruction=1.0, codebook=1.0, commitment=0.25, entropy=0.1)
    own = {
        "discriminator": {"discriminator": 1.0, "r1": 10.0},
        "tokenizer": {**tokenizer, "adversarial": 0.1},
    }
    for network, weights in own.items():
        parts = [
            jax.tree.map(lambda x, w=weight: w * x, gradients[name][network])
            for name, weight in weights.items()
        ]
        expected = jax.tree.map(lambda *x: np.sum(x, axis=0), *parts)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
        jax.tree.map(close, gradients["loss"][network], expected)


def test_the_adversarial_terms_are_zero_before_the_start_step(params, gan_gradients):
    assert _size(gan_gradients(99)["loss"]["discriminator"]) == 0
    gan = jax.jit(lambda step: _losses(params, GAN, step))
    plain = jax.jit(lambda: _losses(params, VQLossConfig()))()
    for step, started in [(0, False), (99, False), (100, True), (101, True)]:
        out = gan(step)
        for name in ("adversarial", "discriminator", "r1"):
            assert (float(out[name][0]) > 0) == started, (name, step)
        same = np.isclose(out["loss"][0], plain["loss"][0], rtol=1e-6)
        assert same == (not started), step


def test_adversarial_values_of_constant_logits(forward):
    def constant(params, image):
        return jnp.full((image.shape[0], 2, 2), 0.5) + 0.0 * params

    reconstruction, out = forward
    config = VQLossConfig(adversarial_weight=1.0, r1_weight=1.0)
    judge = {"discriminator": constant, "discriminator_params": jnp.float32(0.0)}
    found = vq_loss(IMAGE, reconstruction, out, 0, config, **judge)
    minus_log_sigmoid = -np.log(1 / (1 + np.exp(-0.5)))
    np.testing.assert_allclose(found["adversarial"][0] / 3, minus_log_sigmoid, rtol=1e-6)
    expected = minus_log_sigmoid - np.log(1 - 1 / (1 + np.exp(-0.5)))
    np.testing.assert_allclose(found["discriminator"][0] / 3, expected, rtol=1e-6)
    np.testing.assert_allclose(found["r1"][0], 0.0, atol=1e-7)


def test_r1_of_a_linear_discriminator():
    # Mean logit of an image = 2 * its mean pixel over 4 pixels: gradient 0.5 each, squared norm 1.
    total, count = losses.r1_penalty(lambda image: 2.0 * image[..., 0], jnp.ones((3, 2, 2, 1)))
    np.testing.assert_allclose([total, count], [3.0, 3.0], rtol=1e-6)


def test_the_papers_weights_are_maskgits_for_pixels_in_0_to_1():
    weights = VQLossConfig(**tokenizer.get_config().model.loss)
    ours, pixels = jnp.array([[[[0.5]], [[-1.0]]]]), jnp.array([[[[0.75]], [[0.0]]]])
    error = losses.reconstruction_loss(ours, jnp.zeros_like(ours))[0]
    expected = np.mean((pixels - 0.5) ** 2)
    np.testing.assert_allclose(weights.reconstruction_weight * error, expected, rtol=1e-6)

    def discriminate(pixels):  # gradient 3 * pixel
        return 1.5 * jnp.sum(pixels**2, axis=(1, 2, 3), keepdims=True)[..., 0]

    found = losses.r1_penalty(lambda image: discriminate((image + 1) / 2), ours)[0]
    np.testing.assert_allclose(weights.r1_weight * found, 10 * np.sum((3 * pixels) ** 2), rtol=1e-6)


def test_entropy_is_lowest_when_decided_and_even():
    far = 1.0 - jnp.eye(4)  # token n is at code n
    collapsed, undecided = far[jnp.zeros(4, int)], jnp.ones((4, 4))
    for distances, expected in ((far, -np.log(4)), (collapsed, 0.0), (undecided, 0.0)):
        total, count = losses.entropy_loss(distances[None], temperature=0.01)
        np.testing.assert_allclose(total / count, expected, atol=1e-3)


def test_entropy_against_numpy():
    distances = jax.random.uniform(jax.random.key(0), (2, 3, 5))
    logits = -np.asarray(distances, np.float64).reshape(6, 5) / 0.5
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = probs.mean(0)
    expected = -(probs * np.log(probs)).sum(-1).mean() + (mean * np.log(mean + 1e-5)).sum()
    total, count = losses.entropy_loss(distances, temperature=0.5)
    np.testing.assert_allclose(total / count, expected, atol=1e-5)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"reconstruction": "l3"}, "reconstruction: unknown 'l3'"),
        ({"commitment_weight": -1.0}, "commitment_weight: found -1.0"),
        ({"entropy_temperature": 0.0}, "entropy_temperature: found 0.0"),
        ({"r1_weight": 1.0}, "r1_weight: found above 0"),
    ],
)
def test_bad_configs_are_user_errors(values, text):
    with pytest.raises(UserError, match=text):
        VQLossConfig(**values)


@pytest.mark.parametrize("name", ["perceptual_weight", "adversarial_weight"])
def test_a_weight_without_its_network_is_a_user_error(forward, name):
    reconstruction, out = forward
    with pytest.raises(UserError, match=f"{name}: found above 0 without"):
        vq_loss(IMAGE, reconstruction, out, 0, VQLossConfig(**{name: 0.1}))
