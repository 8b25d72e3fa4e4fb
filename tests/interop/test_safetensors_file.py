import numpy as np
import pytest
from safetensors.numpy import save_file

from synth2_jax.errors import UserError
from synth2_jax.interop.safetensors_file import read_tensors


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
