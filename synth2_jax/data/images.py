"""Bytes of a picture from anywhere -> pixels of one size, or the reason why not.

Files are untrusted: their size is checked before a pixel is decoded, and only common formats are
tried (some decoders of others start programs).

Legend: S side of the square.
"""

import dataclasses
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from synth2_jax.data.rejected import Rejected

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Which pictures are too small or too large to be used.

    Attributes:
      min_side: pixels of the shorter side; web data has many pictures of one pixel.
      max_pixels: width times height, checked before decoding.
      max_bytes: of the file.
    """

    min_side: int = 16
    max_pixels: int = 100_000_000
    max_bytes: int = 64 << 20

    def __post_init__(self):
        if min(self.min_side, self.max_pixels, self.max_bytes) < 1:
            raise ValueError(f"found {self}, expected limits of at least 1")


def decode_image(contents: bytes, size: int, limits: ImageLimits = ImageLimits()) -> np.ndarray:
    """The middle square of a picture, u8[S,S,3], with S = `size`.

    Turned as EXIF says; the first frame of an animation; transparent parts are white; 16-bit
    values are scaled to 8.

    Raises:
      Rejected: not a picture, a damaged one, or one outside of the limits.
    """
    if len(contents) > limits.max_bytes:
        raise Rejected("image file too large", f"{len(contents):,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here
            with Image.open(io.BytesIO(contents), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > limits.max_pixels:
                    raise Rejected("image too large", f"{width}x{height} pixels")
                if min(width, height) < limits.min_side:
                    raise Rejected("image too small", f"{width}x{height} pixels")
                # JPEG only: decodes at a half, a quarter or an eighth where that is enough.
                image.draft("RGB", (2 * size, 2 * size))
                return middle_square(image, size)
    except UnidentifiedImageError:
        raise Rejected("not an image", f"begins with {contents[:8]!r}") from None
    except Rejected:
        raise
    except Image.DecompressionBombError as error:  # PIL's own limit, twice its MAX_IMAGE_PIXELS
        raise Rejected("image too large", str(error)) from None
    # Decoders fail in any way on damaged files: PIL's own list names OSError, SyntaxError,
    # ValueError, struct.error, Image.DecompressionBombError and more.
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise Rejected("corrupt image", detail) from error


def middle_square(image: Image.Image, size: int) -> np.ndarray:
    """As `decode_image` of a picture that is opened already; Rejected: floating-point pixels."""
    return _square(ImageOps.exif_transpose(_rgb(image)), size)


def encode_png(pixels: np.ndarray) -> bytes:
    """The file of a picture u8[H,W,3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    exif = image.getexif()
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        wide = image.mode in _SIXTEEN_BITS or values.max() > 255
        values = np.clip(values // 257 if wide else values, 0, 255).astype(np.uint8)
        converted = Image.fromarray(values).convert("RGB")
    elif image.mode == "F":
        raise Rejected("unsupported pixels", "floating point")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        converted = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        converted = converted.convert("RGB")
    else:
        converted = image.convert("RGB")
    converted.info.pop("exif", None)
    converted.getexif().update(exif)
    return converted


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Cuts before it scales: a picture of 10,000 x 1 pixels must not become one of a million."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
