"""What a resumed run says of settings that differ from those of its checkpoint."""

import jax
import numpy as np
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.testing.toy_objective import ToyObjective, one_device_mesh
from synth2_jax.training.checkpoints import Checkpoints
from synth2_jax.training.optimizer import GroupConfig, OptimizerConfig, make_optimizer
from synth2_jax.training.resume import changed_settings
from synth2_jax.training.train_state import state_layout

CONFIG = {
    "model": {"vlm": {"resampler": {"num_latents": 2}}, "sizes": (1, 2)},
    "optimizer": {"learning_rate": 0.1, "schedule": "cosine"},
    "train": {"steps": 3, "seed": 0, "log_every": 1},
    "data": {"batch_size": 8},
    "validation": {"num_batches": 1},
}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ""),
        ({"model": {**CONFIG["model"], "sizes": [1, 2]}}, ""),  # as JSON has it
        ({"data": {"batch_size": 16}, "validation": {}}, ""),  # the data checks itself
        ({"train": {"steps": 3, "seed": 0, "log_every": 9, "keep": 2}}, ""),
        ({"train": {"steps": 3, "seed": 1}}, "--config.train.seed=1 (0 before)"),
        ({"train": {"steps": 4, "seed": 0}}, "--config.train.steps=4 (3 before)"),
        (
            {"optimizer": {"learning_rate": 0.2, "schedule": "cosine"}, "stream": {"share": 1.0}},
            "--config.optimizer.learning_rate=0.2 (0.1 before), "
            "--config.stream.share=1.0 (the default before)",
        ),
        (
            {"model": {"vlm": {"resampler": {}}, "sizes": (1, 2)}},
            "--config.model.vlm.resampler.num_latents=the default (2 before)",
        ),
        # Older versions let all decay, and had one image a text.
        ({"model": {**CONFIG["model"], "images_per_text": 1}}, ""),
        (
            {"model": {**CONFIG["model"], "images_per_text": 2}},
            "--config.model.images_per_text=2 (1 before)",
        ),
        ({"optimizer": {**CONFIG["optimizer"], "weight_decay_skip": ()}}, ""),
        (
            {"optimizer": {**CONFIG["optimizer"], "weight_decay_skip": ("bias",)}},
            "--config.optimizer.weight_decay_skip=['bias'] ([] before)",
        ),
        ({"init": {"from": "b"}}, "--config.init.from=b (the default before)"),
        ({"optimizer": {str(i): i for i in range(6)}, "train": {"seed": 0}}, "4 more"),
    ],
)
def test_what_changes_the_training_is_named(changes, expected):
    found = changed_settings(CONFIG, {**CONFIG, **changes})
    assert found.endswith(expected) and bool(found) == bool(expected)
    # Without a schedule more steps are no other training.
    config = {"optimizer": {"schedule": "constant"}, "train": {"steps": 3}}
    assert changed_settings(config, {**config, "train": {"steps": 4}}) == ""


GROUP = {"groups": (GroupConfig("head/", learning_rate_factor=0.1),)}


@pytest.mark.parametrize(
    "before, after",
    [
        (GROUP, {"groups": (GroupConfig("head/"),)}),
        ({"clip_norm": 0.0}, {"clip_norm": 0.0, "groups": (GroupConfig("head/", clip_norm=0.1),)}),
        ({}, {"weight_decay": 0.1, "groups": (GroupConfig("bias", 0.5, clip_norm=0.1),)}),
        ({"name": "adafactor", "momentum": 0.5}, {"clip_norm": 0.0, "weight_decay": 0.1}),
    ],
)
def test_a_run_resumes_with_other_settings_of_its_optimizer(tmp_path, before, after):
    """Clipping, decay and factors come and go: moments and counts go on, where they are now."""
    kept = {key: before[key] for key in ("name", "momentum") if key in before}
    old, new = (
        state_layout(ToyObjective(), make_optimizer(OptimizerConfig(**one)), one_device_mesh())
        for one in (before, kept | after)
    )
    leaves, structure = jax.tree.flatten(old)
    arrays = [np.full(leaf.shape, number, leaf.dtype) for number, leaf in enumerate(leaves)]
    places = [leaf.sharding for leaf in leaves]
    saved = structure.unflatten(jax.device_put(arrays, places))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, FakeBatches(ToyObjective().batch_spec(2)), {}, {})
        found = checkpoints.restore(new).state
    assert jax.tree.structure(found) == jax.tree.structure(new)
    for array, expected in zip(jax.tree.leaves(found), arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
