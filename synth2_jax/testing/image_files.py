"""Files of pictures in tests, and tar files as web data sets have them."""

import io
import pathlib
import tarfile
from collections.abc import Iterable

import numpy as np
from PIL import Image


def picture(pixels: np.ndarray, format: str = "PNG") -> bytes:
    """Returns the image file of u8[H,W,3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write_tar(path: pathlib.Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, contents) in their order."""
    with tarfile.open(path, "w") as tar:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
