"""Decoding every image of a source once before training, unless the cache has it from an earlier
run.

That way a broken file is named at the start and not after hours of training. The pixels of a small
data set stay in memory. Those of a larger one are mapped from the cache (cache.py) where they fit
into it, and are otherwise decoded again whenever they are used.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy
from tqdm import tqdm

from smope.errors import UserError
from smope.streams.pixels.bit_depth import ASSUMED, WAY_OUT
from smope.streams.pixels.cache import (
    CachedImage,
    PixelCache,
    PixelFile,
    PixelWriter,
    original_image,
)
from smope.streams.pixels.decode import StoredImage, decode, read_encoded, read_size
from smope.streams.source import ImageSet, Source

# decoded bytes of a whole source, training and test images, that stay in memory
MEMORY_LIMIT_BYTES = 256 * 2**20
SPLITS = ("train", "test")
SAMPLED_IMAGES = 200  # images whose sizes are read to estimate the size of all

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreloadedSource:
    """A source whose images can all be decoded.

    content_hash: SHA-256 (hex) of all images with their classes, and with their tasks where the
        source numbers them; it does not depend on their order, names and folders.
    skipped: names of broken images that were left out.
    """

    source: Source
    content_hash: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ReadImage:
    """An image that could be read: the SHA-256 of its encoded form, and its pixels or its row in
    the cache. assumed_range: a guess that decoding made, as text.
    """

    sha256: str
    pixels: numpy.ndarray | None = None
    row: int | None = None
    assumed_range: str = ""


def preload_images(
    source: Source,
    broken_images: Literal["error", "skip"] = "error",
    cache: PixelCache | None = None,
) -> PreloadedSource:
    """Read every image of `source` once and hash the contents.

    Args:
        source: images that are not decoded yet.
        broken_images: "error" refuses images that cannot be read, "skip" leaves them out.
        cache: images that it has are not decoded, those that it lacks are added to it.

    Returns:
        The source with pixels in memory (up to 256 MB in all), or in the cache where they fit.

    Raises:
        UserError: names an image that cannot be read, unless `broken_images` is "skip".
    """
    hashes = _hash_encoded(source) if cache is not None and _has_encoded_images(source) else None
    cached_file, writer = _open_cache(source, cache, hashes)
    try:
        images, skipped = _read_all(source, broken_images, hashes, cached_file, writer)
        file = cached_file or (writer.finish() if writer else None)
    finally:
        if writer is not None:
            writer.abandon()
    _warn_of_skipped(source, skipped)
    _warn_of_assumed_ranges(source, images)
    lines = [
        content_line(source, split, index, image.sha256)
        for split in SPLITS
        for index, image in images[split].items()
    ]
    content_hash = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    splits = {split: _with_pixels(getattr(source, split), images[split], file) for split in SPLITS}
    return PreloadedSource(replace(source, **splits), content_hash, tuple(skipped))


def _open_cache(
    source: Source, cache: PixelCache | None, hashes: dict[str, list[str]] | None
) -> tuple[PixelFile | None, PixelWriter | None]:
    """The cache's file for these images, or a writer that makes it; neither without a cache."""
    if cache is None or hashes is None:
        return None, None
    path = cache.path(sha256 for split in hashes.values() for sha256 in split if sha256)
    file = cache.find(path)
    if file is None:
        return None, cache.writer(path, _expected_bytes(source))
    if not file.has_pixels and file.total <= MEMORY_LIMIT_BYTES:
        return None, None  # an index alone, and the pixels belong in memory: decode them
    return file, None


def _read_all(
    source: Source,
    broken_images: Literal["error", "skip"],
    hashes: dict[str, list[str]] | None,
    cached_file: PixelFile | None,
    writer: PixelWriter | None,
) -> tuple[dict[str, dict[int, _ReadImage]], list[str]]:
    """The readable images of each split by index, with the pixels of all or of none; and the names
    of those that are left out.
    """
    total = len(source.train) + len(source.test)
    images: dict[str, dict[int, _ReadImage]] = {split: {} for split in SPLITS}
    skipped: list[str] = []
    free_bytes = MEMORY_LIMIT_BYTES
    # delay: no bar for small data sets; disable=None: no bar without a terminal
    with tqdm(total=total, desc="reading images", delay=2, leave=False, disable=None) as bar:
        for split in SPLITS:
            image_set: ImageSet = getattr(source, split)
            reader = _reader(image_set, hashes[split] if hashes else None, cached_file)
            for index, image in enumerate(map_in_threads(image_set, reader)):
                bar.update()
                if isinstance(image, UserError):
                    if broken_images == "error":
                        raise UserError(
                            f"stream {source.name}: {image}, or set stream.broken_images=skip"
                        ) from image
                    skipped.append(image_set.name(index))
                    continue
                if image.pixels is not None:
                    free_bytes -= image.pixels.nbytes
                    if writer is not None:
                        writer.add(image.sha256, image.pixels)
                images[split][index] = image if free_bytes >= 0 else replace(image, pixels=None)
    if free_bytes < 0:
        for split in SPLITS:
            images[split] = {i: replace(image, pixels=None) for i, image in images[split].items()}
    return images, skipped


