"""Reading what a source found: every image is decoded once before anything is trained, or is known
from an earlier run.

So a broken file is named at the start and not in the third hour. A data set that is small enough
stays in memory as pixels; those of a larger one are mapped from the cache (cache.py) where they fit
into it, else decoded when they are used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy
from tqdm import tqdm

from smope.errors import UserError
from smope.streams.pixels.cache import (
    CachedImage,
    PixelCache,
    PixelFile,
    PixelWriter,
    original_image,
)
from smope.streams.pixels.decode import decode, encoded, size
from smope.streams.source import ImageSet, Source

# decoded bytes of a whole source, training and test images, that stay in memory
MEMORY_LIMIT_BYTES = 256 * 2**20
SPLITS = ("train", "test")
SAMPLED_IMAGES = 200  # images whose size tells that of all

Result = TypeVar("Result")


@dataclass(frozen=True)
class PreloadedSource:
    """A source whose images can all be decoded.

    content_hash: SHA-256 (hex) of all images with their classes (and given tasks), whatever their
    order, names and place on disk. skipped: names of the broken images that were left out.
    """

    source: Source
    content_hash: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ReadImage:
    """An image that was looked at: the SHA-256 of its encoded form, and its pixels or its row in
    the cache.
    """

    sha256: str
    pixels: numpy.ndarray | None = None
    row: int | None = None


def preload_images(
    source: Source,
    broken_images: Literal["error", "skip"] = "error",
    cache: PixelCache | None = None,
) -> PreloadedSource:
    """Look at every image of `source` once, keep the pixels where they fit into 256 MB, and hash
    the contents.

    Without a `cache`, or where it does not know these images yet, each is decoded. UserError naming
    the image that cannot be, unless `broken_images` is "skip".
    """
    hashes = _hashes(source) if cache is not None and _has_files(source) else None
    path = (
        cache.path(sha for split in hashes.values() for sha in split if sha)
        if cache and hashes
        else None
    )
    known = cache.find(path) if cache and path else None
    writer = (
        cache.writer(path, _expected_bytes(source)) if cache and path and known is None else None
    )
    if known is not None and not known.has_pixels and known.total <= MEMORY_LIMIT_BYTES:
        known = None  # they belong in memory
    try:
        found, skipped = _look(source, broken_images, hashes, known, writer)
        file = known or (writer.finish() if writer else None)
    finally:
        if writer is not None:
            writer.abandon()
    lines = [
        content_line(source, split, index, seen.sha256)
        for split in SPLITS
        for index, seen in found[split].items()
    ]
    content_hash = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    splits = {split: _readable(getattr(source, split), found[split], file) for split in SPLITS}
    return PreloadedSource(replace(source, **splits), content_hash, tuple(skipped))


def _look(
    source: Source,
    broken_images: Literal["error", "skip"],
    hashes: dict[str, list[str]] | None,
    known: PixelFile | None,
    writer: PixelWriter | None,
) -> tuple[dict[str, dict[int, _ReadImage]], list[str]]:
    """What can be read of each split by index, pixels of all or none, and the names of what is
    left out.
    """
    total = len(source.train) + len(source.test)
    found: dict[str, dict[int, _ReadImage]] = {split: {} for split in SPLITS}
    skipped, free = [], MEMORY_LIMIT_BYTES
    # delay: small data sets are read before a bar would have been worth drawing; None: no bar
    # without a terminal
    with tqdm(total=total, desc="reading images", delay=2, leave=False, disable=None) as bar:
        for split in SPLITS:
            images: ImageSet = getattr(source, split)
            for index, seen in enumerate(
                _each(images, _reader(images, hashes[split] if hashes else None, known))
            ):
                bar.update()
                if isinstance(seen, UserError):
                    if broken_images == "error":
                        raise UserError(
                            f"stream {source.name}: {seen}, or set stream.broken_images=skip"
                        ) from seen
                    skipped.append(images.name(index))
                    continue
                if writer is not None and seen.pixels is not None:
                    writer.add(seen.sha256, seen.pixels)
                free -= seen.pixels.nbytes if seen.pixels is not None else 0
                found[split][index] = seen if free >= 0 else replace(seen, pixels=None)
    if free < 0:
        found = {
            split: {i: replace(seen, pixels=None) for i, seen in found[split].items()}
            for split in SPLITS
        }
    return found, skipped


def _reader(
    images: ImageSet, hashes: Sequence[str] | None, known: PixelFile | None
) -> Callable[[int], _ReadImage | UserError]:
    """What looks at one image: by the cache where that knows it, else by decoding."""
    in_memory = known is not None and known.has_pixels and known.total <= MEMORY_LIMIT_BYTES

    def one(index: int) -> _ReadImage | UserError:
        row = known.row(hashes[index]) if known and hashes and hashes[index] else None
        if known is not None and hashes is not None and row is not None:
            pixels = known.pixels(row) if in_memory else None
            if pixels is not None or not in_memory:
                return _ReadImage(hashes[index], pixels, row)
        name = images.name(index)
        try:
            content = encoded(original_image(images.images[index]), name)
            pixels = numpy.asarray(decode(content, name)) if isinstance(content, bytes) else content
        except UserError as error:
            return error
        return _ReadImage(_sha256(content), pixels)

    return one


def _each(images: ImageSet, function: Callable[[int], Result]) -> Iterator[Result]:
    """function(index) of each image in order, several at a time: Pillow and hashlib work outside
    Python's lock.
    """
    workers = min(8, os.cpu_count() or 1)
    # a bounded number at a time: pixels that nobody has asked for yet would pile up
    chunk = 2 * workers
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(images), chunk):
            yield from pool.map(function, range(start, min(start + chunk, len(images))))


def _hashes(source: Source) -> dict[str, list[str]]:
    """SHA-256 of the encoded form of each image, "" where it cannot be read at all."""

    def of(images: ImageSet) -> Callable[[int], str]:
        def one(index: int) -> str:
            try:
                return _sha256(encoded(original_image(images.images[index]), ""))
            except UserError:
                return ""

        return one

    return {
        split: list(_each(getattr(source, split), of(getattr(source, split)))) for split in SPLITS
    }


def _sha256(content: bytes | numpy.ndarray) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).hexdigest()


def _has_files(source: Source) -> bool:
    """Whether there is anything to decode."""
    return any(
        not isinstance(image, numpy.ndarray)
        for split in (source.train, source.test)
        for image in split.images
    )


def _expected_bytes(source: Source) -> int:
    """About how much the decoded images take: from the sizes of some, which their headers say."""
    every = [
        original_image(image) for split in (source.train, source.test) for image in split.images
    ]
    measured = [size(image) for image in every[:: max(1, len(every) // SAMPLED_IMAGES)]]
    known = [3 * height * width for height, width in filter(None, measured)]
    return round(len(every) * sum(known) / len(known)) if known else 0


def content_line(source: Source, split: str, index: int, sha256: str) -> str:
    images: ImageSet = getattr(source, split)
    task = f"\0{images.tasks[index]}" if images.tasks else ""
    return f"{split}\0{source.class_names[images.targets[index]]}{task}\0{sha256}\n"


def _readable(images: ImageSet, found: dict[int, _ReadImage], file: PixelFile | None) -> ImageSet:
    """The images that can be decoded, as pixels where those are in memory or in the cache."""
    chosen = images if len(found) == len(images) else images.choose(list(found))
    pixels = [seen.pixels for seen in found.values()]
    if all(image is not None for image in pixels):
        return replace(chosen, images=pixels, names=None)
    if file is None or not file.has_pixels:
        return chosen
    rows = [file.row(seen.sha256) for seen in found.values()]
    pictures = [
        image
        if row is None or isinstance(image, numpy.ndarray | CachedImage)
        else CachedImage(file, row, image)
        for image, row in zip(chosen.images, rows, strict=True)
    ]
    return replace(chosen, images=pictures)
