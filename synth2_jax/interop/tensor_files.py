"""Named tensors of other people's files, opened without being read: safetensors, torch, Flax.

Nothing is unpickled but by `torch.load(weights_only=True)`, which makes tensors and no other
object.
"""

import functools
import importlib.util
import io
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.serialization
import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from synth2_jax.errors import UserError
from synth2_jax.interop.json_file import parse_object, read_object
from synth2_jax.interop.lazy_array import Index, LazyArray, of_array

Tensors = dict[str, LazyArray]
_BIN = "pytorch_model.bin"

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# Where the tensors are in what a training saved, the first that is there: Lightning's, and
# LlamaGen's, whose own code takes the averaged parameters where there are some.
_INSIDE = ("state_dict", "ema", "model")
# Objects besides tensors that trainings save: Lightning's own, and their command line.
_UNREAD = re.compile(r"(pytorch_lightning|lightning)\.|argparse\.Namespace$")
_INDEX = ".safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes, the format's own limit
_MAX_AXES = 32
_GAP = 512  # bytes between two pieces from which on they are read apart; a disk reads sectors
_BLOCK = 8 * 2**20  # bytes of rows that are read together


def open_weights(path: str | os.PathLike[str]) -> Tensors:
    """Tensors of a file of safetensors or torch, or of a folder's; safetensors where it has both.

    Raises:
      UserError: as `open_safetensors` and `open_torch`.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)
    if any(path.glob("*.safetensors*")) or not any(path.glob(f"{_BIN}*")):
        return open_safetensors(path)
    index = path / f"{_BIN}.index.json"
    return _open_by_index(index, open_torch) if index.is_file() else open_torch(path / _BIN)


def open_safetensors(path: str | os.PathLike[str]) -> Tensors:
    """Tensors of a .safetensors file, or of a folder's: one file, or several with their index.

    Raises:
      UserError: no such file, several without an index, files of the index that are not there (all
        of them are named), or one that is cut short or not in this format.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return _open_safetensors_file(path)
    indexes = sorted(path.glob(f"[!.]*{_INDEX}"))
    files = sorted(path.glob("[!.]*.safetensors"))  # macOS adds "._*"
    if len(indexes) == 1:
        return _open_by_index(indexes[0], _open_safetensors_file)
    if len(files) != 1 or indexes:
        raise UserError(
            f"{path}: found {[file.name for file in [*indexes, *files]] or 'no .safetensors'}, "
            f"expected one .safetensors file, or several with one *{_INDEX}"
        )
    return _open_safetensors_file(files[0])


def _open_by_index(index: pathlib.Path, open_file: Callable[[pathlib.Path], Tensors]) -> Tensors:
    held = read_object(index)
    names = held.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{index}: weight_map: found {names!r:.60}, expected file names by tensor")
    files = sorted(set(names.values()))
    if strange := [file for file in files if pathlib.PurePath(file).name != file]:
        raise UserError(f"{index}: names {strange}, expected files beside it")
    if missing := [file for file in files if not (index.parent / file).is_file()]:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(files)} files of {index.name} are not there: "
            f"{', '.join(missing)}"
        )
    opened = {file: open_file(index.parent / file) for file in files}
    lost = sorted(name for name, file in names.items() if name not in opened[file])
    if lost:
        raise UserError(f"{index}: names tensors that its files do not hold: {', '.join(lost)}")
    return {name: opened[file][name] for name, file in names.items()}


def safetensors_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a .safetensors file, checked against the file's size.

    Raises:
      UserError: no such file, another format, or a file that is cut short.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a .safetensors file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise UserError(
                f"{path}: found {size:,} bytes whose header would need {length + 8:,}, expected a "
                ".safetensors file; it is none, or its download was cut short"
            )
        header = parse_object(file.read(length), path)
    entries = {name: told for name, told in header.items() if name != "__metadata__"}
    for name, told in entries.items():
        _check_entry(told, f"{path}: {name}")
    expected = 8 + length + max((told["data_offsets"][1] for told in entries.values()), default=0)
    if size != expected:
        raise UserError(
            f"{path}: found {size:,} bytes, expected {expected:,} by its header; "
            "was its download cut short?"
        )
    return header


