"""Decoded images on disk, so that a later run with the same images need not decode them again.

Each set of images is one file. Its name is a hash of the encoded images and of everything that
decodes them: Pillow, its JPEG library and our own code. A changed image or decoder gives another
name, so a stale file is never read. Pixels are stored at the image's own size, exactly as they were
decoded, so training sees the same bytes with and without the cache.

Layout of a file:

    head    MAGIC, where the index begins, length of the index, SHA-256 of the index
    pixels  of one image after another
    index   for each image: SHA-256 of its encoded form, where its pixels begin, height, width,
            CRC-32 of its pixels

A file is written under a temporary name and renamed, is read through a memory map, and is removed
when it is found damaged; its images are then decoded from their source. Where the pixels of a set
would not fit, the file is an index alone, which still says that all images can be decoded.
"""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy
from PIL import Image, features

from smope.streams.pixels import decode, formats

_log = logging.getLogger(__name__)

MAGIC = b"smope\x00\x01\n"
HEAD = struct.Struct("<8sQQ32s")
INDEX_ROW = numpy.dtype(
    [("sha256", "V32"), ("start", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc", "<u4")]
)
NO_PIXELS_OFFSET = 2**64 - 1  # `start` of an image whose pixels are not in the file
SUFFIX = ".pixels"
STALE_FILE_SECONDS = 24 * 3600  # unfinished files that are older are left from killed processes


def cache_folder(cache_dir: str | None) -> Path:
    """`cache_dir`, or the folder smope/images in the user's cache directory."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smope" / "images"


def decoder() -> str:
    """Everything that decides which pixels a file is decoded to, as text."""
    libraries = [
        f"{name} {features.version(name)}"
        for name in ("jpg", "libjpeg_turbo", "webp", "zlib", "libtiff", "avif", "jpg_2000")
    ]
    libraries += formats.plugin_versions()
    return ", ".join(
        [f"Pillow {Image.__version__}", *libraries, f"decoder {decode.DECODER_VERSION}"]
    )


def _free_bytes(folder: Path) -> float:
    """Free bytes on the disk of `folder`, which need not exist yet; infinity if unknown."""
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return float("inf")


class PixelFile:
    """One file of the cache, open for reading. Opening an incomplete file raises OSError,
    ValueError or struct.error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, start, length, digest = HEAD.unpack(file.read(HEAD.size))
            if magic != MAGIC or start + length != size:
                raise ValueError("cut short")
            file.seek(start)
            index = file.read(length)
        if hashlib.sha256(index).digest() != digest:
            raise ValueError("damaged index")
        self._index = numpy.frombuffer(index, INDEX_ROW)
        self._rows = {row.tobytes(): number for number, row in enumerate(self._index["sha256"])}

    @cached_property
    def _map(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        """Processes that receive a copy map the file themselves."""
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    def row(self, sha256: str) -> int | None:
        """The row of the image with this encoded form; None if it is not in the file."""
        return self._rows.get(bytes.fromhex(sha256))

    @property
    def has_pixels(self) -> bool:
        return not (self._index["start"] == NO_PIXELS_OFFSET).any()

    @property
    def total(self) -> int:
        """Bytes of all decoded images, whether their pixels are in the file or not."""
        return 3 * int((self._index["height"].astype(numpy.uint64) * self._index["width"]).sum())

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of one image."""
        return int(self._index["height"][row]), int(self._index["width"][row])

    def nbytes(self, row: int) -> int:
        """Bytes of one decoded image."""
        return 3 * math.prod(self.size(row))

    def pixels(self, row: int) -> numpy.ndarray | None:
        """(height, width, 3) uint8, read-only. None if they are not in the file or are damaged; a
        damaged file is removed.
        """
        start, height, width = (
            int(self._index[name][row]) for name in ("start", "height", "width")
        )
        if start == NO_PIXELS_OFFSET:
            return None
        try:
            pixels = numpy.frombuffer(self._map, numpy.uint8, self.nbytes(row), start)
        except (OSError, ValueError):  # removed, or cut short
            self._remove_damaged()
            return None
        if zlib.crc32(pixels.data) != self._index["crc"][row]:
            self._remove_damaged()
            return None
        return pixels.reshape(height, width, 3)

    def _remove_damaged(self) -> None:
        """Remove the file, so that the next run writes it again. Only the process that removes it
        logs a warning.
        """
        with suppress(OSError):
            self.path.unlink()
            _log.warning(
                "the image cache %s was damaged and has been removed; images are decoded again",
                self.path,
            )


@dataclass(frozen=True)
class CachedImage:
    """An image whose pixels are in the cache; `original` is what they were decoded from."""

    file: PixelFile
    row: int
    original: Path | bytes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.file.size(self.row)

    def pixels(self, name: str) -> numpy.ndarray:
        """(height, width, 3) uint8; `name` is what errors call the image."""
        cached = self.file.pixels(self.row)
        return numpy.asarray(decode.decode(self.original, name)) if cached is None else cached


def original_image(image: decode.StoredImage | CachedImage) -> decode.StoredImage:
    """The image as its source has it, without the cache."""
    return image.original if isinstance(image, CachedImage) else image


class PixelCache:
    """A folder of such files. The least recently used are removed when all together exceed `limit`
    bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._decoder = decoder()

    def path(self, sha256s: Iterable[str]) -> Path:
        """The file for images with these encoded forms, whatever their order."""
        text = "\n".join([self._decoder, *sorted(set(sha256s))])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"

    def find(self, path: Path) -> PixelFile | None:
        """Open a file and mark it as used now. None if it is missing or damaged, or if it lacks
        pixels that would fit now.
        """
        try:
            file = PixelFile(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, struct.error) as error:
            _log.warning("the image cache %s is damaged (%s) and is written again", path, error)
            return None
        if not file.has_pixels and file.total <= min(self.limit, _free_bytes(self.folder) / 2):
            return None
        with suppress(OSError):
            os.utime(path)
        return file

    def writer(self, path: Path, expected: int) -> PixelWriter:
        """A writer for a new file.

        Args:
            path: of the file.
            expected: about how many bytes its pixels will take; where that is too much, the file
                will be an index alone.
        """
        reason = None
        if expected > self.limit:
            reason = f"more than stream.cache_gb={self.limit / 1e9:g}"
        elif expected > _free_bytes(self.folder) / 2:
            reason = f"more than half of what is free in {self.folder}"
        if reason is not None:
            _log.warning(
                "decoded, these images take about %.1f GB, %s: they are not cached",
                expected / 1e9,
                reason,
            )
        return PixelWriter(self, path, with_pixels=reason is None)

    def make_room(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes fit, and unfinished files of
        killed processes.
        """
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # removed by another process meanwhile
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = size + sum(file_size for _, file_size, _ in files)
        for _, file_size, path in sorted(files):
            if total <= self.limit:
                break
            with suppress(OSError):
                path.unlink()
                total -= file_size
        for path in self.folder.glob(f".*{SUFFIX}.*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_FILE_SECONDS:
                    path.unlink()


class PixelWriter:
    """Writes a file of the cache. An error of the disk ends the writing with one warning; training
    continues without a cache.
    """

    def __init__(self, cache: PixelCache, path: Path, *, with_pixels: bool) -> None:
        self._cache = cache
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._with_pixels = with_pixels
        self._rows: dict[bytes, tuple[int, int, int, int]] = {}
        self._end = HEAD.size
        self._file: IO[bytes] | None = None
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            self._file.write(bytes(HEAD.size))
        except OSError as error:
            self._stop_with_warning(error)

    def add(self, sha256: str, pixels: numpy.ndarray) -> None:
        """Write one image.

        Args:
            sha256: of its encoded form, hexadecimal.
            pixels: (height, width, 3) uint8.
        """
        key = bytes.fromhex(sha256)
        if self._file is None or key in self._rows:
            return
        start, crc = NO_PIXELS_OFFSET, 0
        try:
            # the images are larger than was expected
            if self._with_pixels and self._end + pixels.nbytes > self._cache.limit:
                self._drop_pixels()
            if self._with_pixels:
                pixels = numpy.ascontiguousarray(pixels)
                start, crc = self._end, zlib.crc32(pixels.data)
                self._file.write(pixels.data.cast("B"))
                self._end += pixels.nbytes
        except OSError as error:
            self._stop_with_warning(error)
            return
        self._rows[key] = (start, pixels.shape[0], pixels.shape[1], crc)

    def _drop_pixels(self) -> None:
        """Make the file an index alone."""
        assert self._file is not None
        self._with_pixels, self._end = False, HEAD.size
        self._file.seek(HEAD.size)
        self._file.truncate()
        self._rows = {
            key: (NO_PIXELS_OFFSET, height, width, 0)
            for key, (_, height, width, _) in self._rows.items()
        }

    def finish(self) -> PixelFile | None:
        """Complete the file, rename it to its final name and open it; None if it could not be
        written.
        """
        if self._file is None:
            return None
        index = numpy.array([(key, *row) for key, row in self._rows.items()], INDEX_ROW).tobytes()
        try:
            self._file.write(index)
            self._file.seek(0)
            self._file.write(
                HEAD.pack(MAGIC, self._end, len(index), hashlib.sha256(index).digest())
            )
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._cache.make_room(self._end + len(index))
            self._temporary.replace(self._path)
        except OSError as error:
            self._stop_with_warning(error)
            return None
        return self._cache.find(self._path)

    def abandon(self) -> None:
        """Stop writing and remove the unfinished file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _stop_with_warning(self, error: OSError) -> None:
        self.abandon()
        _log.warning(
            "the image cache %s cannot be written (%s); training continues without it. "
            "stream.cache_gb=0 uses none",
            self._cache.folder, error.strerror or error,
        )  # fmt: skip
