"""Looking at images one by one: what is unusual, what is broken, and the hash that training
records.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from smope.errors import UserError
from smope.streams.checking.inspection import (
    TRAITS,
    InspectedImage,
    Inspection,
    incomplete_folder,
    inspect,
    task_contents,
)
from smope.streams.partition import divide
from smope.streams.pixels.decode import decode
from smope.streams.pixels.preload import preload_images
from smope.streams.source import ImageSet, Source
from smope.streams.stream import build_stream

Pixels = Callable[..., numpy.ndarray]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bit_colours() -> bytes:
    """6 by 4 pixels; Pillow cannot write such files."""
    rows = b"".join(b"\0" + bytes(range(36)) for _ in range(4))

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def files(pixels: Pixels) -> dict[str, bytes]:
    """An encoded image of every kind, 48 wide and 40 high where nothing else is said."""
    image, other = (Image.fromarray(pixels(seed, 48, 40)) for seed in (1, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(numpy.arange(48 * 40, dtype=numpy.uint16).reshape(40, 48) * 30)
    more = {"save_all": True, "append_images": [other]}
    return {
        "plain.png": encode(image, "PNG"),
        "plain.jpg": encode(image, "JPEG"),
        "gray.jpg": encode(image.convert("L"), "JPEG"),
        "black_and_white.png": encode(image.convert("1"), "PNG"),
        "gray_alpha.png": encode(image.convert("LA"), "PNG"),
        "palette.png": encode(image.convert("P"), "PNG"),
        "see_through_palette.png": encode(image.convert("P"), "PNG", transparency=3),
        "alpha.png": encode(image.convert("RGBA"), "PNG"),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "lab.tif": encode(image.convert("LAB"), "TIFF"),
        "deep.png": encode(deep, "PNG"),
        "deep.tif": encode(deep, "TIFF"),
        "deep_colours.png": png_of_16_bit_colours(),
        "turned.jpg": encode(image, "JPEG", exif=exif),
        "turned.png": encode(image, "PNG", exif=exif),
        "moving.gif": encode(
            image.convert("P"), "GIF", save_all=True, append_images=[other.convert("P")]
        ),
        "moving.png": encode(image, "PNG", **more),
        "moving.webp": encode(image, "WEBP", **more),
        "pages.tif": encode(image, "TIFF", **more),
        "two.mpo": encode(image, "MPO", **more),
    }


def inspect_images(
    images: list, targets: list[int] | None = None, names: list[str] | None = None
) -> Inspection:
    targets = targets or [0] * len(images)
    nothing = ImageSet([], [])
    return inspect(Source("some", ("cat", "dog"), ImageSet(targets, images, names), nothing))


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("plain.png", ()),
        ("plain.jpg", ()),
        ("gray.jpg", ("grayscale",)),
        ("black_and_white.png", ("grayscale",)),
        ("gray_alpha.png", ("grayscale", "alpha")),
        ("palette.png", ("palette",)),
        ("see_through_palette.png", ("palette", "alpha")),
        ("alpha.png", ("alpha",)),
        ("cmyk.jpg", ("CMYK",)),
        ("lab.tif", ("other-mode",)),
        ("deep.png", ("grayscale", "16-bit")),
        ("deep.tif", ("grayscale", "16-bit")),
        ("deep_colours.png", ("16-bit",)),
        ("turned.jpg", ("EXIF-rotated",)),
        ("turned.png", ("EXIF-rotated",)),
        ("moving.gif", ("palette", "animated or multi-page")),
        ("moving.png", ("animated or multi-page",)),
        ("moving.webp", ("animated or multi-page",)),
        ("pages.tif", ("animated or multi-page",)),
        ("two.mpo", ("animated or multi-page",)),
    ],
)
def test_what_is_unusual_about_an_image(
    name: str, traits: tuple[str, ...], files: dict[str, bytes]
) -> None:
    (look,) = inspect_images([files[name]]).images
    size = (
        (6, 4)
        if name == "deep_colours.png"
        else (40, 48)
        if name.startswith("turned")
        else (48, 40)
    )
    assert (look.problem, look.traits, look.size) == ("", traits, size)


def test_every_kind_is_tried(files: dict[str, bytes]) -> None:
    found = inspect_images(list(files.values()))
    assert {trait for look in found.images for trait in look.traits} == set(TRAITS)


def test_what_can_be_decoded_can_be_described(files: dict[str, bytes]) -> None:
    """Animations of which the later pictures are cut off or damaged, for instance."""
    draw = numpy.random.default_rng(0)
    damaged = []
    for content in files.values():
        damaged += [content[: len(content) * tenth // 10] for tenth in range(1, 10)]
        for _ in range(20):
            changed = bytearray(content)
            for place in draw.integers(len(content), size=3):
                changed[place] = draw.integers(256)
            damaged.append(bytes(changed))
    readable = 0
    for look, content in zip(inspect_images(damaged).images, damaged, strict=True):
        try:
            size = decode(content).size
        except UserError:
            assert look.problem
        else:
            readable += 1
            assert (look.problem, look.size) == ("", size)
    assert 0 < readable < len(damaged)


def test_why_images_cannot_be_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    contents = {"cut.jpg": files["plain.jpg"][:-200], "text.jpg": b"hello", "nothing.png": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "away.jpg")
    (tmp_path / "good.png").write_bytes(files["plain.png"])
    paths = [tmp_path / name for name in (*contents, "link.jpg", "good.png")]
    source = Source("some", ("cat", "dog"), ImageSet([0, 0, 1, 1, 1], paths), ImageSet([], []))
    found = inspect(source, tmp_path)
    problems = {look.name: look.problem for look in found.images}
    assert problems.pop("cut.jpg").startswith("image file is truncated")
    assert problems == {
        "text.jpg": "not a known image format",
        "nothing.png": "the file is empty",
        "link.jpg": "No such file or directory",
        "good.png": "",
    }
    assert found.counts("train") == [0, 1]
    assert list(found.source.train.targets) == [1]
    assert [look.name for look in found.readable] == ["good.png"]


def test_an_image_that_may_not_be_read(
    tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / "secret.png")

    def refuse(place: Path) -> bytes:  # permissions alone would not stop a superuser
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (look,) = inspect_images([path]).images
    assert look.problem == "Permission denied"


def test_the_content_hash_is_that_of_training(
    source: Source, files: dict[str, bytes], tmp_path: Path
) -> None:
    stream = build_stream(source, image_size=8, seed=0, num_tasks=2)
    assert inspect(source).content_hash == stream.content_hash
    paths = []
    for name, content in files.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    broken = [*files.values(), b"hello"]
    targets = [index % 2 for index in range(len(broken))]
    mixed = Source(
        "mixed",
        ("cat", "dog"),
        ImageSet(targets, broken, tasks=targets),
        ImageSet(targets[: len(paths)], paths, tasks=targets[: len(paths)]),
    )
    assert inspect(mixed).content_hash == preload_images(mixed, "skip").content_hash


def test_equal_pixels_are_found_in_different_files(files: dict[str, bytes], pixels: Pixels) -> None:
    image = decode(files["plain.png"])
    looks = inspect_images(
        [files["plain.png"], encode(image, "BMP"), pixels(1, 48, 40), pixels(2, 48, 40)]
    ).images
    assert len({look.content for look in looks}) == 4
    assert [look.pixels == looks[0].pixels for look in looks] == [True, True, True, False]
    flat = inspect_images(
        [numpy.zeros(shape, numpy.uint8) for shape in ((6, 4, 3), (4, 6, 3))]
    ).images
    assert flat[0].pixels != flat[1].pixels, "the same bytes in another shape are another picture"


def test_images_are_named_so_that_they_can_be_found(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    path = write_image(tmp_path / "train" / "cat" / "1.png")
    inside = ImageSet([0], [path])
    rows = ImageSet([0], [path.read_bytes()], [f"row 3 of {tmp_path / 'train-0.parquet'}"])
    arrays = ImageSet([0], [numpy.zeros((4, 4, 3), numpy.uint8)])
    nothing = ImageSet([], [])
    for images, name in (
        (inside, "train/cat/1.png"),
        (rows, "row 3 of train-0.parquet"),
        (arrays, "train image 0"),
    ):
        (look,) = inspect(Source("some", ("cat",), images, nothing), tmp_path).images
        assert look.name == name
    (look,) = inspect(Source("some", ("cat",), inside, nothing)).images
    assert look.name == str(path)


def test_files_beside_the_images(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    path = write_image(tmp_path / "cat" / "1.png")
    for name in ("phone.heic", "notes.txt", ".hidden"):
        (tmp_path / "cat" / name).touch()
    (tmp_path / "cat" / "folder").mkdir()
    (tmp_path / "readme.txt").touch()
    found = inspect(Source("some", ("cat",), ImageSet([0], [path]), ImageSet([], [])), tmp_path)
    assert found.unused == ("cat/notes.txt", "cat/phone.heic")


def test_a_folder_with_gaps(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for place in (
        "train/cat/1.png",
        "train/cat/2.png",
        "train/dog/1.png",
        "test/cat/1.png",
        "test/Dog/1.png",
    ):
        write_image(tmp_path / place)
    (tmp_path / "train" / "cow").mkdir()
    found = incomplete_folder(tmp_path)
    assert found is not None
    assert found.class_names == ("Dog", "cat", "cow", "dog")
    assert (list(found.train.targets), list(found.test.targets)) == ([1, 1, 3], [0, 1])
    assert incomplete_folder(tmp_path / "train") is None
    (tmp_path / "none" / "train").mkdir(parents=True)
    (tmp_path / "none" / "test").mkdir()
    assert incomplete_folder(tmp_path / "none") is None


@pytest.mark.parametrize(
    "options", [{"num_tasks": 5}, {"num_tasks": 3, "classes_per_task": [5, 3, 2]}]
)
def test_tasks_hold_what_they_hold_in_training(options: dict, source: Source) -> None:
    keys = {"seed": 3, "classes_per_task": None, "class_order": "paper", **options}
    stream = build_stream(source, image_size=8, **keys)
    contents = task_contents(source, divide(source, **keys))
    assert [(task.name, task.classes, task.train, task.test) for task in contents] == [
        (task.name, task.class_names, len(task.train), len(task.test)) for task in stream.tasks
    ]


def test_a_look_is_small() -> None:
    """A hundred thousand of them are kept."""
    assert not hasattr(InspectedImage("train", "a.png", 0), "__dict__")
