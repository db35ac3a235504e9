"""More than 8 bits are scaled by what the file says it holds; a guess is never silent."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from smope.errors import UserError
from smope.streams.checking.findings import findings
from smope.streams.checking.inspection import inspect
from smope.streams.pixels.bit_depth import ASSUMED
from smope.streams.pixels.decode import decode
from smope.streams.pixels.preload import preload_images
from smope.streams.source import ImageSet, Source

VALUES = numpy.arange(4096, dtype=numpy.uint16).reshape(64, 64)  # 12 bits
COLOURS = numpy.stack([VALUES, VALUES[::-1], VALUES.T], -1)
SHORT, LONG, FLOAT = 3, 4, 11  # types of TIFF's tags


def tiff(values: numpy.ndarray, **tags: tuple[float, int]) -> bytes:
    """A TIFF with tags by name and type, such as MaxSampleValue=(4095, SHORT)."""
    numbers = {"MaxSampleValue": 281, "SMinSampleValue": 340, "SMaxSampleValue": 341, "White": 262}
    directory, file = ImageFileDirectory_v2(), io.BytesIO()
    for name, (value, kind) in tags.items():
        directory[numbers[name]] = value
        directory.tagtype[numbers[name]] = kind
    Image.fromarray(values).save(file, "tiff", tiffinfo=directory)
    return file.getvalue()


def png(values: numpy.ndarray, significant_bits: Sequence[int] = ()) -> bytes:
    """A PNG of 16 bits, gray or RGB, which Pillow cannot write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = 2 if values.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    parts += [chunk(b"sBIT", bytes(significant_bits))] if significant_bits else []
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pgm(values: numpy.ndarray, largest: int) -> bytes:
    return f"P5 64 64 {largest}\n".encode() + values.astype(">u2").tobytes()


DECLARED = {
    "TIFF MaxSampleValue": (tiff(VALUES, MaxSampleValue=(4095, SHORT)), VALUES),
    "TIFF SMaxSampleValue": (tiff(VALUES, SMaxSampleValue=(4095, SHORT)), VALUES),
    "TIFF 32 bits": (tiff(VALUES.astype(numpy.int32), MaxSampleValue=(4095, LONG)), VALUES),
    "TIFF float": (
        tiff(
            VALUES.astype(numpy.float32) / 4095 - 0.5,
            SMinSampleValue=(-0.5, FLOAT),
            SMaxSampleValue=(0.5, FLOAT),
        ),
        VALUES,
    ),
    "TIFF white is zero": (tiff(VALUES * 16, White=(0, SHORT)), 4095 - VALUES),
    "PNG sBIT": (png(VALUES, [12]), VALUES),
    "PNG sBIT at the top": (png(VALUES << 4, [12]), VALUES),
    "PNG sBIT in colour": (png(COLOURS, [12, 12, 12]), COLOURS),
    "PNG sBIT in colour at the top": (png(COLOURS << 4, [12, 12, 12]), COLOURS),
    "PGM maxval": (pgm(VALUES, 4095), VALUES),
}


@pytest.mark.parametrize("name", DECLARED)
def test_the_range_that_the_file_declares(name: str) -> None:
    content, values = DECLARED[name]
    picture = decode(content, name)
    expected = values.astype(float) * 255 / 4095
    expected = expected if values.ndim == 3 else expected[..., None]
    assert numpy.abs(numpy.asarray(picture) - expected).max() <= 1
    assert ASSUMED not in picture.info


@pytest.mark.parametrize(
    ("content", "largest", "note"),
    [
        (tiff(VALUES), 16, "values 0 to 4095, taken as 0 to 65535"),
        (png(VALUES), 16, "values 0 to 4095, taken as 0 to 65535"),
        (png(COLOURS), 15, "values 0 to 4095, taken as 0 to 65535"),
        (tiff((VALUES // 16).astype(numpy.int32)), 255, "values 0 to 255, taken as 0 to 255"),
        (tiff((VALUES // 16).astype(numpy.float32)), 255, "values 0 to 255, taken as 0 to 255"),
        (tiff((VALUES / 4095).astype(numpy.float32)), 255, "values 0 to 1, taken as 0 to 1"),
        (tiff(VALUES, MaxSampleValue=(100, SHORT)), 16, "values 0 to 4095, taken as 0 to 65535"),
    ],
)
def test_a_guess_is_noted(content: bytes, largest: int, note: str) -> None:
    picture = decode(content, "a")
    assert numpy.asarray(picture).max() == largest and picture.info[ASSUMED] == note


@pytest.mark.parametrize("content", [tiff(VALUES * 16), png(VALUES * 16), png(COLOURS * 16)])
def test_full_16_bits_are_no_guess(content: bytes) -> None:
    picture = decode(content, "a")
    assert numpy.asarray(picture).max() == 255 and ASSUMED not in picture.info


@pytest.mark.parametrize("value", [-1.0, 1e9, numpy.nan, numpy.inf])
def test_floats_without_a_usual_range_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"floating-point pixels .* no known range; write SMin"):
        decode(tiff(numpy.full((2, 2), value, numpy.float32)), "a")


def test_training_warns_once_and_the_check_names_every_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(png(VALUES + number))
    source = Source("some", ("a",), ImageSet([0, 0, 0], paths[:3]), ImageSet([0], paths[3:]))
    with caplog.at_level(logging.WARNING):
        preload_images(source)
    (record,) = caplog.records
    assert (
        "images of more than 8 bits that do not say which range they use: 4, such"
        in record.getMessage()
    )
    assert "values 0 to 4095, taken as 0 to 65535" in record.getMessage()
    by_kind = {finding.kind: finding for finding in findings(inspect(source, tmp_path))}
    assert by_kind["assumed_range"].level == "warning"
    assert [item.names for item in by_kind["assumed_range"].items] == [
        (f"{number}.png",) for number in range(4)
    ]
