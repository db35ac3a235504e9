"""Which image files are read: those whose format Pillow, or a plugin that is installed, decodes.

Vector drawings, icons and the scientific containers that Pillow also knows are no photographs, and
some of them start other programs, so they are not read. Camera raw files hold a TIFF with a small
preview, which Pillow would take for the picture; they are refused too.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import metadata

from PIL import Image, features

FORMATS = frozenset(
    {
        "AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PCD", "PCX", "PNG",
        "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP",
    }
)  # fmt: skip
# Formats that Pillow reads only where it was built with a library, and the library's name.
LIBRARY_OF_FORMAT = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
# Modules that teach Pillow a format when they are imported.
PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
PLUGIN_PACKAGES = ("pillow-heif", "pillow-jxl-plugin")
HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
    ".srf", ".srw", ".x3f",
)  # fmt: skip
VECTOR_SUFFIXES = (".ai", ".emf", ".eps", ".ps", ".svg", ".svgz", ".wmf")
# What to do about pictures that are not read, by suffix.
WAYS_OUT = {
    **dict.fromkeys(HEIF_SUFFIXES, "pip install pillow-heif"),
    ".jxl": "pip install pillow-jxl-plugin",
    **dict.fromkeys((".avif", ".avifs"), "pip install --upgrade pillow"),
    **dict.fromkeys(RAW_SUFFIXES, "export camera raw files as JPEG or TIFF"),
    **dict.fromkeys(VECTOR_SUFFIXES, "export drawings as PNG"),
    **dict.fromkeys(
        (".dds", ".exr", ".hdr", ".icns", ".ico", ".indd", ".xcf"), "export them as PNG"
    ),
}
COMMON_SUFFIXES = ".bmp, .jpg, .png, .tif, .webp and others that Pillow reads"


@cache
def formats() -> tuple[str, ...]:
    """The formats that can be decoded here, as Pillow calls them."""
    Image.init()
    for module in PLUGINS:
        with suppress(ImportError):
            importlib.import_module(module)
    return tuple(name for name in Image.ID if name in FORMATS and _has_library(name))


def plugin_versions() -> list[str]:
    """The plugins that are installed, with their versions."""
    versions = []
    for package in PLUGIN_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return versions


def _has_library(name: str) -> bool:
    library = LIBRARY_OF_FORMAT.get(name)
    known = library in features.modules or library in features.codecs
    # a format that this Pillow has no library for comes from a plugin, which brings its own
    return not known or library in features.get_supported()


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that are read, in lower case."""
    readable = {*formats(), "MPO"}  # an MPO is a JPEG with more pictures behind it
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in readable
    )


def is_readable(name: str) -> bool:
    """Whether the suffix of a file's name is one of `suffixes`, in any case."""
    return _suffix(name) in suffixes()


def is_unreadable_picture(name: str) -> bool:
    """Whether the suffix is that of a picture that is not read here, see `WAYS_OUT`."""
    return not is_readable(name) and _suffix(name) in WAYS_OUT


def is_camera_raw(name: str) -> bool:
    """Whether the suffix is that of a camera raw file."""
    return _suffix(name) in RAW_SUFFIXES


def why_not_read(name: str) -> str:
    """That pictures with this suffix are not read, and what to do; "" for other files."""
    suffix = _suffix(name)
    return f"{suffix} is not read here ({WAYS_OUT[suffix]})" if is_unreadable_picture(name) else ""


def ways_out(suffixes_of_files: Iterable[str]) -> str:
    """What to do about files with these suffixes, which are not read: `pip install ...`."""
    return "; ".join(dict.fromkeys(WAYS_OUT[suffix] for suffix in suffixes_of_files))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