def _warn_of_skipped(source: Source, skipped: Sequence[str]) -> None:
    """One line about all images that are left out, with the first of them."""
    if skipped:
        _log.warning(
            "stream %s: images that cannot be read are left out: %d, such as %s",
            source.name, len(skipped), skipped[0],
        )  # fmt: skip


def _warn_of_assumed_ranges(source: Source, images: dict[str, dict[int, _ReadImage]]) -> None:
    """One line about all pictures whose range of values was guessed, with the first of them."""
    assumed = [
        (getattr(source, split).name(index), image.assumed_range)
        for split in SPLITS
        for index, image in images[split].items()
        if image.assumed_range
    ]
    if assumed:
        _log.warning(
            "stream %s: images of more than 8 bits that do not say which range they use: %d, such "
            "as %s (%s); they may be too dark: %s",
            source.name, len(assumed), *assumed[0], WAY_OUT,
        )  # fmt: skip


def _reader(
    images: ImageSet, hashes: Sequence[str] | None, cached_file: PixelFile | None
) -> Callable[[int], _ReadImage | UserError]:
    """A function that reads one image: from the cache where that has it, else by decoding."""
    in_memory = (
        cached_file is not None
        and cached_file.has_pixels
        and cached_file.total <= MEMORY_LIMIT_BYTES
    )

    def read_cached(index: int) -> _ReadImage | None:
        if cached_file is None or not hashes or not hashes[index]:
            return None
        row = cached_file.row(hashes[index])
        if row is None:
            return None
        pixels = cached_file.pixels(row) if in_memory else None
        if in_memory and pixels is None:
            return None  # the file was damaged
        return _ReadImage(hashes[index], pixels, row)

    def read_image(index: int) -> _ReadImage | UserError:
        cached = read_cached(index)
        if cached is not None:
            return cached
        name = images.name(index)
        try:
            content = read_encoded(original_image(images.images[index]), name)
            if not isinstance(content, bytes):
                return _ReadImage(_sha256(content), content)
            picture = decode(content, name)
        except UserError as error:
            return error
        assumed_range = picture.info.get(ASSUMED, "")
        return _ReadImage(_sha256(content), numpy.asarray(picture), None, assumed_range)

    return read_image


def map_in_threads(images: ImageSet, function: Callable[[int], Result]) -> Iterator[Result]:
    """function(index) of each image in order, in several threads: Pillow and hashlib release
    Python's lock.
    """
    workers = min(8, os.cpu_count() or 1)
    # a bounded number at a time, or pixels that are not consumed yet would pile up
    chunk = 2 * workers
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(images), chunk):
            yield from pool.map(function, range(start, min(start + chunk, len(images))))


def _hash_encoded(source: Source) -> dict[str, list[str]]:
    """SHA-256 of the encoded form of each image by split, "" where it cannot be read at all."""

    def hashes_of(images: ImageSet) -> list[str]:
        def hash_one(index: int) -> str:
            try:
                return _sha256(read_encoded(original_image(images.images[index]), ""))
            except UserError:
                return ""

        return list(map_in_threads(images, hash_one))

    return {"train": hashes_of(source.train), "test": hashes_of(source.test)}


def _sha256(content: bytes | numpy.ndarray) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).hexdigest()


def _has_encoded_images(source: Source) -> bool:
    """True where there is anything to decode."""
    images = [*source.train.images, *source.test.images]
    return not all(isinstance(image, numpy.ndarray) for image in images)


def _expected_bytes(source: Source) -> int:
    """An estimate of the size of all decoded images, from the headers of some."""
    images = [original_image(image) for image in [*source.train.images, *source.test.images]]
    sizes = [read_size(image) for image in images[:: max(1, len(images) // SAMPLED_IMAGES)]]
    byte_counts = [3 * height * width for height, width in filter(None, sizes)]
    return round(len(images) * sum(byte_counts) / len(byte_counts)) if byte_counts else 0


def content_line(source: Source, split: str, index: int, sha256: str) -> str:
    """What the content hash takes of one image.

    Args:
        source: that the image is of.
        split: "train" or "test".
        index: in the split.
        sha256: of the encoded image.
    """
    images: ImageSet = getattr(source, split)
    task = f"\0{images.tasks[index]}" if images.tasks else ""
    return f"{split}\0{source.class_names[images.targets[index]]}{task}\0{sha256}\n"


def _with_pixels(
    images: ImageSet, read_images: dict[int, _ReadImage], file: PixelFile | None
) -> ImageSet:
    """The images that could be read, as pixels where those are in memory or in the cache."""
    chosen = images if len(read_images) == len(images) else images.choose(list(read_images))
    pixels = [image.pixels for image in read_images.values()]
    if all(image is not None for image in pixels):
        return replace(chosen, images=pixels, names=chosen.own_names())
    if file is None or not file.has_pixels:
        return chosen
    with_cache: list[StoredImage | CachedImage] = []
    for image, read_image in zip(chosen.images, read_images.values(), strict=True):
        row = file.row(read_image.sha256)
        is_encoded = not isinstance(image, numpy.ndarray | CachedImage)
        with_cache.append(
            CachedImage(file, row, image) if is_encoded and row is not None else image
        )
    return replace(chosen, images=with_cache)
