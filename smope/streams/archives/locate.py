"""The directory of a data set that has an official archive, which is fetched when the user asks
for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smope.errors import UserError
from smope.streams import folder
from smope.streams.archives.download import Archive, fetch_archive


def directory(
    root: str, archive: Archive, is_there: Callable[[Path], bool], download: bool, layout: str
) -> Path:
    """`root` as an existing directory, `archive` fetched into it before if `download` and unless
    `is_there(root)`.

    layout: what it should hold, in words. UserError naming stream.root where it is missing, a file,
    empty or may not be read, and where to get the archive.
    """
    place = Path(root).expanduser()
    if download and not place.is_file() and not is_there(place):
        fetch_archive(archive, place)
    try:
        return folder.existing_directory(root, layout)
    except UserError as error:
        raise UserError(f"{error}; {way_to_get(archive)}") from error


def way_to_get(archive: Archive) -> str:
    """Where the archive is to be had, as the end of an error's text."""
    size = "" if archive.size is None else f" ({archive.size / 1e6:,.0f} MB)"
    return (
        f"stream.download=true fetches {archive.url}{size} into a stream.root that has none of it"
    )


def left_packed(place: Path) -> str:
    """Text naming the first archive in `place` that nobody has unpacked, if there is one."""
    archives = [
        name for name in folder.visible(place) if name.endswith((".tar", ".tar.gz", ".tgz", ".zip"))
    ]
    return f"; unpack {archives[0]}" if archives else ""
