import dataclasses

import pytest

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.experiments.compute import equal_compute
from synth2_jax.planning import model_flops
from synth2_jax.stages import train
from synth2_jax.synthesis.token_generator import SynthesizeConfig
from synth2_jax.training.objectives import VLMObjective


@pytest.fixture(scope="module")
def parts():
    config = config_lib.load_config("configs/scenes/demo.py")
    built = {name: train.build(config[name], name) for name in ("vlm", "generator")}
    return built | {"synthesize": config_lib.build(SynthesizeConfig, config.synthesize)}


def test_the_whole_arm_costs_the_generator_and_the_pairs_beside_the_vlm(parts):
    (vlm, vlm_model), (generator, generator_model) = parts["vlm"], parts["generator"]
    one_step = model_flops.train_step(vlm_model.task, vlm.data.batch_size).total
    more = model_flops.train_step(generator_model.task, generator.data.batch_size).total
    sampler, guidance = parts["synthesize"].sampler, parts["synthesize"].guidance
    sampled = 4500 * model_flops.sample(generator_model.task, 1, sampler, guidance).total
    steps = equal_compute(**parts, num_captions=4500) * vlm.train.steps
    extra = (generator.train.steps * more + sampled) / one_step
    assert steps == pytest.approx(vlm.train.steps + extra, rel=0.02)  # the code features, once
    assert steps > 1.5 * vlm.train.steps


def test_more_samples_and_longer_generators_cost_more(parts):
    base = equal_compute(**parts, num_captions=100)
    twice = dataclasses.replace(parts["synthesize"], samples_per_caption=2)
    doubled = equal_compute(**{**parts, "synthesize": twice}, num_captions=100)
    assert doubled == pytest.approx(equal_compute(**parts, num_captions=200))
    cfg, objective = parts["generator"]
    longer = dataclasses.replace(
        cfg, train=dataclasses.replace(cfg.train, steps=2 * cfg.train.steps)
    )
    found = equal_compute(**{**parts, "generator": (longer, objective)}, num_captions=0)
    assert found - 1 == pytest.approx(2 * (equal_compute(**parts, num_captions=0) - 1), rel=1e-3)
    assert found > base > 1


def test_a_model_whose_flops_no_formula_counts_is_refused(parts):
    cfg, objective = parts["vlm"]
    half = VLMObjective(dataclasses.replace(objective.task, freeze=("^tokenizer/", "resampler/")))
    with pytest.raises(
        UserError, match=r"^model.freeze: found .*resampler/'\) in the config of the"
    ):
        equal_compute(**{**parts, "vlm": (cfg, half)}, num_captions=1)
