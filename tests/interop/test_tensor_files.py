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
    "quarter": np.arange(8).astype(ml_dtypes.float8_e4m3fn),
    "whole": np.arange(8, dtype=np.uint16),
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


def check(found, arrays=ARRAYS):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        read = np.asarray(found[name])
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(found["a.weight"][1:, :2, 3:], ARRAYS["a.weight"][1:, :2, 3:])


def test_safetensors_are_read_by_file_and_by_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, file)
    check(open_safetensors(file))
    for folder in (tmp_path, sharded(tmp_path / "sharded")):
        check(open_safetensors(folder))
        for file in list(folder.glob("*.safetensors*")):  # as macOS adds them
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
    for box in itertools.product(*(np.s_[0:n, 0:1, n // 2 : n, 1:1] for n in array.shape)):
        np.testing.assert_array_equal(found[box], array[box])


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
    found = open_safetensors(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.safetensors: ended while it was read"):
        found["b"][1:]


def test_shards_that_are_not_there_are_all_named(tmp_path):
    folder = sharded(tmp_path / "sharded")
    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    held = json.loads(whole)
    held["weight_map"]["lost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(held))
    with pytest.raises(UserError, match="do not hold: lost"):
        open_safetensors(folder)
    index.write_text(whole)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    names = r"model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"
    with pytest.raises(UserError, match=rf"2 of 2 files .* not there: {names}"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    "held, problem",
    [
        *(({"weight_map": names}, "expected file names by tensor") for names in (None, [], "a")),
        *(({"weight_map": {"a": file}}, "expected file names by tensor") for file in (3, ["b"])),
        ({"weight_map": {"a": "../secret.safetensors"}}, "expected files in the same folder"),
        ([], "found .., expected a JSON object"),
    ],
)
def test_an_index_that_is_none_is_one_line(tmp_path, held, problem):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=f"index.json: .*{problem}"):
        open_safetensors(tmp_path)


def test_a_folder_without_a_choice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"found no \.safetensors, expected one"):
        open_safetensors(tmp_path)
    for name in ("a", "b"):
        safetensors.numpy.save_file({"x": ARRAYS["b"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"\['a\.safetensors', 'b\.safetensors'\]"):
        open_safetensors(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        open_safetensors(tmp_path / "none.safetensors")


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def with_header(header):
    """The bytes of a .safetensors file with any header in front of 8 zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


WHOLE = safetensors.numpy.save(ARRAYS)


@pytest.mark.parametrize(
    "contents",
    [
        *(WHOLE[:0], WHOLE[:4], WHOLE[:30], WHOLE[:-1], WHOLE + b"more"),
        b"PK\x03\x04 as torch.save writes it",
        *(
            with_header({"a": held})
            for held in (
                *(
                    entry(shape=shape)
                    for shape in (None, [2.0], [True, 2], [-1, -2], "2", {"2": 2})
                ),
                *(entry(dtype=dtype) for dtype in (["F32"], "F31", "F8_E8M0")),
                *(entry(data_offsets=offsets) for offsets in (["0", "8"], [-8, 0], [8], [8, 0])),
                *(entry(shape=shape) for shape in ([10**15], [2, 2**63], [2, 10**400])),
                entry(shape=[1] * 1000 + [2]),
                entry(shape=[10**15], data_offsets=[0, 4 * 10**15]),
                entry(data_offsets=[8, 16]),
                *([1, 2], None),
            )
        ),
        *map(with_header, ([1, 2], b"[" * 100_000, b'{"a": \xff}')),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, contents):
    path = tmp_path / "model.safetensors"
    path.write_bytes(contents)
    with pytest.raises(UserError, match=r"cut short|and at most 32 axes") as caught:
        open_safetensors(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


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
    arrays = {name: array for name, array in ARRAYS.items() if name != "quarter"}
    held = {n: torch.from_numpy(array) for n, array in arrays.items() if n != "half"}
    held["half"] = torch.arange(8).to(torch.bfloat16)
    for saved in (held, {"state_dict": held, "epoch": 3}):
        torch.save(saved, file)
        check(open_torch(file), arrays)

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
