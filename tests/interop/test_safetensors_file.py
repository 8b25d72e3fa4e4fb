import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from synth2_jax.errors import UserError
from synth2_jax.interop.safetensors_file import FORMAT, read_params, read_tensors, write_tensors


def test_tensors_come_back_by_name_and_prefix(tmp_path):
    tensors = {
        "features.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "features.0.bias": np.array([0.5, -2.0], np.float16),
        "classifier.0.bias": np.zeros(1, np.float32),
    }
    path = str(tmp_path / "x.safetensors")
    save_file(tensors, path)
    assert read_tensors(path).keys() == tensors.keys()
    found = read_tensors(path, prefix="features.")
    assert found.keys() == {"features.0.weight", "features.0.bias"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, tensors[name])
        assert array.dtype == tensors[name].dtype


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 as torch.save writes it", b"\x08" + bytes(9)]
)
def test_what_is_no_such_file_is_one_line(tmp_path, content):
    path = tmp_path / "x.safetensors"
    for missing in (path, tmp_path):  # a folder is none either
        with pytest.raises(UserError, match="no such file, expected a .safetensors file"):
            read_tensors(str(missing))
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_tensors(str(path))
    assert str(error.value).startswith(f"{path}: found no .safetensors file, but 'Error while ")
    assert "\n" not in str(error.value)


ARRAYS = {
    "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.deep.scale": np.array(0.5, ml_dtypes.bfloat16),
    "b": np.array([1, -2, 3], np.int32),
    "none": np.zeros((0, 4), np.float16),
}


def shapes_of(arrays):
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}


def test_what_is_streamed_reads_as_the_package_writes_it(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, shapes_of(ARRAYS), iter(ARRAYS.values()), {"format": FORMAT})
    params, metadata = read_params(str(path))
    assert metadata == {"format": FORMAT}
    found = {
        "a.kernel": params["a"]["kernel"],
        "a.deep.scale": params["a"]["deep"]["scale"],
        "b": params["b"],
        "none": params["none"],
    }
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
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


def test_files_of_another_origin_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such file, expected one that `synth2 export` wrote"):
        read_params(str(path))
    save_file({"a": np.zeros(1)}, path)
    for content in (path.read_bytes(), b"", b"\xff" * 20, b"PK\x03\x04 of torch.save, and more"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="found another file, expected what `synth2 export`"):
            read_params(str(path))
