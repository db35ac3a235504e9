"""How much a client may send, and the pictures in it. Imports no web library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from PIL.Image import Image

from smope.server.refusal import Refusal
from smope.streams.pixels.decode import decode, read_size

MAX_IMAGES = 100  # of a request
MAX_PIXELS = 50_000_000  # of an image; more than cameras of telephones and most others have
MEGABYTE = 1_000_000


class Upload(NamedTuple):
    """The content of an image file, and its name, which is shown and never used as a path."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Limits:
    """How much a request may hold.

    Attributes:
        request_bytes: of all its files together.
        images: files.
        pixels: of each image.
    """

    request_bytes: int
    images: int = MAX_IMAGES
    pixels: int = MAX_PIXELS

    def check_pixels(self, upload: Upload) -> None:
        """Refuse an image of too many pixels by its header, before they take any memory."""
        size = read_size(upload.content)
        if size is not None and size[0] * size[1] > self.pixels:
            raise Refusal(
                413,
                f"{upload.name}: {size[1]} x {size[0]} pixels are more than {self.pixels:,}; send "
                "it smaller",
            )

    def decoded(self, upload: Upload) -> Image:
        """An image as RGB, read as images for training are. UserError if it cannot be read."""
        self.check_pixels(upload)
        return decode(upload.content, upload.name)
