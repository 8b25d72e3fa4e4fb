import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors

from synth2_jax.errors import UserError
from synth2_jax.interop.safetensors_file import write_folder, write_tensors
from synth2_jax.interop.tensor_files import open_safetensors

ARRAYS = {
    "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.deep.scale": np.array(0.5, ml_dtypes.bfloat16),
    "b": np.array([1, -2, 3], np.int32),
    "none": np.zeros((0, 4), np.float16),
}


def shapes_of(arrays):
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}


def check(tensors):
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype


def test_what_is_streamed_reads_as_the_package_writes_it(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, shapes_of(ARRAYS), iter(ARRAYS.values()), {"made by": "me"})
    check(open_safetensors(path))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
        assert file.metadata() == {"made by": "me"}
        np.testing.assert_array_equal(file.get_tensor("a.kernel"), ARRAYS["a.kernel"])


def test_what_fails_half_way_leaves_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("before")

    def breaks():
        yield ARRAYS["a.kernel"]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_tensors(path, shapes_of(ARRAYS), breaks(), {})
    with pytest.raises(UserError, match="x: found dtype float64, expected one of"):
        write_tensors(path, shapes_of({"x": np.zeros(1)}), iter(()), {})
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "file_bytes, groups",
    [
        (1000, [list(ARRAYS)]),
        (38, [["a.kernel", "a.deep.scale", "b", "none"]]),  # 24 + 2 + 12 + 0 bytes
        (37, [["a.kernel", "a.deep.scale"], ["b", "none"]]),
        (1, [["a.kernel"], ["a.deep.scale"], ["b"], ["none"]]),  # larger than a file may be
    ],
)
def test_a_folder_has_as_many_files_as_it_needs(tmp_path, file_bytes, groups):
    files = write_folder(tmp_path, shapes_of(ARRAYS), iter(ARRAYS.values()), file_bytes)
    assert {file.name for file in tmp_path.iterdir()} == set(files)
    check(open_safetensors(tmp_path))
    held = []
    for file in sorted(tmp_path.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="numpy") as opened:
            held.append(set(opened.keys()))
            assert opened.metadata() == {"format": "pt"}
    assert held == [set(group) for group in groups]
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(groups) > 1)


def test_too_few_or_too_many_arrays_are_a_mistake(tmp_path):
    for arrays in ([*ARRAYS.values()][:-1], [*ARRAYS.values(), np.zeros(1)]):
        with pytest.raises(ValueError, match="argument"):
            write_tensors(tmp_path / "x.safetensors", shapes_of(ARRAYS), iter(arrays), {})
    with pytest.raises(ValueError, match="shorter"):
        write_folder(tmp_path, shapes_of(ARRAYS), iter([*ARRAYS.values()][:-1]), 1)
    with pytest.raises(ValueError, match="more arrays than the 4 shapes"):
        write_folder(tmp_path, shapes_of(ARRAYS), iter([*ARRAYS.values(), np.zeros(1)]), 1)
