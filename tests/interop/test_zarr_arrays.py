import numpy as np
import orbax.checkpoint as ocp
import pytest

from synth2_jax.errors import UserError
from synth2_jax.interop.gemma import language_model_config
from synth2_jax.interop.zarr_arrays import open_orbax

TREE = {
    "a": {"kernel": np.arange(24, dtype=np.float32).reshape(4, 6), "zeros": np.zeros((3,))},
    "b/c": {"w": np.arange(6, dtype=np.int32)},  # a name with a slash in it, as Gemma's have
}
FLAT = {"a/kernel": TREE["a"]["kernel"], "a/zeros": np.zeros((3,)), "b/c/w": TREE["b/c"]["w"]}


def save(path, ocdbt=True):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=not ocdbt)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, TREE)
    return path


@pytest.mark.parametrize("ocdbt", [True, False])
def test_arrays_are_opened_by_their_paths_and_read_by_boxes(tmp_path, ocdbt):
    tensors = open_orbax(save(tmp_path / "saved", ocdbt))
    assert tensors.keys() == FLAT.keys()
    for name, expected in FLAT.items():
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected)
    np.testing.assert_array_equal(tensors["a/kernel"][1:3, 2:], FLAT["a/kernel"][1:3, 2:])


def test_what_a_standard_checkpointer_writes_is_opened(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", TREE)
    assert open_orbax(tmp_path / "saved").keys() == FLAT.keys()


def test_arrays_that_lack_a_part_are_all_named(tmp_path):
    path = save(tmp_path / "saved", ocdbt=False)
    for chunk in [*path.glob("a.kernel/c/**/*"), *path.glob("b/c.w/c/**/*")]:
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(UserError, match=r"2 arrays \(a.kernel: 0 of 1 chunks; b/c.w: 0 of 1 ch"):
        open_orbax(path)


def test_a_folder_without_arrays_is_refused(tmp_path):
    with pytest.raises(UserError, match="found no arrays, expected a checkpoint of Orbax"):
        open_orbax(tmp_path)
    with pytest.raises(UserError, match="none: no such folder"):
        open_orbax(tmp_path / "none")
    unfinished = tmp_path / "saved.orbax-checkpoint-tmp-7"
    unfinished.mkdir()
    with pytest.raises(UserError, match="its save was not finished"):
        open_orbax(unfinished)


def test_a_stack_of_layers_without_axes_is_named(tmp_path):
    stacked = {"stacked_layers/attention_type_0/attn/q_einsum": {"w": np.float32(1)}}
    tree = {"transformer/embedder": {"input_embedding": np.zeros((3, 2), np.float32)}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        held = {f"transformer/{name}": value for name, value in stacked.items()}
        checkpointer.save(tmp_path / "saved", {**tree, **held})
    with pytest.raises(
        UserError, match="attn/q_einsum/w has no axes, expected one of layers first"
    ):
        language_model_config(tmp_path / "saved")
