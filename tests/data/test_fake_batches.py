"""Tests of the random batches."""

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax.data.fake_batches import FakeBatches

SPEC = {
    "image_tokens": jax.ShapeDtypeStruct((4, 16), jnp.int32),
    "image": jax.ShapeDtypeStruct((4, 2, 2, 3), jnp.float32),
    "loss_mask": jax.ShapeDtypeStruct((4, 5), jnp.bool_),
    "is_synthetic": jax.ShapeDtypeStruct((4,), jnp.bool_),
    "image_of_text": jax.ShapeDtypeStruct((4, 9), jnp.int32),
}


def test_batches_have_the_shapes_types_and_ranges():
    batch = next(FakeBatches(SPEC, limits={"image_tokens": 5, "image_of_text": 3}))
    assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {
        n: (s.shape, s.dtype) for n, s in SPEC.items()
    }
    assert set(np.unique(batch["image_tokens"])) == {2, 3, 4}
    assert set(np.unique(batch["image_of_text"])) == {0, 1, 2}  # no image, the first, the second
    assert -1 <= batch["image"].min() < 0 < batch["image"].max() < 1
    assert batch["loss_mask"][:, 0].all() and not batch["loss_mask"].all()


def test_the_state_brings_back_the_same_batches():
    batches = FakeBatches(SPEC, seed=3)
    next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(2)]
    again = FakeBatches(SPEC, seed=3)
    again.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, [next(again) for _ in range(2)], expected)
    other = next(FakeBatches(SPEC, seed=4))
    assert not np.array_equal(other["image"], next(FakeBatches(SPEC, seed=3))["image"])
