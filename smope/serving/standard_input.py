"""What `smope predict` classifies: files, folders, what came through a pipe. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from PIL import UnidentifiedImageError

from smope.errors import UserError
from smope.serving.files import NotRead, find_images
from smope.streams.pixels.decode import open_image

STANDARD_INPUT = Path("-")


class Inputs:
    """Images in their order, looked for anew each time: no list of them is held.

    Args:
        paths: Files, folders, and `-` for standard input.
        content: What standard input held, an image or paths; None if `-` is not among the paths.
    """

    def __init__(self, paths: Sequence[Path], content: bytes | None = None) -> None:
        self._paths = paths
        self._content = content
        self.count = 0
        self.longest_path = 1

    def __iter__(self) -> Iterator[Path | bytes]:
        return self._search(NotRead())

    def survey(self) -> NotRead:
        """Count the images (`count`, `longest_path` in letters); returns what is left out.

        UserError if a path does not exist, a folder holds no image, or standard input holds neither
        an image nor paths.
        """
        not_read = NotRead()
        self.count = 0
        for image in self._search(not_read):
            self.count += 1
            if isinstance(image, Path):
                self.longest_path = max(self.longest_path, len(str(image)))
        return not_read

    @cached_property
    def has_piped_image(self) -> bool:
        """Whether standard input held an image. Pillow has to know its format."""
        if self._content is None:
            return False
        try:
            with open_image(self._content):
                return True
        except UnidentifiedImageError:
            return False
        except Exception:  # a known format, but damaged: reading it names the reason
            return True

    def _search(self, not_read: NotRead) -> Iterator[Path | bytes]:
        for path in self._paths:
            if path != STANDARD_INPUT:
                yield from find_images([path], not_read)
                continue
            assert self._content is not None
            if self.has_piped_image:
                yield self._content
            else:
                yield from find_images(listed_paths(self._content), not_read)


def listed_paths(content: bytes) -> Iterator[Path]:
    """Paths that are listed one a line, or separated by zero bytes as `find -print0` does."""
    pattern = rb"[^\0]+" if b"\0" in content else rb"[^\n]+"
    names = (match[0].removesuffix(b"\r") for match in re.finditer(pattern, content))
    paths = (Path(name.decode(errors="surrogateescape")) for name in names if name.strip())
    first = next(paths, None)
    if first is None:
        raise UserError(
            "IMAGE=-: standard input is empty; pipe an image, or paths of images one a line"
        )
    if not first.exists() and not _is_text(content):
        raise UserError(
            "IMAGE=-: standard input holds neither an image of a known format nor paths; pipe an "
            "image, or paths of images one a line"
        )
    yield first
    yield from paths


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False
