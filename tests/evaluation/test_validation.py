"""What validation says of held-out data before training."""

import types

import pytest

from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.evaluation import validation
from synth2_jax.testing.toy_objective import one_device_mesh


@pytest.mark.parametrize("images_per_text, needed", [(1, 22), (3, 66)])
def test_too_few_examples_are_counted_as_pairs(monkeypatch, images_per_text, needed):
    monkeypatch.setattr(validation.pipeline, "eval_batches", lambda *args, **options: iter(()))
    data = DataConfig(mixture="real", batch_size=22, images_per_text=images_per_text)
    objective = types.SimpleNamespace(batches="vlm", limits={})
    with pytest.raises(UserError, match=f"fewer examples than the {needed} of one batch"):
        validation.Validator(
            validation.ValidationConfig(data),
            *(objective, data, {}, None, one_device_mesh(), sharding.AXIS_RULES),
        )
