"""An HTTP server on this machine that serves one file as well or badly as a test wants, and
archives to serve.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def tar(
    files: dict[str, bytes], mode: str = "w:gz", links: dict[str, tuple[bytes, str]] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as whole:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("birds")
        folder.type = tarfile.DIRTYPE
        whole.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            whole.addfile(info, io.BytesIO(content))
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            whole.addfile(info)
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as whole:
        whole.mkdir("birds")
        for name, content in files.items():
            whole.writestr(name, content)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content` at every address; the attributes say how well."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.headers = {"ETag": '"one"'}
        self.status = 200  # any other is all that is answered
        self.cuts: list[int] = []  # bytes after which the next connections end
        self.ranges = True  # whether Range is understood
        self.if_range = True  # whether If-Range is
        self.shift = 0  # how far from what is asked for answers to Range start
        self.length = True  # whether the length is told
        self.stamped = True  # whether answers to Range name the version
        self.asked: list[str | None] = []  # Range of each request
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/birds.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status != 200:
            return self.send_error(server.status)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", server.url)
            return self.end_headers()
        start = 0
        if asked and server.ranges:
            named = self.headers.get("If-Range", "")
            known = named in server.headers.values() and not named.startswith("W/")
            start = (
                int(asked.removeprefix("bytes=").removesuffix("-"))
                if known or not server.if_range
                else 0
            )
            start += server.shift
        if start >= len(server.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        if server.length:
            self.send_header("Content-Length", str(len(server.content) - start))
        for name, value in server.headers.items() if server.stamped or not start else ():
            self.send_header(name, value)
        self.end_headers()
        rest = server.content[start:]
        rest = rest[: server.cuts.pop(0)] if server.cuts else rest
        server.sent += len(rest)
        self.wfile.write(rest)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass
