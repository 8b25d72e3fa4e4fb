"""FLOPs by formula against what XLA compiles for the same models, and literal small cases."""

import jax
import jax.numpy as jnp
import pytest

from synth2_jax import config as config_lib
from synth2_jax.config import load_config
from synth2_jax.planning import hlo, model_flops
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages import train
from synth2_jax.synthesis.token_generator import SynthesizeConfig, make_generate_numbered
from synth2_jax.testing.toy_objective import one_device_mesh
from synth2_jax.training import train_state
from synth2_jax.training.optimizer import make_optimizer
from synth2_jax.training.train_step import compile_train_step

ROWS = 16


def built(name, **changes):
    config = load_config(f"configs/scenes/{name}.py:tiny")
    for key, value in changes.items():
        config_lib.override(config, key.replace("__", "."), str(value))
    return train.build(config)


CASES = {
    "language_model": {},
    "generator": {},
    "generator learned": {
        "model__generator__maskgit__token_embedding": "learned",
        "model__generator__maskgit__codebook_noise": 0.0,
    },
    "generator frozen": {"model__freeze_text_encoder": True},
    "generator scanned": {
        "model__generator__maskgit__scan_layers": True,
        "model__generator__text_encoder__scan_layers": True,
    },
    "vlm": {},
    "vlm packed": {"data__images_per_text": 3},
    "vlm lora": {"model__vlm__lora__rank": 8},
    "vlm whole": {"model__freeze": "^tokenizer/"},
    "vlm scanned": {
        "model__vlm__language_model__scan_layers": True,
        "model__vlm__resampler__scan_layers": True,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_training_step_is_what_is_compiled(case):
    cfg, objective = built(case.split()[0], **CASES[case])
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    layout = train_state.state_layout(objective, tx, one_device_mesh())
    step = compile_train_step(objective, tx, layout, one_device_mesh())
    found = hlo.cost(step.lower(layout, objective.batch_spec(ROWS)).compile().as_text())
    expected = model_flops.train_step(objective.task, ROWS).total
    assert found.unknown_loops == 0
    assert found.flops == pytest.approx(expected, rel=0.02)


def compiled_sampling(objective, sampler, guidance):
    config = SynthesizeConfig(generator="", captions="", sampler=sampler, guidance=guidance)
    params = train_state.params_layout(objective, None)
    text = jax.ShapeDtypeStruct((ROWS, objective.task.text_length), jnp.int32)
    numbers = jax.ShapeDtypeStruct((ROWS,), jnp.uint32)
    generate = jax.jit(make_generate_numbered(objective.task, config))
    return hlo.cost(generate.lower(params, text, numbers).compile().as_text()).flops


@pytest.mark.slow
@pytest.mark.parametrize(
    "scale, interval", [(0.0, (0.0, 1.0)), (2.0, (0.0, 1.0)), (2.0, (0.4, 1.0)), (2.0, (0.3, 0.7))]
)
def test_sampling_is_what_is_compiled(scale, interval):
    _, objective = built("generator")
    sampler, guidance = ParallelDecodeConfig(num_steps=5), GuidanceConfig(scale, interval=interval)
    expected = model_flops.sample(objective.task, ROWS, sampler, guidance)
    assert expected.backward == 0
    found = compiled_sampling(objective, sampler, guidance)
    assert found == pytest.approx(expected.total, rel=0.02)


def test_a_guided_step_costs_twice():
    _, objective = built("generator")

    def flops(num_steps, scale=2.0, interval=(0.0, 1.0)):
        sampler = ParallelDecodeConfig(num_steps)
        guidance = GuidanceConfig(scale, interval=interval)
        return model_flops.sample(objective.task, ROWS, sampler, guidance).total

    step = flops(5, scale=0.0) - flops(4, scale=0.0)  # of one row an image
    assert flops(5) - flops(4) == 2 * step
    assert flops(4, interval=(0.5, 1.0)) == flops(4) - 2 * step
    assert flops(4, interval=(0.25, 0.5)) == flops(4) - 3 * step
    assert flops(4, interval=(0.5, 0.5)) == flops(4, scale=0.0)


def test_what_is_frozen_costs_less_and_all_grows_with_the_rows():
    tasks = {name: built(name)[1].task for name in ("generator", "vlm", "tokenizer")}
    frozen = built("generator", model__freeze_text_encoder=True)[1].task
    all_of_it, part = (model_flops.train_step(task, 1) for task in (tasks["generator"], frozen))
    assert part.forward == all_of_it.forward and part.backward < all_of_it.backward
    one, two = (model_flops.train_step(tasks["vlm"], rows) for rows in (1, 2))
    assert one.forward < one.backward < 2 * one.forward
    assert two.total == 2 * one.total
    changes = {"lora": CASES["vlm lora"], "whole": CASES["vlm whole"]}
    adapted, whole = (
        model_flops.train_step(built("vlm", **change)[1].task, 1) for change in changes.values()
    )
    assert one.total < adapted.total < whole.total
    assert model_flops.train_step(tasks["tokenizer"], 1) is None  # its losses have no formula


LM, TOKENIZER = "'^vlm/language_model/'", "'^tokenizer/'"


@pytest.mark.parametrize(
    "name, patterns, is_counted",
    [
        ("vlm", f"({TOKENIZER}, {LM})", True),
        ("vlm", f"({TOKENIZER},)", True),
        ("vlm", f"({TOKENIZER}, {LM}, '^vlm/resampler/')", False),
        ("vlm", f"({TOKENIZER}, 'language_model/.*/mlp/')", False),
        ("generator", f"({TOKENIZER}, '^generator/maskgit/.*norm')", False),
        ("language_model", "('embedding',)", False),
        ("language_model", "()", True),
    ],
)
def test_what_is_frozen_in_part_is_not_counted(name, patterns, is_counted):
    task = built(name, model__freeze=patterns)[1].task
    assert (model_flops.train_step(task, 1) is not None) == is_counted
