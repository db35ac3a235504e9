"""Decoded images on disk, so that a later run with the same images neither checks nor decodes them
again.

One file for a set of images, named by the hash of their contents and of whatever decodes them:
Pillow, its JPEG library, our own code. An image that changed or another decoder means another name,
so a stale file is never read. Pixels are stored as they were decoded, at the image's own size:
training sees the same bytes with and without.

    head | pixels of one image after another | index head: MAGIC, where the index begins, its
    length, its SHA-256 index: for each image SHA-256 of its encoded form, where its pixels begin,
    height, width, CRC-32 of the pixels

Files are written under another name and renamed, read through a memory map, and removed when
damaged: what cannot be read here is decoded from its source. Where a set's pixels would not fit,
the file is an index alone, which still says that all images can be decoded.
"""

from __future__ import annotations

import hashlib
import logging
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

from smope.streams.pixels import decode

_log = logging.getLogger(__name__)

MAGIC = b"smope\x00\x01\n"
HEAD = struct.Struct("<8sQQ32s")
ROW = numpy.dtype(
    [("sha256", "V32"), ("start", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc", "<u4")]
)
NO_PIXELS_OFFSET = 2**64 - 1  # the start of an image whose pixels are not there
SUFFIX = ".pixels"
STALE_FILE_SECONDS = 24 * 3600  # seconds after which a file that nobody finished is nobody's


def cache_folder(cache_dir: str | None) -> Path:
    """`cache_dir`, or smope/images in the user's cache directory."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smope" / "images"


def decoder() -> str:
    """All that decides on the pixels of a file, in words."""
    libraries = [
        f"{name} {features.version(name)}"
        for name in ("jpg", "libjpeg_turbo", "webp", "zlib", "libtiff")
    ]
    return ", ".join(
        [f"Pillow {Image.__version__}", *libraries, f"decoder {decode.DECODER_VERSION}"]
    )


def _free(folder: Path) -> float:
    """Bytes free on the disk of `folder`, which need not exist yet; infinity where the system does
    not say.
    """
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return float("inf")


class PixelFile:
    """One file of the cache, open for reading.

    OSError, ValueError or struct.error where it is not whole.
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
        self._index = numpy.frombuffer(index, ROW)
        self._rows = {row.tobytes(): number for number, row in enumerate(self._index["sha256"])}

    @cached_property
    def _map(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are started afresh: they map the file themselves."""
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    def row(self, sha256: str) -> int | None:
        """Where the image with this encoded form is; None where it is not."""
        return self._rows.get(bytes.fromhex(sha256))

    @property
    def has_pixels(self) -> bool:
        return not (self._index["start"] == NO_PIXELS_OFFSET).any()

    @property
    def total(self) -> int:
        """Bytes of all images as they are decoded, kept or not."""
        return 3 * int((self._index["height"].astype(numpy.uint64) * self._index["width"]).sum())

    def nbytes(self, row: int) -> int:
        """Of one decoded image."""
        return 3 * int(self._index["height"][row]) * int(self._index["width"][row])

    def pixels(self, row: int) -> numpy.ndarray | None:
        """(height, width, 3) uint8, read-only; None, and the file is removed, where they are not
        what was written.
        """
        start, height, width = (
            int(self._index[name][row]) for name in ("start", "height", "width")
        )
        if start == NO_PIXELS_OFFSET:
            return None
        try:
            found = numpy.frombuffer(self._map, numpy.uint8, self.nbytes(row), start)
        except (OSError, ValueError):  # removed, or cut short
            return self._damaged()
        return (
            found.reshape(height, width, 3)
            if zlib.crc32(found.data) == self._index["crc"][row]
            else self._damaged()
        )

    def _damaged(self) -> None:
        """Remove the file, for the next run to write it again; only the one who does so says it."""
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

    def pixels(self, name: str) -> numpy.ndarray:
        found = self.file.pixels(self.row)
        return numpy.asarray(decode.decode(self.original, name)) if found is None else found


def original_image(image: decode.StoredImage | CachedImage) -> decode.StoredImage:
    """The image as its source has it."""
    return image.original if isinstance(image, CachedImage) else image


class PixelCache:
    """A folder of such files of which the least recently used go when they exceed `limit` bytes
    together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._decoder = decoder()

    def path(self, sha256s: Iterable[str]) -> Path:
        """The file for images with these encoded forms, in whatever order."""
        text = "\n".join([self._decoder, *sorted(set(sha256s))])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"

    def find(self, path: Path) -> PixelFile | None:
        """The file, marked as used now; None where there is none that is whole and holds what the
        limit allows.
        """
        try:
            found = PixelFile(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, struct.error) as error:
            _log.warning("the image cache %s is damaged (%s) and is written again", path, error)
            return None
        if not found.has_pixels and found.total <= min(self.limit, _free(self.folder) / 2):
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    def writer(self, path: Path, expected: int) -> PixelWriter:
        """For a new file whose pixels will take about `expected` bytes."""
        reason = None
        if expected > self.limit:
            reason = f"more than stream.cache_gb={self.limit / 1e9:g}"
        elif expected > _free(self.folder) / 2:
            reason = f"more than half of what is free in {self.folder}"
        if reason is not None:
            _log.warning(
                "decoded, these images take about %.1f GB, %s: they are not cached",
                expected / 1e9,
                reason,
            )
        return PixelWriter(self, path, keep=reason is None)

    def make_room(self, size: int) -> None:
        """Remove what was used least recently until `size` more bytes fit, and what a killed
        process left.
        """
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # removed by another process meanwhile
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = size + sum(item[1] for item in found)
        for _, taken, path in sorted(found):
            if total <= self.limit:
                break
            with suppress(OSError):
                path.unlink()
                total -= taken
        for path in self.folder.glob(f".*{SUFFIX}.*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_FILE_SECONDS:
                    path.unlink()


class PixelWriter:
    """Writes a file of the cache.

    Whatever goes wrong on disk ends the writing, is said once, and nothing else.
    """

    def __init__(self, cache: PixelCache, path: Path, *, keep: bool) -> None:
        self._cache = cache
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._keep = keep
        self._rows: dict[bytes, tuple[int, int, int, int]] = {}
        self._end = HEAD.size
        self._file: IO[bytes] | None = None
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            self._file.write(bytes(HEAD.size))
        except OSError as error:
            self._give_up(error)

    def add(self, sha256: str, pixels: numpy.ndarray) -> None:
        """One image, (height, width, 3) uint8, by the SHA-256 of its encoded form."""
        key = bytes.fromhex(sha256)
        if self._file is None or key in self._rows:
            return
        start, crc = NO_PIXELS_OFFSET, 0
        try:
            # more than was expected
            if self._keep and self._end + pixels.nbytes > self._cache.limit:
                self._forget()
            if self._keep:
                pixels = numpy.ascontiguousarray(pixels)
                start, crc = self._end, zlib.crc32(pixels.data)
                self._file.write(pixels.data.cast("B"))
                self._end += pixels.nbytes
        except OSError as error:
            self._give_up(error)
            return
        self._rows[key] = (start, pixels.shape[0], pixels.shape[1], crc)

    def _forget(self) -> None:
        """Go on with an index alone."""
        assert self._file is not None
        self._keep, self._end = False, HEAD.size
        self._file.seek(HEAD.size)
        self._file.truncate()
        self._rows = {
            key: (NO_PIXELS_OFFSET, height, width, 0)
            for key, (_, height, width, _) in self._rows.items()
        }

    def finish(self) -> PixelFile | None:
        """Put the file in its place and open it; None where it could not be written."""
        if self._file is None:
            return None
        index = numpy.array([(key, *row) for key, row in self._rows.items()], ROW).tobytes()
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
            self._give_up(error)
            return None
        return self._cache.find(self._path)

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        self.abandon()
        _log.warning(
            "the image cache %s cannot be written (%s); training goes on without it. "
            "stream.cache_gb=0 uses none",
            self._cache.folder, error.strerror or error,
        )  # fmt: skip
