"""Official archives: downloaded when the user asks for it, continued after interruptions, checked,
unpacked safely.
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

TIMEOUT_SECONDS = 30.0  # without an answer or a byte, after which a connection counts as lost
PAUSE_SECONDS = 2.0  # before a lost connection is taken up again
CHUNK_BYTES = 2**16
# What the standard library raises for damaged archives, and (RuntimeError) for encrypted ones.
DAMAGED = (
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

    url: its official address; filename: what it is called on disk, ending in .zip or as tar files
    do;
    md5: hexadecimal, None where none is known; size: in bytes, None where it is not known.
    """

    url: str
    filename: str
    md5: str | None
    size: int | None = None


class _Lost(Exception):
    """A connection that failed or ended too early; the text says how."""


def fetch_archive(archive: Archive, root: Path) -> None:
    """Download `archive` into `root` (made if missing), check it, and unpack it there with its own
    top folders.

    An archive that lies in `root` already is checked and used without a network. A download is
    written to `<filename>.part` and continued from there, within the call while connections bring
    bytes and by the next call after that; what identifies the server's file stands in
    `<filename>.part.version`, so that parts of two versions are never joined. Size and md5 are
    compared before anything is unpacked; without a published md5 the sha256 is printed. A file that
    fails stays where it is, and is refused until it is deleted.

    Top folders and files appear in `root` when all of them are unpacked; one that exists already is
    left as it is. The archive is kept. What happens is said in lines on stderr, with bars on a
    terminal. This does not ask whether the data are needed: call it when the user has asked for a
    download and they are not there. Of two processes, the second waits. UserError in one line, with
    the address and the folder, for all that can go wrong.
    """
    root = root.expanduser()
    path = root / archive.filename
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{archive.filename}.lock"):
            if path.is_file():
                _line(f"found {path}: nothing to download")
            else:
                _download(archive, path)
            _check(archive, path)
            _unpack(archive, path)
    except OSError as error:  # of files: those of the network have become _Lost
        where = f" ({error.filename})" if error.filename else ""
        raise _refused(
            f"cannot read or write in {root}: {error.strerror or error}{where}; make room there, "
            "or give another stream.root that you may write to; what is downloaded is kept"
        ) from error


def _refused(text: str) -> UserError:
    return UserError(f"stream.download=true: {text}")


def _by_hand(archive: Archive, root: Path) -> str:
    return f"or get {archive.url} by other means, put it as {archive.filename} into {root} and run again"


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:,.1f} MB"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock on `path`, so that runs started together do not write into each other's files."""
    with path.open("a") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _line(f"another process is fetching into {path.parent}; waiting until it is done")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # some network file systems know no locks
                pass
        yield


