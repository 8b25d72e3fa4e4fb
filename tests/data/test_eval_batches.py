"""Tests of evaluation batches: each example once, in order."""

import dataclasses

import numpy as np
import pytest

from synth2_jax.data import pipeline
from synth2_jax.testing.batches import layouts

pytestmark = pytest.mark.usefixtures("clean_registry")


def test_evaluation_is_one_pass_in_order(both):
    config = dataclasses.replace(both, rates={}, mixture="real")
    batches = list(pipeline.eval_batches(config, "vlm", with_keys=True))
    assert [batch["valid"].sum() for batch in batches] == [8, 8, 8, 6]
    keys = np.concatenate([batch["key"][batch["valid"]] for batch in batches])
    assert keys.tolist() == [f"real-{i:03d}" for i in range(30)]
    last = batches[-1]
    assert last["text_tokens"].shape == (8, 24)
    assert not last["loss_mask"][6:].any() and last["loss_mask"][:6].any(axis=1).all()
    np.testing.assert_array_equal(last["image_tokens"][6:], last["image_tokens"][[5, 5]])
    assert "key" not in next(pipeline.eval_batches(config, "vlm"))


def test_evaluation_of_a_mixture_reads_all_its_tasks(both):
    batches = pipeline.eval_batches(both, "vlm", with_keys=True)
    keys = np.concatenate([batch["key"][batch["valid"]] for batch in batches])
    assert len(keys) == len(set(keys)) == 80


def test_processes_evaluate_the_same_number_of_batches(both):
    config = dataclasses.replace(both, rates={}, mixture="real", batch_size=14)
    parts = [
        list(pipeline.eval_batches(config, "vlm", layout=layout, with_keys=True))
        for layout in layouts(2)
    ]
    assert [len(part) for part in parts] == [3, 3]
    assert [batch["valid"].sum() for batch in parts[1]] == [7, 7, 0]
    keys = [key for part in parts for batch in part for key in batch["key"][batch["valid"]]]
    assert sorted(keys) == [f"real-{i:03d}" for i in range(30)]