def _check_entry(told: Any, where: str) -> None:
    """Raises UserError unless a tensor has as many bytes as its shape and dtype say."""
    if not isinstance(told, dict):
        raise UserError(f"{where}: found {told!r:.60}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = (told.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(offsets):
        raise UserError(
            f"{where}: found dtype {dtype!r:.40}, shape {shape!r:.60} and data_offsets "
            f"{offsets!r:.60}, expected a text and two lists of integers, 0 or more"
        )
    if dtype not in _SAFETENSORS_DTYPES:
        raise UserError(f"{where}: has dtype {dtype!r:.40}, which is not known here")
    num_bytes = math.prod(shape) * np.dtype(_SAFETENSORS_DTYPES[dtype]).itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != num_bytes:
        raise UserError(
            f"{where}: found data_offsets {offsets!r:.60}, expected a start and an end that fit "
            f"dtype {dtype} and shape {shape!r:.60}; is the file damaged?"
        )


def _are_counts(values: Any) -> bool:
    if not isinstance(values, list) or len(values) > _MAX_AXES:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _open_safetensors_file(path: pathlib.Path) -> Tensors:
    header = safetensors_header(path)
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    tensors = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        dtype = np.dtype(_SAFETENSORS_DTYPES[told["dtype"]])
        tensors[name] = _in_file(path, start + told["data_offsets"][0], told["shape"], dtype)
    return tensors


def _in_file(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
    """An array in C order. Read, not mapped: pages of a mapped file would count as our memory.

    Of a row that is split, as by a device's part of a later axis, its own piece alone is read.
    """
    shape = tuple(shape)

    def read(box: Index) -> np.ndarray:
        lengths = [part.stop - part.start for part in box]
        found = np.empty(lengths, dtype)
        if not found.size:
            return found
        # From `axis` on, a piece of each row lies in the file without a gap.
        partial = [i for i, size in enumerate(shape) if lengths[i] != size]
        axis = partial[-1] if partial else 0
        row = math.prod(shape[axis:])
        start = box[axis].start * math.prod(shape[axis + 1 :]) if shape else 0
        rows = np.arange(math.prod(shape[:axis])).reshape(shape[:axis])[box[:axis]].ravel()
        pieces = found.reshape(rows.size, -1)
        at_once = 1
        if (row - pieces.shape[1]) * dtype.itemsize < _GAP:
            at_once = max(1, _BLOCK // (row * dtype.itemsize))
        with open(path, "rb", buffering=0) as file:
            for first, stop in _neighbours(rows, at_once):
                count = (stop - first - 1) * row + pieces.shape[1]
                file.seek(offset + (int(rows[first]) * row + start) * dtype.itemsize)
                if stop - first == 1:
                    _read_whole(file, pieces[first], path)
                    continue
                block = np.empty((stop - first) * row, dtype)
                _read_whole(file, block[:count], path)
                pieces[first:stop] = block.reshape(-1, row)[:, : pieces.shape[1]]
        return found

    return LazyArray(shape, dtype, read)


def _neighbours(rows: np.ndarray, at_most: int) -> Iterator[tuple[int, int]]:
    """Ranges of positions in the ascending `rows` whose rows follow upon each other."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    for first, end in zip([0, *ends], [*ends, rows.size], strict=True):
        for start in range(first, end, at_most):
            yield start, min(start + at_most, end)


def _read_whole(file: io.RawIOBase, array: np.ndarray, path: pathlib.Path) -> None:
    """Fills a contiguous array from where the file stands."""
    left = memoryview(array.view(np.uint8))
    while left:
        count = file.readinto(left)  # of at most 2 GiB
        if not count:
            raise UserError(f"{path}: ended while it was read; has it changed?")
        left = left[count:]


def open_torch(path: str | os.PathLike[str]) -> Tensors:
    """Tensors of a file that `torch.save` wrote, by their names joined with dots.

    What a training saved, such as Lightning's {"state_dict": ...}, is looked into (`_INSIDE`),
    without Lightning.

    Raises:
      UserError: no such file, PyTorch not installed, a file cut short, or one that holds more than
        tensors: loading it would run code of whoever made it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected one that torch.save wrote")
    require("torch", f"to read {path}")
    import torch

    try:
        held = _load_torch(path)
        if isinstance(held, Mapping):
            held = next((held[key] for key in _INSIDE if isinstance(held.get(key), Mapping)), held)
        if not isinstance(held, Mapping):
            raise UserError(f"{path}: holds a {type(held).__name__}, expected tensors by name")
        return {
            str(name): _of_torch(tensor, f"{path}: {name}", path.stat().st_size)
            for name, tensor in held.items()
            if isinstance(tensor, torch.Tensor)
        }
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, since it holds more than tensors and loading it would run its code: "
            f"{_more_than_tensors(path, error)}"
        ) from error
    except Exception as error:  # torch raises many types on damaged bytes
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise UserError(
            f"{path}: found no file of torch.save that can be read ({reason}); "
            "was its download cut short?"
        ) from error


class _Unread:
    """Takes the place of objects that a training saved besides its tensors, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Unread":
        del args, kwargs
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        del state


def _more_than_tensors(path: pathlib.Path, error: pickle.UnpicklingError) -> str:
    """The functions and classes that a file calls for, or what torch says where it names none."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        names = []
    reason = re.sub(r"\x1b\[[\d;]*m", "", " ".join(str(error).split()))
    return ", ".join(sorted(names)) or f"{reason:.300}"


def _load_torch(path: pathlib.Path) -> Any:
    """Loads a file; objects of known trainings (`_UNREAD`) are neither imported nor made."""
    import torch

    with zipfile.ZipFile(path) as archive:  # torch.save compresses nothing: a bomb would be
        if packed := [one.filename for one in archive.infolist() if one.compress_type]:
            raise UserError(f"{path}: found {packed[0]!r} compressed, which torch.save never does")
    load = functools.partial(torch.load, path, map_location="cpu", weights_only=True, mmap=True)
    try:
        return load()
    except pickle.UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not names or not all(_UNREAD.match(name) for name in names):
            raise
        with torch.serialization.safe_globals([(_Unread, name) for name in names]):
            return load()


def _of_torch(tensor: Any, where: str, file_bytes: int) -> LazyArray:
    import torch

    tensor = tensor.detach()
    num_bytes = tensor.numel() * tensor.element_size()
    if num_bytes > file_bytes:  # one number, expanded
        raise UserError(f"{where}: a tensor of {num_bytes:,} bytes is larger than the file")
    if tensor.dtype == torch.bfloat16:  # which numpy lacks
        return of_array(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return of_array(tensor.numpy())


def open_flax_msgpack(path: str | os.PathLike[str]) -> Tensors:
    """Arrays of a file that `flax.serialization` wrote, by their paths joined with "/".

    Raises:
      UserError: no such file, or one that is cut short or not in this format.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected one that flax.serialization wrote")
    try:
        held = flax.serialization.msgpack_restore(path.read_bytes())
        if not isinstance(held, Mapping):
            raise UserError(f"{path}: holds a {type(held).__name__}, expected arrays by name")
        return {
            name: of_array(np.asarray(array))
            for name, array in traverse_util.flatten_dict(held, sep="/").items()
            if isinstance(array, np.ndarray | np.generic | jax.Array)
        }
    except UserError:
        raise
    except Exception as error:  # msgpack raises many types on other bytes
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise UserError(
            f"{path}: found no msgpack of Flax that can be read ({reason}); "
            "was its download cut short?"
        ) from error


def require(package: str, purpose: str, extra: str = "interop") -> None:
    """Raises UserError, which says what to install, unless `package` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{package}: not installed, needed {purpose}; pip install 'synth2-jax[{extra}]'"
        )