def _check_room(archive: Archive, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise _refused(
            f"{archive.filename} needs {_megabytes(needed)} more in {root} to be downloaded and "
            f"unpacked, and {_megabytes(free)} are free; make room or give another stream.root; "
            "what is downloaded is kept"
        )


def _download(archive: Archive, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        while not _brought_whole(archive, part):
            time.sleep(PAUSE_SECONDS)
    except KeyboardInterrupt:
        _line(f"interrupted; {_kept(part)}run again to go on from there")
        raise
    part.rename(path)
    _version_file(part).unlink(missing_ok=True)


def _brought_whole(archive: Archive, part: Path) -> bool:
    """Whether one more connection has brought the end of the file; UserError if it has not even
    brought more of it.
    """
    before = _size(part)
    try:
        _receive(archive, part)
    except _Lost as error:
        if _size(part) <= before:
            raise _refused(
                f"cannot get {archive.url} ({error}); {_kept(part)}run again later, "
                f"{_by_hand(archive, part.parent)}"
            ) from error
        _line(f"connection lost after {_megabytes(_size(part))} ({error}); trying again")
        return False
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(part: Path) -> str:
    return f"{part} keeps {_megabytes(_size(part))}; " if _size(part) else ""


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _resumable(part: Path) -> tuple[int, str]:
    """Bytes that are there and the version they belong to; (0, "") where there is nothing to build
    on.
    """
    with suppress(OSError):
        version = _version_file(part).read_text(encoding="utf-8").strip()
        return (_size(part), version) if version else (0, "")
    return 0, ""


def _version(headers: http.client.HTTPMessage) -> str:
    """What If-Range can name a version by (RFC 9110, section 13.1.5): a strong ETag, else the date
    of change.
    """
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _receive(archive: Archive, part: Path) -> None:
    """Write what one connection brings to `part`, from its end where it can be continued.

    Raises _Lost.
    """
    answer, start = _connect(archive, part)
    with answer:
        length = answer.headers.get("Content-Length")
        total = archive.size if length is None else start + int(length)
        if archive.size not in (None, total):
            raise _refused(
                f"{archive.url} has {total:,} bytes instead of {archive.size:,}, so it is not the "
                f"known file; look at the address in a browser, {_by_hand(archive, part.parent)}"
            )
        # once more for what is unpacked
        _check_room(archive, part.parent, 2 * (total or 0) - start)
        there = f", going on after the {_megabytes(start)} that are there" if start else ""
        _line(
            f"downloading {archive.url} ({_megabytes(total)}) to "
            f"{part.with_name(archive.filename)}{there}"
        )
        with part.open("ab" if start else "wb") as file:
            if not start:
                _version_file(part).write_text(_version(answer.headers), encoding="utf-8")
            for chunk in _shown(_chunks(answer), archive.filename, start, total):
                file.write(chunk)
    if total is not None and _size(part) < total:
        raise _Lost(f"it ended after {_size(part):,} of {total:,} bytes")


def _connect(archive: Archive, part: Path) -> tuple[http.client.HTTPResponse, int]:
    """The server's answer and the byte it starts with: the one after `part`, or 0 where that
    cannot be continued.
    """
    start, version = _resumable(part)
    answer = _open(
        archive, part, {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    )
    if start and answer is not None and answer.status == 206:
        rest = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if rest and _version(answer.headers) in ("", version):
            return answer, start
        answer.close()
        answer = None
    if start:
        _line(
            f"{part} cannot be continued, {archive.url} has changed or is only sent as a whole; "
            "starting over"
        )
    answer = answer or _open(archive, part, {})
    assert answer is not None
    return answer, 0


def _open(archive: Archive, part: Path, headers: dict[str, str]) -> http.client.HTTPResponse | None:
    """The server's answer, or None where it has nothing in the range asked for."""
    request = urllib.request.Request(archive.url, headers={"User-Agent": "smope"} | headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and headers:
            return None
        raise _refused(
            f"{archive.url} answers {error.code} {error.reason}; {_kept(part)}run again later, "
            f"{_by_hand(archive, part.parent)}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Lost(str(getattr(error, "reason", "") or error) or type(error).__name__) from error


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := answer.read1(CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Lost(str(error) or type(error).__name__) from error


def _shown(chunks: Iterable[bytes], name: str, done: int, total: int | None) -> Iterator[bytes]:
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
                _line(f"{name}: {done * 10 // total * 10} % of {_megabytes(total)}")


def _check(archive: Archive, path: Path) -> None:
    """UserError unless `path` has the size and md5 of the official file."""
    wrong = f"it is not the official file or not all of it; delete it and run again, {_by_hand(archive, path.parent)}"
    size = path.stat().st_size
    if archive.size not in (None, size):
        raise _refused(f"{path} has {size:,} bytes instead of {archive.size:,}: {wrong}")
    with path.open("rb") as file:
        if archive.md5 is None:
            _line(
                f"{path}: no md5 is published for it; its sha256 is "
                f"{hashlib.file_digest(file, 'sha256').hexdigest()}"
            )
            return
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5.lower():
        raise _refused(f"{path} has md5 {found} instead of {archive.md5}: {wrong}")
    _line(f"{path}: size and md5 are right")


def _unpack(archive: Archive, path: Path) -> None:
    """Unpack `path` beside it: into a hidden folder first, and from there into place when all of
    it is there.
    """
    root = path.parent
    hidden = root / f".{path.name}.unpacking"
    shutil.rmtree(hidden, ignore_errors=True)  # of a process that was killed
    try:
        hidden.mkdir()
        left = _extract(archive, path, hidden)
        done = sorted(hidden.iterdir())
        for top in done:
            top.rename(root / top.name)
    except DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise _refused(
            f"{path} is damaged or no {'zip' if path.suffix == '.zip' else 'tar'} archive "
            f"({reason}); delete it and run again, {_by_hand(archive, root)}"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if left:
        names = ", ".join(str(root / name) for name in sorted(left))
        _line(
            f"left as it was, because it existed: {names}; to have it unpacked afresh, move it "
            "away and run again"
        )
    if done:
        names = ", ".join(str(root / top.name) for top in done)
        _line(f"unpacked {names}; {path.name} is not needed any more")


def _extract(archive: Archive, path: Path, place: Path) -> set[str]:
    """Write all members under `place`, but for those under tops that exist beside `path`: these are
    returned.

    Only files and folders are written, links within the archive as copies; UserError for a name or
    link that leads out of it.
    """
    left: set[str] = set()
    members = _zip_members(archive, path) if path.suffix == ".zip" else _tar_members(archive, path)
    _line(f"unpacking {path}")
    for name, content in tqdm(
        members, path.name, unit=" files", disable=not sys.stderr.isatty(), leave=False
    ):
        inner = PureWindowsPath(name)  # parts at / and \, and knows drives
        if inner.anchor or ".." in inner.parts or "\0" in name:
            raise _unsafe(path, name)
        if not inner.parts or os.path.lexists(path.parent / inner.parts[0]):
            left.update(inner.parts[:1])
            continue
        target = place.joinpath(*inner.parts)
        (target if content is None else target.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)
    return left


def _unsafe(path: Path, name: str) -> UserError:
    return _refused(
        f"{path} holds {name!r}, which would be written outside its folder or is no file; nothing "
        "was unpacked, delete the archive and get it from another source"
    )


def _zip_members(archive: Archive, path: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each member; None for a folder."""
    with zipfile.ZipFile(path) as whole:
        _check_room(archive, path.parent, sum(info.file_size for info in whole.infolist()))
        for info in whole.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _unsafe(path, info.filename)
            if info.is_dir():
                yield info.filename, None
            else:
                with whole.open(info) as content:
                    yield info.filename, content


def _tar_members(archive: Archive, path: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """As _zip_members.

    tarfile takes a damaged header for the end and may stop before gzip's checksum: without an md5,
    both are looked at.
    """
    _check_room(archive, path.parent, path.stat().st_size)
    with tarfile.open(path) as whole:
        for member in whole:
            try:
                # of what a link points to; None for folders and devices
                content = whole.extractfile(member)
            except KeyError as error:
                raise _unsafe(path, member.name) from error
            if content is None and not member.isdir():
                raise _unsafe(path, member.name)
            yield member.name, content
        if archive.md5 is None and whole.fileobj is not None:
            whole.fileobj.seek(whole.offset)
            if whole.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends in the middle")
            while whole.fileobj.read(CHUNK_BYTES):
                pass
