"""Files that are no images, or more than they look: one line of refusal, and the server goes on."""

from __future__ import annotations

import asyncio
import io
import random
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from smope.server.limits import MAX_IMAGES

from .conftest import Serve, files_of, png, upload


def saved(kind: str, size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def claims(width: int, height: int) -> bytes:
    """A PNG whose header says so, with hardly a pixel behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 200 MB."""
    content = png()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 200_000_000))
    end = content.index(b"IDAT") - 4
    return content[:end] + bomb + content[end:]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.png", png())
    return file.getvalue()


JPEG, PNG, GIF, TIFF = saved("JPEG"), saved("PNG"), saved("GIF", mode="P"), saved("TIFF")
SVG = (
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
)
# name and content of an upload, status, and what the line says
UPLOADS: dict[str, tuple[str, bytes, int, str]] = {
    "nothing": ("a.jpg", b"", 422, "cannot read image a.jpg: the file is empty"),
    "text": ("a.jpg", b"no image", 422, "not a known image format"),
    "a page": ("a.jpg", b"<!DOCTYPE html><script>alert(1)</script>", 422, "not a known image"),
    "a drawing": ("a.jpg", SVG, 422, "not a known image format"),
    "a drawing by name": ("a.svg", SVG, 422, "export drawings as PNG"),
    "PostScript": (
        "a.png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        422,
        "not a known",
    ),
    "PDF": ("a.png", b"%PDF-1.7\n", 422, "not a known image format"),
    "an icon": ("a.png", saved("ICO"), 422, "not a known image format"),
    "an archive": ("a.png", zipped(), 422, "not a known image format"),
    "a program": ("a.jpg", b"\x7fELF" + bytes(200), 422, "not a known image format"),
    "camera raw": ("a.dng", TIFF, 422, "export camera raw files"),
    "half a JPEG": ("a.jpg", JPEG[: len(JPEG) // 2], 422, "cannot read image a.jpg"),
    "half a PNG": ("a.png", PNG[:-25], 422, "cannot read image a.png"),
    "half a TIFF": ("a.tif", TIFF[: len(TIFF) // 2], 422, "cannot read image a.tif"),
    "half a GIF": ("a.gif", GIF[:20], 422, "cannot read image a.gif"),
    "a wrong checksum": ("a.png", PNG.replace(b"IDATx", b"IDATy"), 422, "cannot read image"),
    "no pixels": ("a.png", claims(0, 0), 422, "cannot read image a.png"),
    "pixels that are absent": ("a.png", claims(3000, 3000), 422, "cannot read image a.png"),
    "many pixels": (
        "a.png",
        claims(7200, 7000),
        413,
        "7200 x 7000 pixels are more than",
    ),
    "a bomb": ("a.png", saved("PNG", (9000, 9000), "1"), 413, "9000 x 9000 pixels are more than"),
    "a larger bomb": ("a.png", claims(60_000, 60_000), 422, "exceeds limit of"),
    "the largest bomb": ("a.png", claims(2**31 - 1, 2**31 - 1), 422, "exceeds limit of"),
    "a comment that is a bomb": ("a.png", text_bomb(), 422, "cannot read image a.png"),
}


def refused(client: TestClient, **request: Any) -> tuple[int, str]:
    """Status and line of the answer to a request that is refused."""
    answer = client.post("/predict", **request)
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    line = answer.json()["error"]
    assert len(line.splitlines()) == 1
    assert "Traceback" not in line
    assert "/" not in line.replace("multipart/form-data", "").replace("/openapi.json", "")
    return answer.status_code, line


def test_files_that_are_no_images(serve: Serve, colours: Path) -> None:
    client = serve()
    for case, (name, content, status, words) in UPLOADS.items():
        code, line = refused(client, **upload(name, content))
        assert code == status, (case, line)
        assert words in line, (case, line)
    assert client.post("/predict", files=files_of(colours / "test", 1)).status_code == 200


def test_a_lesson_refuses_them_too(serve: Serve, tmp_path: Path) -> None:
    client = serve(teaches=True)
    good = ("images", ("good.png", png()))
    for case, (name, content, status, words) in UPLOADS.items():
        files = [good, ("images", (name, content))]
        answer = client.post("/learn", files=files, data={"class_name": "otter"})
        assert answer.status_code == status, (case, answer.text)
        assert words in answer.json()["error"], case
        assert "--skip" not in answer.json()["error"], "an option that a client does not have"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]


def test_names_do_not_steer_the_terminal(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    files = [("images", ("\x1b[2Jfolder/a.png", b"no image"))]
    answer = serve(teaches=True).post("/learn", files=files, data={"class_name": "otter"})
    assert answer.status_code == 422
    assert "[2Jfolder/a.png" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_valid_image_with_many_pixels_is_read(serve: Serve) -> None:
    content = saved("PNG", (7000, 7000), "1")
    assert serve().post("/predict", **upload("large.png", content)).status_code == 200


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_mutated_images_are_read_or_refused(kind: str, serve: Serve) -> None:
    """Never a fault, whatever bytes have changed."""
    client, draw = serve(), random.Random(0)
    original = saved(kind, (30, 20), "P" if kind == "GIF" else "RGB")
    for _ in range(40):
        content = bytearray(original[: draw.choice([len(original), draw.randrange(len(original))])])
        for _ in range(draw.randrange(1, 6)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        answer = client.post("/predict", **upload(f"a.{kind.lower()}", bytes(content)))
        assert answer.status_code in (200, 413, 422), answer.text
        assert len(answer.text.splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "C:\\Windows\\win.ini",
        "<script>alert(1)</script>.png",
        "a\nb.png",
        "x" * 1000,
        "ä" * 200,
        ".png",
        "%2e%2e%2f",
        "\u202egnp.exe",
    ],
)
def test_names_are_never_paths(name: str, serve: Serve, tmp_path: Path) -> None:
    client = serve()
    before = sorted(tmp_path.rglob("*"))
    answer = client.post("/predict", **upload(name, png()))
    assert answer.status_code == 200
    [image] = answer.json()["images"]
    assert len(image["name"]) <= 120
    assert "\n" not in image["name"]
    assert answer.headers["content-type"] == "application/json"
    assert sorted(tmp_path.rglob("*")) == before


PART = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}
BODIES: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "an image by itself": (
        {"content-type": "image/png"},
        png(),
        415,
        "must be multipart/form-data",
    ),
    "no type": ({}, png(), 415, "must be multipart/form-data"),
    "JSON": ({"content-type": "application/json"}, b"{}", 415, "must be multipart/form-data"),
    "a plain form": (
        {"content-type": "application/x-www-form-urlencoded"},
        b"images=1",
        415,
        "must be multipart/form-data",
    ),
    "no boundary": ({"content-type": "multipart/form-data"}, b"", 400, "boundary"),
    "nothing": (FORM, b"", 400, "images: send at least one"),
    "nonsense": (FORM, b"nonsense", 400, "Invalid multipart data"),
    "an unfinished part": (FORM, PART + png()[:40], 400, "images: send at least one"),
    "a part without a name": (
        FORM,
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n",
        400,
        "name",
    ),
    "a field that is no file": (
        FORM,
        b'--x\r\nContent-Disposition: form-data; name="images"\r\n\r\n1\r\n--x--\r\n',
        400,
        "images: send at least one",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_no_forms(case: str, serve: Serve) -> None:
    headers, content, status, words = BODIES[case]
    code, line = refused(serve(), headers=headers, content=content)
    assert (code, words in line) == (status, True), line


def test_a_file_under_another_name(serve: Serve) -> None:
    code, line = refused(serve(), files=[("picture", ("a.png", png()))])
    assert (code, line) == (400, "picture: files are sent as `images`")


def test_too_many_files_and_fields(serve: Serve) -> None:
    client = serve()
    files = [("images", (f"{index}.png", png())) for index in range(MAX_IMAGES + 1)]
    code, line = refused(client, files=files)
    assert (code, line) == (400, "Too many files. Maximum number of files is 100.")
    fields = {f"field{index}": "1" for index in range(20)}
    code, line = refused(client, files=files[:1], data=fields)
    assert (code, line) == (400, "Too many fields. Maximum number of fields is 10.")
    code, line = refused(client, files=files[:1], data={"class_name": "x" * 1_500_000})
    assert (code, "maximum size" in line) == (400, True)


def test_too_many_bytes(serve: Serve) -> None:
    client = serve(max_bytes=300_000)
    words = "images: more than 0.3 MB in one request; send fewer, or start the server with a larger"
    code, line = refused(client, **upload("a.png", bytes(500_000)))
    assert (code, line.startswith(words)) == (413, True)


def test_an_endless_body_is_read_up_to_the_limit(serve: Serve) -> None:
    """One that does not say how long it is."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", FORM["content-type"].encode())],
    }
    read, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        body = PART if read == 0 else bytes(50_000)
        read += len(body)
        assert read < 10_000_000
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(serve(max_bytes=300_000).app(scope, receive, send))  # pyright: ignore
    assert sent[0]["status"] == 413
    assert read < 600_000


def test_uploads_of_many_clients_have_a_bound_together(serve: Serve) -> None:
    """Clients that send all but the end of a large request, and wait; later ones are served."""
    app, limit = serve(max_bytes=300_000).app, 300_000
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", FORM["content-type"].encode())],
    }

    async def request(may_end: asyncio.Event, statuses: list[int]) -> None:
        chunks = [PART, bytes(limit - 1000)]

        async def receive() -> dict[str, Any]:
            if chunks:
                return {"type": "http.request", "body": chunks.pop(0), "more_body": True}
            await may_end.wait()
            return {"type": "http.request", "body": b"\r\n--x--\r\n", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if "status" in message:
                statuses.append(message["status"])

        await app(scope, receive, send)  # pyright: ignore

    async def clients() -> list[int]:
        may_end, statuses = asyncio.Event(), []
        tasks = [asyncio.create_task(request(may_end, statuses)) for _ in range(40)]
        while len(statuses) < 20:
            await asyncio.sleep(0.01)
        assert set(statuses) == {503}
        may_end.set()
        await asyncio.gather(*tasks)
        await request(may_end, statuses)
        return statuses

    statuses = asyncio.run(clients())
    assert statuses[-1] == 422, "read to its end, and no image"
    held = statuses.count(422) - 1
    assert 6 <= held <= 12, "about eight of the largest at a time"


def test_images_stay_in_memory(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page promises: no image is written to a disk, however large it is."""

    def rollover(file: Any) -> None:
        raise AssertionError("an image is written to a disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    file = io.BytesIO()
    Image.frombytes("RGB", (700, 700), random.Random(0).randbytes(700 * 700 * 3)).save(file, "PNG")
    assert len(file.getvalue()) > 2**20
    assert serve().post("/predict", **upload("noise.png", file.getvalue())).status_code == 200
