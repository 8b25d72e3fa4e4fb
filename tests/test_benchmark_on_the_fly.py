"""The benchmark of training on the fly: what its four ways are, and what it counts."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks import on_the_fly
from synth2_jax import sharding
from synth2_jax.config import override
from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.models.maskgit import Generator
from synth2_jax.planning import model_flops
from synth2_jax.sampling.guidance import guidance_scales
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import row_keys
from synth2_jax.stages import train
from synth2_jax.testing.tiny_configs import tiny
from synth2_jax.testing.user_errors import user_error
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_state import create_train_state, state_layout
from synth2_jax.training.train_step import make_train_step, step_rngs

ROWS, NUM_TOKENS = 2, 16


@pytest.fixture
def vlm():
    return tiny("vlm")


@pytest.fixture
def generator():
    return tiny("generator")


def test_the_recipes():
    found = on_the_fly.ways(NUM_TOKENS, 8, (0.25, 0.75))
    assert [way.image_space for way in found.values()] == 2 * ["embedding", "pixel"]
    assert found["stored_embedding"].sampler is found["stored_pixel"].sampler is None
    ours, plain = found["on_the_fly"], found["on_the_fly_plain"]
    guided = guidance_scales(ours.guidance, ours.sampler.num_steps) != 0
    np.testing.assert_array_equal(guided, [0, 0, 1, 1, 1, 1, 0, 0])
    assert plain.sampler.num_steps == NUM_TOKENS  # a step reveals at least one token
    assert guidance_scales(plain.guidance, NUM_TOKENS).all()
    assert on_the_fly.ways(256, 8, (0, 1))["on_the_fly_plain"].sampler.num_steps == 24


@pytest.mark.slow
@pytest.mark.parametrize("key", ["on_the_fly", "on_the_fly_plain"])
def test_one_program_does_what_sampling_and_then_training_do(vlm, generator, key):
    way = on_the_fly.ways(NUM_TOKENS, 4, (0.25, 0.75))[key]
    override(vlm, "model.image_space", way.image_space)
    (_, objective), (_, captioned) = train.build(vlm), train.build(generator)
    tx = make_optimizer(OptimizerConfig())
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    state = create_train_state(objective, tx, state_layout(objective, tx, mesh), seed=0)
    init = jax.jit(lambda key: nn.unbox(captioned.init(key)["params"]["generator"]))
    params, model = init(jax.random.key(1)), Generator(captioned.task.generator)
    text = next(FakeBatches(captioned.batch_spec(ROWS), limits={"text_tokens": 512}))
    batch = next(FakeBatches(objective.batch_spec(ROWS), limits={"image_tokens": 512}))

    image_tokens_BN = jax.jit(make_generate(model, way.sampler, way.guidance))(
        params,
        state.params["tokenizer"]["quantizer"]["codebook"],  # its codes are not normalized
        text["text_tokens"],
        text["text_mask"],
        row_keys(step_rngs(state.rng, state.step)["noise"], ROWS),
    )
    assert (image_tokens_BN != batch["image_tokens"]).any()
    apart = jax.jit(make_train_step(objective, tx))(
        state, {**batch, "image_tokens": image_tokens_BN}
    )
    captions = {"caption_tokens": text["text_tokens"], "caption_mask": text["text_mask"]}
    together = jax.jit(on_the_fly.make_step(way, objective, tx, model))(
        state, params, {**batch, **captions}
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), together, apart
    )


@pytest.mark.slow
def test_each_way_is_timed_and_its_flops_are_the_formulas(vlm, generator):
    found = on_the_fly.measure(vlm, generator, ROWS, num_steps=4, interval=(0, 0.5), rounds=1)
    rows = found["ways"]
    task = train.build(generator)[1].task
    for key, way in on_the_fly.ways(NUM_TOKENS, 4, (0, 0.5)).items():
        row = rows[key]
        override(vlm, "model.image_space", way.image_space)
        assert row["steps_per_second"] * row["seconds"] == pytest.approx(1)
        flops = model_flops.train_step(train.build(vlm)[1].task, ROWS)
        if way.sampler:
            flops += model_flops.sample(task, ROWS, way.sampler, way.guidance)
        assert row["flops"] == flops.total and row["name"] == way.name
    names = ("stored_embedding", "stored_pixel", "on_the_fly", "on_the_fly_plain")
    embedding, pixel, ours, plain = (rows[name]["seconds"] for name in names)
    assert found["embedding_over_pixel"] == pytest.approx(pixel / embedding)
    assert found["ours_over_plain"] == pytest.approx(plain / ours)
    # Weights pass once a sampling step, the tokenizer's only where there are pixels.
    sampled, sampled_plain = (
        rows[one]["bytes"] - rows[other]["bytes"]
        for one, other in (("on_the_fly", "stored_embedding"), ("on_the_fly_plain", "stored_pixel"))
    )
    assert 0 < rows["stored_embedding"]["bytes"] < rows["stored_pixel"]["bytes"]
    assert sampled < sampled_plain < 4 * sampled


def test_configs_that_do_not_fit_are_refused(vlm, generator):
    with generator.unlocked():
        generator.model.update(stored_text_features=True, freeze_text_encoder=True)
    with user_error("stored_text_features: found True, expected False"):
        on_the_fly.measure(vlm, generator, ROWS)
    generator.model.tokenizer.filters = 16
    with user_error(r"tokenizer.filters: found 16 .* expected the VLM's 8"):
        on_the_fly.measure(vlm, generator, ROWS)
