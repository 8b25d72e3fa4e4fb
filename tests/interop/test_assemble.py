"""Our parameters from tensors of other names and layouts."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from synth2_jax.errors import UserError
from synth2_jax.interop.assemble import LISTED, assemble, by_names, one
from synth2_jax.interop.lazy_array import of_array


def tensors(**arrays):
    return {name: of_array(np.asarray(array)) for name, array in arrays.items()}


def shapes(**shapes):
    return {
        path.replace("__", "/"): jax.ShapeDtypeStruct(s, np.float32) for path, s in shapes.items()
    }


WEIGHTS = np.arange(6).reshape(2, 3)
NAMES = {"encoder/layers_{}/up/kernel": "w{}"}


@pytest.mark.parametrize("scanned", [True, False])
def test_layers_are_stacked_or_stand_alone(scanned):
    layers = {f"encoder__layers_{i}__up__kernel": (3, 1, 2) for i in (0, 1)}
    expected = shapes(**({"encoder__layers__up__kernel": (2, 3, 1, 2)} if scanned else layers))
    recipes = by_names(expected, NAMES, lambda weights: weights.transpose())
    # Of any dtype: they get that of their parameter.
    held = tensors(w0=WEIGHTS.astype(np.float16), w1=-WEIGHTS.astype(np.float64))
    tree = assemble(recipes, held, expected, "here")["encoder"]
    wanted = np.stack([WEIGHTS.T, -WEIGHTS.T])[:, :, None]
    kernel = tree["layers" if scanned else "layers_1"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, wanted if scanned else wanted[1])
    assert kernel.dtype == np.asarray(kernel).dtype == np.float32


def test_all_that_does_not_fit_is_told_at_once():
    recipes = {
        "a": one("a"),
        "b": one("b"),
        "c": one("c"),
        "d": one("d"),
        "e": one("e", lambda w: w.transpose(2, 0, 1)),
    }
    expected = shapes(a=(2, 3), b=(2, 3), c=(3, 2), d=(2, 2), e=(1, 2, 3))
    with pytest.raises(UserError) as caught:
        assemble(
            recipes,
            tensors(a=WEIGHTS, c=WEIGHTS, d=np.zeros(5), e=WEIGHTS, f=WEIGHTS, optimizer=WEIGHTS),
            expected,
            "vae.safetensors",
            ignored=["^opt"],
        )
    assert str(caught.value) == (
        "vae.safetensors: its tensors do not fit the config: 1 missing (b); 1 unknown (f); "
        "3 misshapen (c [2, 3] for c [3, 2], d [5] for d [2, 2], e [2, 3] for e [1, 2, 3])"
    )


def test_one_misshapen_layer_is_named():
    expected = shapes(encoder__layers__scale=(2, 3))
    recipes = by_names(expected, {"encoder/layers_{}/scale": "s{}"})
    with pytest.raises(
        UserError, match=r"1 misshapen \(s1 \[4\] for encoder/layers/scale \[2, 3\]"
    ):
        assemble(recipes, tensors(s0=np.zeros(3), s1=np.zeros(4)), expected, "here")


def test_a_checkpoint_of_another_kind_is_described(tmp_path):
    safetensors.numpy.save_file({"other": np.zeros(1)}, tmp_path / "x.safetensors")
    path, expected = str(tmp_path / "x.safetensors"), shapes(a=(1,))
    with pytest.raises(
        UserError, match=r"x\.safetensors: found tensors named other, expected a VQ"
    ):
        assemble({"a": one("a")}, tensors(other=[0]), expected, path, kind="taming")


def test_a_long_list_says_how_much_longer_it_is():
    found = tensors(**{f"t{i:04}": WEIGHTS for i in range(LISTED + 7)})
    with pytest.raises(UserError, match=rf"{LISTED + 7} unknown \(t0000, .*t0199, and 7 more\)"):
        assemble({}, found, {}, "here")


def test_a_recipe_for_no_parameter_is_our_own_mistake():
    with pytest.raises(ValueError, match=r"\['b'\]"):
        assemble({"a": one("a"), "b": one("b")}, {}, shapes(a=(1,)), "here")
