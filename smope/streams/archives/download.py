"""Downloading official archives: interrupted downloads are continued, files are checked, and
unpacking never writes outside its folder.

This uses the standard library: torchvision's downloader does not continue interrupted files, and
huggingface_hub's serves the Hub only.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO

from tqdm import tqdm

from smope.errors import UserError

if sys.platform != "win32":
    import fcntl

TIMEOUT_SECONDS = 30.0  # a connection without an answer or a byte for so long counts as lost
PAUSE_SECONDS = 2.0  # before a lost connection is tried again
CHUNK_BYTES = 2**16
# What the standard library raises for damaged archives; RuntimeError for encrypted ones.
DAMAGED_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
)


@dataclass(frozen=True)
class Archive:
    """A file that the owners of a data set publish.

    url: its official address.
    filename: its name on disk, ending in .zip or as tar files do.
    md5: hexadecimal; None if unknown.
    size: in bytes; None if unknown.
    """

    url: str
    filename: str
    md5: str | None
    size: int | None = None


class _ConnectionLost(Exception):
    """A connection failed or ended too early; the text says how."""


def fetch_archive(archive: Archive, root: Path) -> None:
    """Download an archive, check it and unpack it. Call this only if the user wants a download and
    the data are missing.

    An archive that lies in `root` already is checked and used without a network. A download is
    written to `<filename>.part` and continued from there, within this call while connections bring
    bytes, and by the next call after that. `<filename>.part.version` identifies the server's file,
    so that parts of two versions are never joined. Size and md5 are compared before anything is
    unpacked; without a published md5 the sha256 is printed. A file that fails the check stays where
    it is, and is refused until it is deleted.

    Folders and files appear in `root` only when all of them are unpacked. Those that exist already
    are not touched, and the archive is not deleted. Progress is printed on stderr, with bars on a
    terminal. If two processes fetch into one folder, the second one waits.

    Args:
        archive: the official file.
        root: the folder; made if missing.

    Raises:
        UserError: one line, with the address and the folder, for everything that can go wrong.
    """
    root = root.expanduser()
    path = root / archive.filename
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{archive.filename}.lock"):
            if path.is_file():
                _print(f"found {path}: nothing to download")
            else:
                _download(archive, path)
            _check(archive, path)
            _unpack(archive, path)
    except OSError as error:  # of files: those of the network are _ConnectionLost
        where = f" ({error.filename})" if error.filename else ""
        raise _error(
            f"cannot read or write in {root}: {error.strerror or error}{where}; make room there, "
            "or give another stream.root that you may write to; what is downloaded is kept"
        ) from error


def _error(text: str) -> UserError:
    return UserError(f"stream.download=true: {text}")


def _by_hand(archive: Archive, root: Path) -> str:
    return (
        f"or get {archive.url} by other means, put it as {archive.filename} into {root} and run "
        "again"
    )


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:,.1f} MB"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock on `path`, so that runs started together do not write into the same files."""
    with path.open("a") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _print(f"another process is fetching into {path.parent}; waiting until it is done")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # some network file systems know no locks
                pass
        yield


