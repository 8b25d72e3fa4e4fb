"""What a resumed run says of settings that differ from those of its checkpoint."""

import pytest

from synth2_jax.training.resume import changed_settings

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
