"""Named tensors of other people's files."""

import itertools
import json
import pathlib
import pickle
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from synth2_jax.errors import UserError
from synth2_jax.interop import tensor_files
from synth2_jax.interop.tensor_files import (
    open_flax_msgpack,
    open_safetensors,
    open_torch,
    require,
)

ARRAYS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.arange(3, dtype=np.int64),
    "scalar": np.asarray(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float16),
    "half": np.arange(8).astype(ml_dtypes.bfloat16),
}


def sharded(folder: pathlib.Path) -> pathlib.Path:
    """ARRAYS in two files with an index, as Hugging Face writes them."""
    folder.mkdir()
    first = {name: ARRAYS[name] for name in ("a.weight", "b")}
    second = {name: ARRAYS[name] for name in ARRAYS.keys() - first.keys()}
    weight_map = {}
    for i, arrays in enumerate((first, second), start=1):
        name = f"model-{i:05}-of-00002.safetensors"
        safetensors.numpy.save_file(arrays, folder / name)
        weight_map |= dict.fromkeys(arrays, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def check(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        read = np.asarray(found[name])
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(found["a.weight"][1:, :2, 3:], ARRAYS["a.weight"][1:, :2, 3:])


def test_safetensors_are_read_by_file_and_by_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, file)
    check(open_safetensors(file))
    check(open_safetensors(tmp_path))
    check(open_safetensors(sharded(tmp_path / "sharded")))


def test_files_that_macos_adds_are_no_tensors(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    for folder in (tmp_path, sharded(tmp_path / "sharded")):
        for file in list(folder.glob("*.safetensors*")):
            (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        check(open_safetensors(folder))


@pytest.mark.parametrize("gap", [0, 40, 10**6])  # pieces read apart, some together, all together
@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_every_box_of_a_file_is_that_of_numpy(tmp_path, monkeypatch, gap, block):
    monkeypatch.setattr(tensor_files, "_GAP", gap)
    monkeypatch.setattr(tensor_files, "_BLOCK", block)
    array = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 2)
    safetensors.numpy.save_file({"before": ARRAYS["b"], "x": array}, tmp_path / "x.safetensors")
    found = open_safetensors(tmp_path)["x"]
    parts = [
        (slice(0, size), slice(0, 1), slice(size // 2, size), slice(1, 1)) for size in array.shape
    ]
    for box in itertools.product(*parts):
        np.testing.assert_array_equal(found[box], array[box])


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
    found = open_safetensors(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.safetensors: ended while it was read"):
        found["b"][1:]


def test_shards_that_are_not_there_are_all_named(tmp_path):
    folder = sharded(tmp_path / "sharded")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    names = r"model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"
    with pytest.raises(UserError, match=rf"2 of 2 files .* not there: {names}"):
        open_safetensors(folder)


def test_an_index_names_files_beside_it_alone(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="expected files beside it"):
        open_safetensors(tmp_path)
    index.write_text("[]")
    with pytest.raises(UserError, match="found .., expected a JSON object"):
        open_safetensors(tmp_path)


def test_an_index_that_promises_too_much_is_told(tmp_path):
    folder = sharded(tmp_path / "sharded")
    (index,) = folder.glob("*.json")
    held = json.loads(index.read_text())
    held["weight_map"]["lost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(held))
    with pytest.raises(UserError, match="do not hold: lost"):
        open_safetensors(folder)


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_half_a_download_is_named(tmp_path, kept):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(
        UserError, match=r"model\.safetensors: found .*(cut short|no \.safetensors)"
    ):
        open_safetensors(file)
    file.write_bytes(whole + b"more")
    with pytest.raises(UserError, match="cut short"):
        open_safetensors(file)


def test_a_folder_without_a_choice_is_told(tmp_path):
    with pytest.raises(UserError, match=r"found no \.safetensors, expected one"):
        open_safetensors(tmp_path)
    for name in ("a", "b"):
        safetensors.numpy.save_file({"x": ARRAYS["b"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"\['a\.safetensors', 'b\.safetensors'\]"):
        open_safetensors(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        open_safetensors(tmp_path / "none.safetensors")


def with_header(path, header, num_bytes):
    """A .safetensors file with any header in front of zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
    return path


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header, told",
    [
        ({"a": entry(shape=None)}, "a: found dtype 'F32', shape None and data_offsets"),
        ({"a": entry(shape=[2.0])}, "a: found dtype"),
        ({"a": entry(shape=[True, 2])}, "a: found dtype"),
        ({"a": entry(shape=[-1, -2])}, "a: found dtype"),
        ({"a": entry(shape="2")}, "a: found dtype"),
        ({"a": entry(shape={"2": 2})}, "a: found dtype"),
        ({"a": entry(dtype=["F32"])}, "a: found dtype"),
        ({"a": entry(dtype="F31")}, "a: has dtype 'F31'"),
        ({"a": entry(data_offsets=["0", "8"])}, "a: found dtype"),
        ({"a": entry(data_offsets=[-8, 0])}, "a: found dtype"),
        ({"a": entry(data_offsets=[8])}, "a: found data_offsets .8., expected a start"),
        ({"a": entry(data_offsets=[8, 0])}, "a: found data_offsets"),
        ({"a": entry(shape=[10**15])}, "a: found data_offsets .0, 8., expected a start and an end"),
        ({"a": entry(shape=[2, 2**63])}, "a: found dtype"),
        ({"a": entry(shape=[2, 10**400])}, "is not JSON .found the number 1000"),
        ({"a": entry(shape=[1] * 1000 + [2])}, "a: found dtype"),
        ({"a": entry(shape=[10**15], data_offsets=[0, 4 * 10**15])}, "cut short"),
        ({"a": entry(data_offsets=[8, 16])}, "cut short"),
        ({"a": [1, 2]}, "a: found .1, 2., expected dtype, shape and data_offsets"),
        ({"a": None}, "a: found None"),
        ([1, 2], "found .1, 2., expected a JSON object"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": \xff}', "is not JSON"),
    ],
)
def test_a_header_that_lies_is_one_line(tmp_path, header, told):
    path = with_header(tmp_path / "model.safetensors", header, 8)
    with pytest.raises(UserError, match=told) as caught:
        open_safetensors(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": ["b"]}, "a"])
def test_an_index_of_other_types_is_one_line(tmp_path, weight_map):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="index.json: weight_map: found .*, expected file names"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    "held",
    [
        {"a": {1: np.zeros(1)}},
        {"a": {"__msgpack_chunked_array__": True}},
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {}}},
    ],
)
def test_msgpack_of_other_types_is_one_line(tmp_path, held):
    file = tmp_path / "checkpoint"
    file.write_bytes(flax.serialization.msgpack_serialize(held))
    with pytest.raises(UserError, match="checkpoint: found no msgpack of Flax"):
        open_flax_msgpack(file)


def test_flax_msgpack_is_read_by_paths(tmp_path):
    file = tmp_path / "checkpoint"
    tree = {"params": {"Dense_0": {"kernel": ARRAYS["a.weight"]}}, "step": 3}
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    found = open_flax_msgpack(file)
    assert found.keys() == {"params/Dense_0/kernel"}
    np.testing.assert_array_equal(found["params/Dense_0/kernel"], ARRAYS["a.weight"])
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="checkpoint: found no msgpack of Flax"):
        open_flax_msgpack(file)
    file.write_bytes(flax.serialization.msgpack_serialize(ARRAYS["b"]))
    with pytest.raises(UserError, match="holds a ndarray, expected arrays by name"):
        open_flax_msgpack(file)


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files.importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "model.ckpt"
    file.touch()
    with pytest.raises(UserError, match=r"torch: not installed, .*'synth2-jax\[interop\]'"):
        open_torch(file)
    with pytest.raises(UserError, match=r"gemma: not installed, needed here; .*\[gemma\]"):
        require("gemma", "here", extra="gemma")


class Touches:
    """An object whose unpickling makes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.interop
def test_torch_files_are_read_and_never_unpickled(tmp_path):
    import torch

    file = tmp_path / "model.ckpt"
    held = {name: torch.from_numpy(array) for name, array in ARRAYS.items() if name != "half"}
    held["half"] = torch.arange(8).to(torch.bfloat16)
    torch.save(held, file)
    check(open_torch(file))
    torch.save({"state_dict": held, "epoch": 3}, file)
    check(open_torch(file))

    planted = tmp_path / "planted"
    for evil in ({"state_dict": held, "callbacks": Touches(planted)}, Touches(planted)):
        torch.save(evil, file)
        with pytest.raises(UserError, match=r"refused, .* would run its code"):
            open_torch(file)
        file.write_bytes(pickle.dumps(evil))  # the format of old, without the archive
        with pytest.raises(UserError, match=r"model\.ckpt: (refused|found no file)"):
            open_torch(file)
        assert not planted.exists()
    Touches(planted).__reduce__()[0](planted)
    assert planted.exists()  # so that the test could have failed

    torch.save(held, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.ckpt: found no file .* cut short"):
        open_torch(file)
    torch.save([torch.zeros(2)], file)
    with pytest.raises(UserError, match="holds a list, expected tensors by name"):
        open_torch(file)


@pytest.mark.interop
def test_torch_files_that_claim_more_than_they_hold_are_refused(tmp_path):
    import torch

    file = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(1).expand(10**12)}, file)
    with pytest.raises(UserError, match="a tensor of 4,000,000,000,000 bytes is larger than the f"):
        open_torch(file)
    torch.save({"a": torch.zeros(3, device="meta")}, file)
    with pytest.raises(UserError, match=r"model\.ckpt: found no file of torch.save"):
        open_torch(file)
    torch.save({"a": torch.zeros(10**6)}, file)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w") as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed, which torch.save never does"):
        open_torch(tmp_path / "bomb.ckpt")


@pytest.mark.interop
@pytest.mark.parametrize("seed", range(3))
def test_torch_files_with_changed_bytes_are_one_line_or_read(tmp_path, seed):
    import torch

    file, rng = tmp_path / "model.ckpt", np.random.default_rng(seed)
    torch.save({"state_dict": {"a": torch.zeros(3), "b": torch.ones(2, 2)}, "epoch": 3}, file)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(100):
        changed = whole.copy()
        changed[rng.integers(len(whole), size=4)] = rng.integers(256, size=4)
        file.write_bytes(changed.tobytes())
        try:
            for tensor in open_torch(file).values():
                np.asarray(tensor)
        except UserError as error:
            assert "\n" not in str(error)
