"""Downloads against a real HTTP server on this machine, with real archives."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import random
import re
import shutil
import socket
import stat
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams.archives import download
from smope.streams.archives.download import Archive, fetch_archive
from tests.file_server import Server, tar, zipped

FILES = {
    f"birds/{split}/{i}.jpg": random.Random(i).randbytes(20_000)
    for split in ("a", "b")
    for i in range(4)
}
STRONG = {"ETag": '"one"'}
WEAK = {"ETag": 'W/"weak"', "Last-Modified": "Sat, 01 Jan 2011 00:00:00 GMT"}
MORE = FILES | {"attributes.txt": b"1 has_bill\n"}


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(tar(FILES)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def archive(server: Server, filename: str = "birds.tar.gz", **changes: object) -> Archive:
    values = {"md5": hashlib.md5(server.content).hexdigest(), "size": len(server.content)} | changes
    return Archive(server.url, filename, **values)  # type: ignore[arg-type]


def unpacked(root: Path, files: dict[str, bytes]) -> bool:
    return all((root / name).read_bytes() == content for name, content in files.items())


def tops(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def refused(wanted: Archive, root: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch_archive(wanted, root)
    assert str(caught.value).startswith("stream.download=true: ") and "\n" not in str(caught.value)


def half(server: Server, root: Path) -> None:
    """A first run that brings 50,000 bytes: its connection ends, the next one brings nothing."""
    server.cuts = [50_000, 0]
    refused(archive(server), root, "cannot get")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("filename", ["birds.tar.gz", "birds.tgz", "birds.tar", "birds.zip"])
def test_downloaded_checked_and_unpacked(server, tmp_path, capsys, filename, known):
    make = {"birds.zip": zipped, "birds.tar": partial(tar, mode="w")}.get(filename, tar)
    server.content = content = make(MORE)
    wanted = archive(server, filename) if known else archive(server, filename, md5=None, size=None)
    root = tmp_path / "new" / "root"
    fetch_archive(wanted, root)
    assert unpacked(root, MORE)
    assert tops(root) == sorted(["attributes.txt", "birds", filename])
    assert (root / filename).read_bytes() == content
    shown = capsys.readouterr()
    size = f"{len(content) / 1e6:,.1f} MB"
    lines = shown.err.splitlines()
    assert shown.out == "" and lines[0] == f"downloading {server.url} ({size}) to {root / filename}"
    assert f"{filename}: 100 % of {size}" in lines
    checked = (
        "size and md5 are right"
        if known
        else f"its sha256 is {hashlib.sha256(content).hexdigest()}"
    )
    assert checked in shown.err
    assert (
        lines[-1]
        == f"unpacked {root / 'attributes.txt'}, {root / 'birds'}; {filename} is not needed any "
        f"more"
    )


def test_bars_on_a_terminal(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch_archive(archive(server), tmp_path)
    shown = capsys.readouterr().err
    assert "birds.tar.gz:   0%|" in shown and "files" in shown and "100 % of" not in shown


def test_a_lost_connection_is_taken_up(server, tmp_path, capsys):
    server.cuts = [50_000, 60_000]
    fetch_archive(archive(server), tmp_path)
    assert unpacked(tmp_path, FILES) and tops(tmp_path) == ["birds", "birds.tar.gz"]
    assert server.asked == [None, "bytes=50000-", "bytes=110000-"] and server.sent == len(
        server.content
    )
    shown = capsys.readouterr().err
    assert (
        f"connection lost after 0.1 MB (it ended after 50,000 of {len(server.content):,} bytes)"
        in shown
    )


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("headers", [STRONG, WEAK])
def test_the_next_run_brings_only_the_rest(server, tmp_path, capsys, headers, stamped):
    server.headers, server.stamped = headers, stamped
    server.cuts = [50_000, 0]
    part = tmp_path / "birds.tar.gz.part"
    message = (
        rf"cannot get {server.url} \(it ended after 50,000 of .* bytes\); {re.escape(str(part))} "
        rf"keeps 0\.1 MB; run "
        rf"again later, or get {server.url} by other means, put it as birds\.tar\.gz into "
        rf"{re.escape(str(tmp_path))}"
    )
    refused(archive(server), tmp_path, message)
    assert part.read_bytes() == server.content[:50_000]
    assert "birds" not in tops(tmp_path)
    server.asked, server.sent = [], 0
    capsys.readouterr()
    fetch_archive(archive(server), tmp_path)
    assert server.asked == ["bytes=50000-"] and server.sent == len(server.content) - 50_000
    assert unpacked(tmp_path, FILES) and tops(tmp_path) == ["birds", "birds.tar.gz"]
    assert "continuing after the 0.1 MB that are there" in capsys.readouterr().err


def test_a_moved_file_is_continued(server, tmp_path):
    moved = dataclasses.replace(archive(server), url=server.url.replace("birds.tar.gz", "moved"))
    server.cuts = [50_000]
    fetch_archive(moved, tmp_path)
    assert unpacked(tmp_path, FILES) and server.asked == [
        None,
        None,
        "bytes=50000-",
        "bytes=50000-",
    ]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_changed_file_is_not_joined(server, tmp_path, capsys, if_range):
    half(server, tmp_path)
    server.content, server.headers, server.if_range = tar(MORE), {"ETag": '"two"'}, if_range
    fetch_archive(archive(server), tmp_path)
    assert unpacked(tmp_path, MORE) and (tmp_path / "birds.tar.gz").read_bytes() == server.content
    assert "part cannot be continued" in capsys.readouterr().err


def test_a_part_longer_than_the_file_is_not_used(server, tmp_path):
    half(server, tmp_path)
    server.content = tar({"birds/a/0.jpg": b"small"})
    fetch_archive(archive(server), tmp_path)
    assert unpacked(tmp_path, {"birds/a/0.jpg": b"small"})


def test_an_answer_that_starts_elsewhere_is_not_used(server, tmp_path):
    half(server, tmp_path)
    server.shift = 1000
    fetch_archive(archive(server, md5=None, size=None), tmp_path)
    assert unpacked(tmp_path, FILES) and (tmp_path / "birds.tar.gz").read_bytes() == server.content


@pytest.mark.parametrize("ranges", [True, False])
def test_what_cannot_be_continued_starts_over(server, tmp_path, ranges):
    server.ranges = ranges
    if ranges:  # but no name for the version: nothing says that parts fit
        server.headers, server.if_range = {}, False
    half(server, tmp_path)
    server.asked, server.sent = [], 0
    fetch_archive(archive(server), tmp_path)
    assert (
        unpacked(tmp_path, FILES) and server.sent == len(server.content) and len(server.asked) == 1
    )


def test_a_server_that_does_not_tell_the_length(server, tmp_path):
    server.length = False
    server.cuts = [50_000]
    # the known size shows that the first connection was cut
    fetch_archive(archive(server), tmp_path)
    assert unpacked(tmp_path, FILES) and server.asked == [None, "bytes=50000-"]
    shutil.rmtree(tmp_path / "birds")
    (tmp_path / "birds.tar.gz").unlink()
    fetch_archive(archive(server, size=None), tmp_path)
    assert unpacked(tmp_path, FILES)


def test_an_archive_that_is_there_needs_no_network(server, tmp_path, capsys):
    (tmp_path / "birds.tar.gz").write_bytes(server.content)
    fetch_archive(archive(server), tmp_path)
    assert unpacked(tmp_path, FILES) and not server.asked
    assert f"found {tmp_path / 'birds.tar.gz'}: nothing to download" in capsys.readouterr().err


def test_a_wrong_checksum_is_never_used(server, tmp_path):
    wanted = archive(server, md5="0" * 32)
    message = (
        rf"{re.escape(str(tmp_path / 'birds.tar.gz'))} has md5 "
        rf"{hashlib.md5(server.content).hexdigest()} instead of "
        rf"{'0' * 32}: it is not the official file or not all of it; delete it and run again, or "
        rf"get {server.url}"
    )
    refused(wanted, tmp_path, message)
    refused(wanted, tmp_path, message)  # it stays, and stays refused
    assert tops(tmp_path) == ["birds.tar.gz"] and len(server.asked) == 1


def test_a_wrong_size_is_seen_before_the_download(server, tmp_path):
    message = (
        rf"has {len(server.content):,} bytes instead of 3, so it is not the known file; "
        r"look at the address"
    )
    refused(archive(server, size=3), tmp_path, message)
    assert tops(tmp_path) == []
    (tmp_path / "birds.tar.gz").write_bytes(b"half")
    refused(
        archive(server),
        tmp_path,
        r"birds\.tar\.gz has 4 bytes instead of [\d,]+: it is not the official file",
    )


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "Forbidden"), (404, "Not Found"), (503, "Service Unavailable")]
)
def test_answers_that_are_no_file(server, tmp_path, status, reason):
    server.status = status
    refused(
        archive(server),
        tmp_path,
        rf"{server.url} answers {status} {reason}; run again later, or get {server.url}",
    )
    assert tops(tmp_path) == [] and len(server.asked) == 1


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/birds.tar.gz"
    message = rf"cannot get {url} \(.*refused\); run again later, or get {url}"
    refused(Archive(url, "birds.tar.gz", None), tmp_path, message)


def test_a_full_disk_is_seen_first(server, tmp_path, monkeypatch):
    half(server, tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=60_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    server.sent = 0
    refused(
        archive(server),
        tmp_path,
        r"needs 0\.3 MB more in .*, and 0\.1 MB are free; make room or give another",
    )
    assert tops(tmp_path) == ["birds.tar.gz.part", "birds.tar.gz.part.version"]
    assert (tmp_path / "birds.tar.gz.part").stat().st_size == 50_000
    (tmp_path / "birds.zip").write_bytes(zipped({"birds/a": bytes(100_000)}))
    refused(Archive(server.url, "birds.zip", None), tmp_path, r"birds\.zip needs 0\.1 MB more")


def stop_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next download ends with `error` after its first chunk."""

    def stopped(chunks: Iterator[bytes], *arguments: object) -> Iterator[bytes]:
        monkeypatch.setattr(download, "_with_progress", whole)
        yield next(chunks)
        raise error

    whole = download._with_progress
    monkeypatch.setattr(download, "_with_progress", stopped)


