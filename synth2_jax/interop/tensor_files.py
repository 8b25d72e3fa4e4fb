"""Named tensors of third-party files, opened without being read: safetensors, torch, Flax.

Nothing is unpickled but by `torch.load(weights_only=True)`, which makes tensors and no other
object.
"""

import contextlib
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
import safetensors
from flax import traverse_util

from synth2_jax.errors import UserError
from synth2_jax.interop.json_file import parse_object, read_object
from synth2_jax.interop.lazy_array import Index, LazyArray, of_array

Tensors = dict[str, LazyArray]
_BIN = "pytorch_model.bin"
_DTYPES = {
    **{
        f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}")
        for kind in "IU"
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(bool),
}
# Keys that hold the tensors in a training's file, the first that is there: Lightning's, and
# LlamaGen's, whose own code prefers the averaged parameters.
_INSIDE = ("state_dict", "ema", "model")
# Objects besides tensors that trainings save: Lightning's own, and their command line.
_UNREAD = re.compile(r"(pytorch_lightning|lightning)\.|argparse\.Namespace$")
_INDEX = ".safetensors.index.json"
_MAX_AXES = 32
_GAP = 512  # bytes between two pieces from which on they are read apart; a disk reads sectors
_BLOCK = 8 * 2**20  # bytes of rows that are read together


def open_weights(path: str | os.PathLike[str]) -> Tensors:
    """Tensors of a file of safetensors or torch, or of a folder, safetensors if it has both.

    Raises as `open_safetensors` and `open_torch`.
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
        raise UserError(f"{index}: names {strange}, expected files in the same folder")
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
    try:
        with safetensors.safe_open(path, "numpy"):  # checks the header
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({error!s:.200}), expected a .safetensors file; was its "
            "download cut short?"
        ) from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return parse_object(file.read(length), path)


def _open_safetensors_file(path: pathlib.Path) -> Tensors:
    header = safetensors_header(path)
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    tensors = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = told["dtype"], tuple(told["shape"])
        if dtype not in _DTYPES or len(shape) > _MAX_AXES:
            raise UserError(
                f"{path}: {name}: found dtype {dtype} and {len(shape)} axes, expected one of "
                f"{', '.join(_DTYPES)} and at most {_MAX_AXES} axes"
            )
        tensors[name] = _in_file(path, start + told["data_offsets"][0], shape, _DTYPES[dtype])
    return tensors


def _in_file(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
    """An array in C order. It is read, not mapped as by safetensors' own slices: mapped pages count
    as memory of the process, 0.2 times the parameters of a T5 (benchmarks/import_text_encoder.py).

    Of a row that is split, as by a device's part of a later axis, its own piece alone is read.
    """

    def read(box: Index) -> np.ndarray:
        lengths = [part.stop - part.start for part in box]
        found = np.empty(lengths, dtype)
        if not found.size:
            return found
        # From `axis` on, a piece of each row lies in the file without a gap.
        axis = max((i for i, size in enumerate(shape) if lengths[i] != size), default=0)
        row = math.prod(shape[axis:])
        start = box[axis].start * math.prod(shape[axis + 1 :]) if shape else 0
        rows = np.arange(math.prod(shape[:axis])).reshape(shape[:axis])[box[:axis]].ravel()
        pieces = found.reshape(rows.size, -1)
        together = (row - pieces.shape[1]) * dtype.itemsize < _GAP
        at_once = max(1, _BLOCK // (row * dtype.itemsize)) if together else 1
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


@contextlib.contextmanager
def _damage_in_one_line(path: pathlib.Path, expected: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch and msgpack raise many types on damaged bytes
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise UserError(
            f"{path}: found no {expected} that can be read ({reason}); was its download cut short?"
        ) from error


def open_torch(path: str | os.PathLike[str]) -> Tensors:
    """Tensors of a file that `torch.save` wrote, by their names joined with dots.

    A training's file, such as Lightning's {"state_dict": ...}, is read without Lightning.

    Raises:
      UserError: no such file, PyTorch not installed, a file cut short, or one that holds more than
        tensors: loading it would run code of whoever made it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected one that torch.save wrote")
    require("torch", f"to read {path}")
    import torch

    with _damage_in_one_line(path, "file of torch.save"):
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


class _Unread:
    """Takes the place of objects that a training saved besides its tensors, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Unread":
        del args, kwargs
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        del state


def _load_torch(path: pathlib.Path) -> Any:
    """Loads a file; objects of known trainings (`_UNREAD`) are neither imported nor made."""
    import torch

    with zipfile.ZipFile(path) as archive:  # torch.save compresses nothing: a bomb would be
        if packed := [one.filename for one in archive.infolist() if one.compress_type]:
            raise UserError(f"{path}: found {packed[0]!r} compressed, which torch.save never does")
    load = functools.partial(torch.load, path, map_location="cpu", weights_only=True, mmap=True)
    names: list[str] = []
    try:
        return load()
    except pickle.UnpicklingError as error:
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        reason = error
    try:
        if names and all(map(_UNREAD.match, names)):
            with torch.serialization.safe_globals([(_Unread, name) for name in names]):
                return load()
    except pickle.UnpicklingError as error:
        reason = error
    said = re.sub(r"\x1b\[[\d;]*m", "", " ".join(str(reason).split()))
    raise UserError(
        f"{path}: refused, since it holds more than tensors and loading it would run its code: "
        f"{', '.join(sorted(names)) or f'{said:.300}'}"
    ) from reason


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
    with _damage_in_one_line(path, "msgpack of Flax"):
        held = flax.serialization.msgpack_restore(path.read_bytes())
        if not isinstance(held, Mapping):
            raise UserError(f"{path}: holds a {type(held).__name__}, expected arrays by name")
        return {
            name: of_array(np.asarray(array))
            for name, array in traverse_util.flatten_dict(held, sep="/").items()
            if isinstance(array, np.ndarray | np.generic | jax.Array)
        }


def require(package: str, purpose: str, extra: str = "interop") -> None:
    """Raises UserError, which says what to install, unless `package` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{package}: not installed, needed {purpose}; pip install 'synth2-jax[{extra}]'"
        )
