from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from smope.errors import UserError
from smope.streams.pixels.decode import decode


def as_array(image: Image.Image) -> numpy.ndarray:
    assert image.mode == "RGB"
    return numpy.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", [".bmp", ".jfif", ".png"])
def test_every_suffix_is_read(tmp_path, suffix, pixels):
    path = tmp_path / f"picture{suffix}"
    picture = Image.fromarray(pixels(0))
    mode = "L" if suffix == ".pgm" else "RGB"
    picture.convert(mode).save(path, format="JPEG" if suffix == ".jfif" else None)
    image = decode(path)
    assert image.size == (32, 32)
    assert numpy.abs(as_array(image) - as_array(picture.convert(mode).convert("RGB"))).mean() < 12
    assert (as_array(decode(path.read_bytes())) == as_array(image)).all()


def test_lossless_pixels_are_kept(tmp_path, pixels, write_image):
    assert (as_array(decode(str(write_image(tmp_path / "a.png", 5)))) == pixels(5)).all()


def test_exif_orientation_is_applied(tmp_path, pixels):
    picture = Image.fromarray(pixels(1, 40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    assert (
        as_array(decode(tmp_path / "turned.png")) == as_array(picture.rotate(-90, expand=True))
    ).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode, pixels):
    layer = Image.fromarray(pixels(2)).convert(mode)
    alpha = numpy.zeros((32, 32), numpy.uint8)
    alpha[:, 16:] = 255
    layer.putalpha(Image.fromarray(alpha))
    layer.save(tmp_path / "a.png")
    image = as_array(decode(tmp_path / "a.png"))
    assert (image[:, :16] == 255).all()
    assert (image[:, 16:] == as_array(layer.convert("RGB"))[:, 16:]).all()


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_transparent_palette_entries_are_white(tmp_path, suffix):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 10, 20])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / f"a{suffix}", transparency=0)
    image = as_array(decode(tmp_path / f"a{suffix}"))
    assert image[0, 0].tolist() == [255, 255, 255] and image[2, 2].tolist() == [200, 10, 20]


def test_transparent_gray_level_is_white(tmp_path):
    picture = Image.new("L", (2, 1), 9)
    picture.putpixel((0, 0), 50)
    picture.save(tmp_path / "a.png", transparency=9)
    assert as_array(decode(tmp_path / "a.png"))[0].tolist() == [[50] * 3, [255] * 3]


def test_cmyk(tmp_path, pixels):
    picture = Image.fromarray(pixels(3))
    picture.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.mode == "CMYK"
    assert numpy.abs(as_array(decode(tmp_path / "a.jpg")) - pixels(3)).mean() < 12


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_sixteen_bit_gray_is_scaled(tmp_path, suffix):
    values = numpy.array([[0, 257, 32768, 65535]], dtype=numpy.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert as_array(decode(tmp_path / f"a{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert as_array(decode(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_what_is_no_image_is_named(tmp_path, write_image):
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    with pytest.raises(
        UserError,
        match=r"cannot read image .*notes\.jpg: not a known image format; replace the file",
    ):
        decode(text)
    with pytest.raises(UserError, match=r"cannot read image row 7: not a known image format"):
        decode(b"no picture", "row 7")
    text.write_bytes(b"")
    for empty in (text, str(text), b""):
        with pytest.raises(UserError, match=r"cannot read image row 8: the file is empty; replace"):
            decode(empty, "row 8")
    with pytest.raises(UserError, match=r"cannot read image .*absent\.png: .*No such file"):
        decode(tmp_path / "absent.png")
    path = write_image(tmp_path / "cut.jpg", 0, 64, 64)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        UserError, match=r"cannot read image .*cut\.jpg: image file is truncated .*; replace"
    ):
        decode(path)
    Image.fromarray(numpy.full((2, 2), -1, numpy.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match=r"cannot read image .*f\.tiff: floating-point pixels"):
        decode(tmp_path / "f.tiff")


def declared(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(declared(60_000, 60_000))
    tracemalloc.start()
    with pytest.raises(
        UserError,
        match=r"cannot read image .*bomb\.png: Image size \(3600000000 pixels\) exceeds limit",
    ):
        decode(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("sides", [(2**31 - 1, 2**31 - 1), (10**6, 1), (1, 10**6), (0, 5)])
def test_odd_sizes_are_errors_or_pictures(sides):
    refused = pytest.raises(UserError, match="cannot read image sides")
    # Pillow fills up a few missing rows
    with refused if sides != (1, 10**6) else contextlib.nullcontext():
        assert decode(declared(*sides), "sides").size == sides


def test_a_bomb_in_the_text_of_a_png_is_refused(pixels):
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    Image.fromarray(pixels(0)).save(buffer, "png", pnginfo=info)
    assert len(buffer.getvalue()) < 1_000_000
    with pytest.raises(UserError, match=r"cannot read image text: .*[Dd]ecompress"):
        decode(buffer.getvalue(), "text")


def test_a_huge_picture_is_a_picture():
    """Large, and no bomb: 8,000 by 6,000 pixels from a camera."""
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 6000), "red").save(buffer, "png")
    assert decode(buffer.getvalue()).size == (8000, 6000)