def test_a_disk_that_fills_up_keeps_the_part(server, tmp_path, monkeypatch):
    stop_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), monkeypatch)
    message = (
        rf"cannot read or write in {re.escape(str(tmp_path))}: No space left on device; "
        r"make room there"
    )
    refused(archive(server), tmp_path, message)
    kept = (tmp_path / "birds.tar.gz.part").stat().st_size
    fetch_archive(archive(server), tmp_path)
    assert server.asked == [None, f"bytes={kept}-"] and kept > 0 and unpacked(tmp_path, FILES)


def test_an_interrupted_download_goes_on(server, tmp_path, monkeypatch, capsys):
    stop_with(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fetch_archive(archive(server), tmp_path)
    assert re.search(
        r"interrupted; .*part keeps .* MB; run again to continue from there",
        capsys.readouterr().err,
    )
    kept = (tmp_path / "birds.tar.gz.part").stat().st_size
    fetch_archive(archive(server), tmp_path)
    assert server.asked == [None, f"bytes={kept}-"] and kept > 0 and unpacked(tmp_path, FILES)


def test_a_root_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refused(archive(server), tmp_path / "file", r"cannot read or write in .*file: File exists")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        refused(
            archive(server),
            tmp_path / "locked",
            r"cannot read or write in .*locked: Permission denied",
        )
    assert server.asked == []


OUTSIDE = [
    "../evil",
    "/evil",
    "birds/../../evil",
    "birds\\..\\..\\evil",
    "C:\\evil",
    "\\\\host\\share\\evil",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("filename", ["birds.tar.gz", "birds.zip"])
def test_members_outside_are_refused(server, tmp_path, filename, name):
    name = f"{tmp_path}/evil" if name == "/evil" else name
    server.content = (zipped if filename.endswith("zip") else tar)(
        {"birds/a.jpg": b"a", name: b"evil"}
    )
    root = tmp_path / "inner" / "root"
    refused(
        archive(server, filename),
        root,
        r"holds '.*evil', which would be written outside its folder",
    )
    assert tops(root) == [filename] and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    "link",
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../x"),
        (tarfile.LNKTYPE, "x"),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_are_refused(server, tmp_path, link):
    server.content = tar(FILES, links={"birds/link": link})
    refused(
        archive(server),
        tmp_path,
        r"holds 'birds/link', which would be written outside its folder or is no file",
    )
    assert tops(tmp_path) == ["birds.tar.gz"]


def test_links_in_zip_archives_are_refused(server, tmp_path):
    info = zipfile.ZipInfo("birds/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO(zipped(FILES))
    with zipfile.ZipFile(buffer, "a") as whole:
        whole.writestr(info, "/etc/passwd")
    server.content = buffer.getvalue()
    refused(archive(server, "birds.zip"), tmp_path, r"holds 'birds/link'")
    assert tops(tmp_path) == ["birds.zip"]


def test_links_within_become_copies(server, tmp_path):
    links = {
        "birds/hard": (tarfile.LNKTYPE, "birds/a/0.jpg"),
        "birds/soft": (tarfile.SYMTYPE, "a/0.jpg"),
    }
    server.content = tar(FILES, links=links)
    fetch_archive(archive(server), tmp_path)
    assert unpacked(tmp_path, FILES | dict.fromkeys(links, FILES["birds/a/0.jpg"]))
    assert not (tmp_path / "birds/soft").is_symlink()


@pytest.mark.parametrize("keep", [0, 20, 700, 512 * 45, 512 * 45 + 100, -600, -100])
@pytest.mark.parametrize(
    ("filename", "content"),
    [("b.tar", tar(FILES, "w")), ("b.tar.gz", tar(FILES)), ("b.zip", zipped(FILES))],
)
def test_truncated_archives(tmp_path, filename, content, keep):
    # tar files end in blocks of zeros
    kept = content.rstrip(b"\0") if filename == "b.tar" else content
    (tmp_path / filename).write_bytes(kept[:keep])
    wanted = Archive("http://127.0.0.1:9/b", filename, None)
    refused(
        wanted,
        tmp_path,
        r"is damaged or no (zip|tar) archive \(.+\); delete it and run again, or get http://127",
    )
    assert tops(tmp_path) == [filename]


@pytest.mark.parametrize("place", [0.03, 0.4, 0.9, 1.0])
@pytest.mark.parametrize(
    ("filename", "content"), [("b.tar.gz", tar(FILES)), ("b.zip", zipped(FILES))]
)
def test_damaged_archives(tmp_path, filename, content, place):
    # the last eight bytes of gzip files are checksum and length
    first = int(place * (len(content) - 8))
    damaged = bytes(255 - value for value in content[first : first + 3000])
    (tmp_path / filename).write_bytes(content[:first] + damaged + content[first + 3000 :])
    refused(
        Archive("http://127.0.0.1:9/b", filename, None),
        tmp_path,
        r"is damaged or no (zip|tar) archive \(.+\)",
    )
    assert tops(tmp_path) == [filename]


def test_what_exists_is_left_as_it_is(server, tmp_path, capsys):
    server.content = tar(MORE)
    mine = tmp_path / "birds" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    fetch_archive(archive(server), tmp_path)
    assert list((tmp_path / "birds").iterdir()) == [mine] and mine.read_text() == "mine"
    assert (tmp_path / "attributes.txt").read_bytes() == MORE["attributes.txt"]
    shown = capsys.readouterr().err
    assert (
        f"left as it was, because it existed: {tmp_path / 'birds'}; to have it unpacked afresh"
        in shown
    )
    assert f"unpacked {tmp_path / 'attributes.txt'}; " in shown


def test_what_a_killed_run_left_is_cleared(server, tmp_path):
    hidden = tmp_path / ".birds.tar.gz.unpacking"
    (hidden / "birds").mkdir(parents=True)
    (hidden / "birds" / "old.jpg").write_bytes(b"old")
    fetch_archive(archive(server), tmp_path)
    assert (
        unpacked(tmp_path, FILES)
        and not (tmp_path / "birds" / "old.jpg").exists()
        and not hidden.exists()
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_of_two_processes_the_second_waits(server, tmp_path, capsys):
    with download._lock(tmp_path / ".birds.tar.gz.lock"):
        second = threading.Thread(target=fetch_archive, args=(archive(server), tmp_path))
        second.start()
        second.join(0.3)
        assert second.is_alive() and server.asked == []
    second.join()
    assert unpacked(tmp_path, FILES)
    assert (
        f"another process is fetching into {tmp_path}; waiting until it is done"
        in capsys.readouterr().err
    )
