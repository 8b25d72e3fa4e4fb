"""Bytes of a picture -> pixels of one size, or the reason why it is skipped.

Files are untrusted: their size is checked before a pixel is decoded, and only common formats are
tried (decoders of some other formats start programs).

Legend: S side of the square.
"""

import contextlib
import dataclasses
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from synth2_jax.config import check_counts
from synth2_jax.data.skipped import SkipError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_ROWS = 256  # of a strip
_TURNS = {  # by the values of EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NOT_AN_IMAGE, _CORRUPT = "not an image", "corrupt image"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _END_OF_JPEG, _RESTART_INTERVAL = b"\xff\xd8", b"\xff\xd9", b"\xff\xdd"  # markers
_ANY_DATA = [bytes([bits]) * 64 for bits in (0x00, 0x55, 0xAA, 0xFE)]


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Limits on the size of pictures.

    Attributes:
      min_side: pixels of the shorter side; web data has many pictures of one pixel.
      max_pixels: width times height, checked before decoding.
      max_bytes: of the file.
    """

    min_side: int = 16
    max_pixels: int = 100_000_000
    max_bytes: int = 64 << 20

    def __post_init__(self):
        check_counts(self, "min_side", "max_pixels", "max_bytes")


def decode_image(contents: bytes, size: int, limits: ImageLimits = ImageLimits()) -> np.ndarray:
    """The middle square of a picture, u8[S,S,3], with S = `size`.

    It is turned as EXIF says. Of an animation it is the first frame. Transparent parts become
    white, 16-bit values are scaled to 8. Damage that leaves all pixels is ignored: in a PNG's
    metadata, at a JPEG's end, white space before the file.

    Raises:
      SkipError: not a picture, a damaged one, or one outside of the limits.
    """
    if len(contents) > limits.max_bytes:
        raise SkipError("image file too large", f"{len(contents):,} bytes")
    if contents[:1].isspace():  # some servers send white space before the file
        contents = contents.lstrip()

    def decode(contents: bytes) -> np.ndarray:
        with _opened(contents, limits) as image:
            # JPEG only: decodes at a half, a quarter or an eighth of the size if that is enough.
            image.draft("RGB", (2 * size, 2 * size))
            return middle_square(image, size)

    try:
        return decode(contents)
    except SkipError as error:
        damaged = error.reason in (_NOT_AN_IMAGE, _CORRUPT)
        repaired = _repaired(contents, limits) if damaged else None
        if repaired is None:
            raise
    return decode(repaired)


@contextlib.contextmanager
def _opened(contents: bytes, limits: ImageLimits) -> Iterator[Image.Image]:
    """Opens a picture within the limits; errors of its decoder are raised as SkipError."""
    with warnings.catch_warnings(), _one_kind_of_error(contents[:8]):
        warnings.simplefilter("ignore")  # about sizes, which are checked here
        with Image.open(io.BytesIO(contents), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise SkipError("image too large", f"{width}x{height} pixels")
            if min(width, height) < limits.min_side:
                raise SkipError("image too small", f"{width}x{height} pixels")
            yield image


@contextlib.contextmanager
def _one_kind_of_error(beginning: bytes = b"") -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise SkipError(_NOT_AN_IMAGE, f"begins with {beginning!r}") from None
    except SkipError:
        raise
    except Image.DecompressionBombError as error:  # PIL's own limit, twice its MAX_IMAGE_PIXELS
        raise SkipError("image too large", str(error)) from None
    # Decoders raise any error on damaged files: PIL lists OSError, SyntaxError, ValueError,
    # struct.error, Image.DecompressionBombError and more.
    except Exception as error:
        raise SkipError(_CORRUPT, " ".join(f"{type(error).__name__}: {error}".split())) from error


def middle_square(image: Image.Image, size: int) -> np.ndarray:
    """Does what `decode_image` does, for a picture that is already opened.

    Raises:
      SkipError: a damaged picture, one without pixels or with floating-point pixels.
    """
    if not min(image.size):
        raise SkipError("image too small", f"{image.width}x{image.height} pixels")
    with _one_kind_of_error():
        image.load()  # may turn the picture, and then updates its EXIF
        turn = None
        with contextlib.suppress(Exception):  # damaged EXIF raises any error, as pixels do
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        image = _eight_bits(image)
        image = image if turn is None else image.transpose(turn)
        # Cuts before it scales: a picture of 10,000 x 1 pixels must not become one of a million.
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if image.width != image.height:  # else it would be one more copy
            image = image.crop((left, top, left + side, top + side))
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB"))


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns the PNG file of a picture u8[H,W,3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _repaired(contents: bytes, limits: ImageLimits) -> bytes | None:
    """Returns the file without its damage, or None if pixels are damaged."""
    if contents.startswith(_PNG):
        return _png_of_pixels(contents)
    # In progressive files and files with restart markers, whole parts may be missing.
    if not contents.startswith(_JPEG) or _RESTART_INTERVAL in contents:
        return None
    # The pixels are complete if they are the same with any data after them.
    cut = contents.rstrip(b"\xff")
    pixels = None
    try:
        for more in (b"", *_ANY_DATA):
            with _opened(cut + more + _END_OF_JPEG, limits) as image:
                found = np.asarray(image)
                pixels = found if pixels is None else pixels
                if "progressive" in image.info or not np.array_equal(found, pixels):
                    return None
    except SkipError:
        return None
    return cut + _END_OF_JPEG


def _png_of_pixels(contents: bytes) -> bytes:
    """Returns a PNG with only the chunks that define its pixels and their orientation."""
    chunks, start = [_PNG], len(_PNG)
    while start + 12 <= len(contents):
        length, name = struct.unpack_from(">I4s", contents, start)
        chunk = contents[start : start + 12 + length]
        whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (name == b"eXIf" and whole):
            chunks.append(chunk)
        start += 12 + length
    return b"".join(chunks)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Converts to 8 bits a channel: mode RGB, or L for shades of gray."""
    if image.mode == "F":
        raise SkipError("unsupported pixels", "floating point")
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        wide = image.mode in _SIXTEEN_BITS or image.getextrema()[1] > 255
        return _by_strips(image, "L", functools.partial(_gray, scale=257 if wide else 1))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _by_strips(image, "RGB", _on_white)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _by_strips(
    image: Image.Image, mode: str, function: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Applies `function` to some rows at a time, which saves memory."""
    made = Image.new(mode, image.size)
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        made.paste(function(image.crop((0, top, image.width, bottom))), (0, top))
    return made


def _gray(strip: Image.Image, scale: int) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(strip) // scale, 0, 255).astype(np.uint8))


def _on_white(strip: Image.Image) -> Image.Image:
    rgba = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