def _check_room(archive: Archive, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise _error(
            f"{archive.filename} needs {_megabytes(needed)} more in {root} to be downloaded and "
            f"unpacked, and {_megabytes(free)} are free; make room or give another stream.root; "
            "what is downloaded is kept"
        )


def _download(archive: Archive, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        while not _is_complete_after_connection(archive, part):
            time.sleep(PAUSE_SECONDS)
    except KeyboardInterrupt:
        _print(f"interrupted; {_bytes_on_disk(part)}run again to continue from there")
        raise
    part.rename(path)
    _version_file(part).unlink(missing_ok=True)


def _is_complete_after_connection(archive: Archive, part: Path) -> bool:
    """True if the file is complete after one more connection. UserError if that connection brought
    nothing.
    """
    before = _size(part)
    try:
        _receive(archive, part)
    except _ConnectionLost as error:
        if _size(part) <= before:
            raise _error(
                f"cannot get {archive.url} ({error}); {_bytes_on_disk(part)}run again later, "
                f"{_by_hand(archive, part.parent)}"
            ) from error
        _print(f"connection lost after {_megabytes(_size(part))} ({error}); trying again")
        return False
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bytes_on_disk(part: Path) -> str:
    return f"{part} keeps {_megabytes(_size(part))}; " if _size(part) else ""


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _resumable(part: Path) -> tuple[int, str]:
    """How many bytes are on disk and which version they are of; (0, "") if they cannot be
    continued.
    """
    with suppress(OSError):
        version = _version_file(part).read_text(encoding="utf-8").strip()
        return (_size(part), version) if version else (0, "")
    return 0, ""


def _version(headers: http.client.HTTPMessage) -> str:
    """What If-Range identifies a version by (RFC 9110, section 13.1.5): a strong ETag, or else the
    date of change.
    """
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _receive(archive: Archive, part: Path) -> None:
    """Append what one connection brings to `part`, or start over if `part` cannot be continued.
    Raises _ConnectionLost.
    """
    answer, start = _connect(archive, part)
    with answer:
        length = answer.headers.get("Content-Length")
        total = archive.size if length is None else start + int(length)
        if archive.size not in (None, total):
            raise _error(
                f"{archive.url} has {total:,} bytes instead of {archive.size:,}, so it is not the "
                f"known file; look at the address in a browser, {_by_hand(archive, part.parent)}"
            )
        # as much again for what is unpacked
        _check_room(archive, part.parent, 2 * (total or 0) - start)
        progress = f", continuing after the {_megabytes(start)} that are there" if start else ""
        _print(
            f"downloading {archive.url} ({_megabytes(total)}) to "
            f"{part.with_name(archive.filename)}{progress}"
        )
        with part.open("ab" if start else "wb") as file:
            if not start:
                _version_file(part).write_text(_version(answer.headers), encoding="utf-8")
            for chunk in _with_progress(_chunks(answer), archive.filename, start, total):
                file.write(chunk)
    if total is not None and _size(part) < total:
        raise _ConnectionLost(f"it ended after {_size(part):,} of {total:,} bytes")


def _connect(archive: Archive, part: Path) -> tuple[http.client.HTTPResponse, int]:
    """The server's answer and the byte it starts with: the one after `part`, or 0 if `part` cannot
    be continued.
    """
    start, version = _resumable(part)
    answer = _open(
        archive, part, {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    )
    if start and answer is not None and answer.status == 206:
        is_rest = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if is_rest and _version(answer.headers) in ("", version):
            return answer, start
        answer.close()
        answer = None
    if start:
        _print(
            f"{part} cannot be continued, {archive.url} has changed or is only sent as a whole; "
            "starting over"
        )
    answer = answer or _open(archive, part, {})
    assert answer is not None
    return answer, 0


def _open(archive: Archive, part: Path, headers: dict[str, str]) -> http.client.HTTPResponse | None:
    """The server's answer, or None if it has nothing in the requested range."""
    request = urllib.request.Request(archive.url, headers={"User-Agent": "smope"} | headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and headers:
            return None
        raise _error(
            f"{archive.url} answers {error.code} {error.reason}; {_bytes_on_disk(part)}run again "
            f"later, {_by_hand(archive, part.parent)}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(
            str(getattr(error, "reason", "") or error) or type(error).__name__
        ) from error


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := answer.read1(CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from error


def _with_progress(
    chunks: Iterable[bytes], name: str, done: int, total: int | None
) -> Iterator[bytes]:
    """The chunks, with a bar on a terminal and a line for each tenth of `total` elsewhere."""
    quiet = not sys.stderr.isatty()
    with tqdm(
        desc=name, total=total, initial=done, unit="B", unit_scale=True, disable=quiet, leave=False
    ) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
            before, done = done, done + len(chunk)
            if quiet and total and done * 10 // total > before * 10 // total:
                _print(f"{name}: {done * 10 // total * 10} % of {_megabytes(total)}")


def _check(archive: Archive, path: Path) -> None:
    """UserError unless `path` has the size and md5 of the official file."""
    advice = (
        "it is not the official file or not all of it; delete it and run again, "
        f"{_by_hand(archive, path.parent)}"
    )
    size = path.stat().st_size
    if archive.size not in (None, size):
        raise _error(f"{path} has {size:,} bytes instead of {archive.size:,}: {advice}")
    with path.open("rb") as file:
        if archive.md5 is None:
            _print(
                f"{path}: no md5 is published for it; its sha256 is "
                f"{hashlib.file_digest(file, 'sha256').hexdigest()}"
            )
            return
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != archive.md5.lower():
        raise _error(f"{path} has md5 {md5} instead of {archive.md5}: {advice}")
    _print(f"{path}: size and md5 are right")


def _unpack(archive: Archive, path: Path) -> None:
    """Unpack `path` into its folder: into a hidden folder first, whose contents are moved when all
    of it is unpacked.
    """
    root = path.parent
    hidden = root / f".{path.name}.unpacking"
    shutil.rmtree(hidden, ignore_errors=True)  # left by a process that was killed
    try:
        hidden.mkdir()
        existing = _extract(archive, path, hidden)
        unpacked = sorted(hidden.iterdir())
        for top in unpacked:
            top.rename(root / top.name)
    except DAMAGED_ARCHIVE_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise _error(
            f"{path} is damaged or no {'zip' if path.suffix == '.zip' else 'tar'} archive "
            f"({reason}); delete it and run again, {_by_hand(archive, root)}"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if existing:
        names = ", ".join(str(root / name) for name in sorted(existing))
        _print(
            f"left as it was, because it existed: {names}; to have it unpacked afresh, move it "
            "away and run again"
        )
    if unpacked:
        names = ", ".join(str(root / top.name) for top in unpacked)
        _print(f"unpacked {names}; {path.name} is not needed any more")


def _extract(archive: Archive, path: Path, directory: Path) -> set[str]:
    """Write the members of an archive.

    Links within the archive are written as copies of their targets.

    Args:
        archive: the official file.
        path: where it lies.
        directory: where members are written.

    Returns:
        Top folders and files that exist beside `path` already; their members are not written.

    Raises:
        UserError: a name or link leads out of the archive, or a member is neither file nor folder.
    """
    existing: set[str] = set()
    members = _zip_members(archive, path) if path.suffix == ".zip" else _tar_members(archive, path)
    _print(f"unpacking {path}")
    for name, content in tqdm(
        members, path.name, unit=" files", disable=not sys.stderr.isatty(), leave=False
    ):
        inner = PureWindowsPath(name)  # splits at / and \, and knows drives
        if inner.anchor or ".." in inner.parts or "\0" in name:
            raise _unsafe_member(path, name)
        if not inner.parts or os.path.lexists(path.parent / inner.parts[0]):
            existing.update(inner.parts[:1])
            continue
        target = directory.joinpath(*inner.parts)
        (target if content is None else target.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)
    return existing


def _unsafe_member(path: Path, name: str) -> UserError:
    return _error(
        f"{path} holds {name!r}, which would be written outside its folder or is no file; nothing "
        "was unpacked, delete the archive and get it from another source"
    )


def _zip_members(archive: Archive, path: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each member; None for a folder."""
    with zipfile.ZipFile(path) as opened:
        _check_room(archive, path.parent, sum(info.file_size for info in opened.infolist()))
        for info in opened.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _unsafe_member(path, info.filename)
            if info.is_dir():
                yield info.filename, None
            else:
                with opened.open(info) as content:
                    yield info.filename, content


def _tar_members(archive: Archive, path: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """As _zip_members. tarfile takes a damaged header for the end of the archive and may stop
    before gzip's checksum, so both are checked where no md5 is known.
    """
    _check_room(archive, path.parent, path.stat().st_size)
    with tarfile.open(path) as opened:
        for member in opened:
            try:
                # for a link the content of its target; None for folders and devices
                content = opened.extractfile(member)
            except KeyError as error:
                raise _unsafe_member(path, member.name) from error
            if content is None and not member.isdir():
                raise _unsafe_member(path, member.name)
            yield member.name, content
        if archive.md5 is None and opened.fileobj is not None:
            opened.fileobj.seek(opened.offset)
            if opened.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends in the middle")
            while opened.fileobj.read(CHUNK_BYTES):
                pass
