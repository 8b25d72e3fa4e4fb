"""Pictures from anywhere: what is made of them, and which are turned away."""

import contextlib
import io
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from synth2_jax.data.images import ImageLimits, decode_image, middle_square
from synth2_jax.data.skipped import SkipError
from synth2_jax.errors import UserError


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gradient(width=40, height=30):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 128], axis=-1).astype(np.uint8))


def assert_pixels(contents, image):
    np.testing.assert_array_equal(decode_image(contents, 32), np.asarray(image))


def test_a_picture_of_the_right_size_is_left_as_it_is():
    image = gradient(32, 32)
    assert_pixels(encoded(image), image)
    assert_pixels(b"\r\n" + encoded(image), image)  # some servers send white space first


def test_the_middle_square_is_scaled():
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, 20:80] = 200  # the middle square
    found = decode_image(encoded(Image.fromarray(pixels)), 24)
    assert found.shape == (24, 24, 3) and found.dtype == np.uint8
    assert (found == 200).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_formats(format):
    found = decode_image(encoded(gradient(64, 64), format), 32).astype(int)
    expected = np.asarray(gradient(64, 64).resize((32, 32), Image.Resampling.BICUBIC), int)
    assert np.abs(found - expected).mean() < 5
    if format in ("JPEG", "PNG", "WEBP"):
        contents = encoded(gradient(200, 200), format)
        assert skip_reason(contents[: len(contents) // 2]) == "corrupt image"


def test_all_modes_become_rgb():
    for mode in ("CMYK", "L", "P", "1"):
        format = "JPEG" if mode == "CMYK" else "PNG"
        found = decode_image(encoded(gradient(32, 32).convert(mode), format), 32)
        assert found.shape == (32, 32, 3)
    found = decode_image(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), 32)
    assert found[..., 0].min() > 200 and found[..., 1:].max() < 60  # red
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    found = decode_image(encoded(Image.fromarray(values)), 32)  # scaled and not clipped
    np.testing.assert_allclose(found[..., 0], values / 257, atol=1)
    for alpha, expected in ((0, (255, 255, 255)), (255, (255, 0, 0))):
        image = Image.new("RGBA", (32, 32), (255, 0, 0, alpha))
        assert (decode_image(encoded(image), 32) == expected).all()
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    contents = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(contents, 32)[0, 0] == (255, 0, 0)).all()


def test_a_line_of_pixels_is_cut_before_it_is_scaled():
    found = decode_image(encoded(Image.new("RGB", (60_000, 2))), 256, ImageLimits(min_side=1))
    assert found.shape == (256, 256, 3)  # else 256 x 7,680,000


def skip_reason(contents, **limits):
    with pytest.raises(SkipError) as error:
        decode_image(contents, 32, ImageLimits(**limits))
    assert "\n" not in str(error.value)
    return error.value.reason


def with_chunk(png, name, body, flip=False):
    """A PNG with one more chunk before its pixels; `flip`ped, its checksum is wrong."""
    start = png.index(b"IDAT") - 4
    crc = zlib.crc32(name + body) ^ flip
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return png[:start] + chunk + png[start:]


HUGE_TEXT = b"name\0\0" + zlib.compress(b"a" * (2 << 20))
DAMAGED_EXIF = b"\0\x08\0\x02\x01\x12\0\x03"


@pytest.mark.parametrize(
    ("name", "body", "flip"),
    [
        (b"eXIf", DAMAGED_EXIF, False),
        (b"eXIf", DAMAGED_EXIF, True),
        (b"zTXt", HUGE_TEXT, False),
        (b"iCCP", HUGE_TEXT, False),
        (b"tEXt", b"Raw profile type exif\0\nexif\n    8\n4578696600\n", False),
        (b"tEXt", b"Comment\0hello", True),
    ],
)
def test_metadata_of_a_png_does_not_cost_its_pixels(name, body, flip):
    png = encoded(gradient(32, 32))
    assert_pixels(with_chunk(png, name, body, flip), gradient(32, 32))


def test_a_png_is_turned_as_its_camera_says_although_its_text_is_damaged():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    png = encoded(gradient(32, 32), exif=exif)
    for contents in (png, with_chunk(png, b"tEXt", b"Comment\0hello", flip=True)):
        assert_pixels(contents, np.asarray(gradient(32, 32))[::-1, ::-1])


@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"restart_marker_rows": 1}, {"progressive": True}]
)
def test_a_jpeg_may_lack_its_end_but_no_pixels(options):
    """However it is cut, what is accepted has the pixels of the whole file."""
    for blur in (0, 8):
        pixels = np.random.default_rng(0).integers(0, 256, (72, 64, 3), np.uint8)
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))
        jpeg = encoded(image, "JPEG", quality=75, **options)
        expected = decode_image(jpeg, 64)
        for lost in (1, 2) if options in ({}, {"optimize": True}) else ():
            np.testing.assert_array_equal(decode_image(jpeg[:-lost], 64), expected)
        scans = [marker.start() for marker in re.finditer(b"\xff[\xc4\xda]", jpeg)]
        for end in [*scans, *range(700, len(jpeg) - 40, 53), *range(len(jpeg) - 40, len(jpeg))]:
            with contextlib.suppress(SkipError):
                np.testing.assert_array_equal(decode_image(jpeg[:end], 64), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_ends_early_is_not_filled_up_with_gray(options):
    jpeg = encoded(gradient(400, 400), "JPEG", **options)  # its end is not seen at 32 pixels
    for part in (3, 5, 8, 9.5):
        assert skip_reason(jpeg[: int(len(jpeg) * part / 10)]) == "corrupt image"


def test_many_sixteen_bit_pixels_take_little_more_than_themselves():
    contents = encoded(Image.fromarray(np.full((2000, 2000), 257 * 9, np.uint16)))
    tracemalloc.start()
    try:
        assert (decode_image(contents, 32) == 9).all()
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # as numbers of 64 bits: 96 MB
    finally:
        tracemalloc.stop()


def test_what_is_no_picture_or_outside_of_the_limits():
    assert skip_reason(b"") == "not an image"
    assert skip_reason(b"<svg onload=alert(1)>") == "not an image"
    assert skip_reason(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "not an image"  # would start Ghostscript
    assert skip_reason(encoded(Image.new("RGB", (1, 1)))) == "image too small"
    assert skip_reason(encoded(gradient()), max_pixels=1000) == "image too large"
    assert skip_reason(encoded(gradient()), max_bytes=100) == "image file too large"
    floats = Image.fromarray(np.zeros((32, 32), np.float32))
    assert skip_reason(encoded(floats, "TIFF")) == "unsupported pixels"
    with pytest.raises(SkipError, match="too small: 0x5"):
        middle_square(Image.new("RGB", (0, 5)), 32)
    with pytest.raises(UserError, match="min_side: found 0, expected at least 1"):
        ImageLimits(min_side=0)


def test_a_decompression_bomb_is_not_unpacked():
    side = 60_000  # 10 GB of pixels in a file of a few bytes
    png = bytearray(encoded(gradient()))
    start = png.index(b"IHDR")
    png[start + 4 : start + 12] = struct.pack(">II", side, side)
    png[start + 17 : start + 21] = struct.pack(">I", zlib.crc32(png[start : start + 17]))
    assert skip_reason(bytes(png)) == "image too large"
