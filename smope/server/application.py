"""The web application: which address answers what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from smope.errors import UserError
from smope.server.answers import answer, error_answer, model_document, predictions_answer
from smope.server.guard import Guard
from smope.server.limits import Limits, Upload
from smope.server.page import page
from smope.server.refusal import UNREADABLE, Refusal, refusal
from smope.server.session import Session
from smope.streams.layouts.names import as_text

FOLDER = Path(__file__).parent
STATIC = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "openapi.json": "application/json",
}
DEFAULT_TOP = 5
MAX_FIELDS = 10
LONGEST_SHOWN_NAME = 120
Result = TypeVar("Result")


class Application:
    """Requests to a session. Images are classified in one thread, and learned in another."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._predicting = ThreadPoolExecutor(1, "predicting")
        self._learning = ThreadPoolExecutor(2, "learning")  # the second is refused at once

    async def page(self, request: Request) -> Response:
        """GET /"""
        return Response(page(self.session), media_type="text/html")

    async def model(self, request: Request) -> Response:
        """GET /model"""
        return answer(model_document(self.session))

    async def predict(self, request: Request) -> Response:
        """POST /predict"""
        top = _whole_number(request.query_params.get("top", str(DEFAULT_TOP)), "top")
        uploads, _ = await _read_form(request, self.session.limits)
        version, results = await _in_thread(
            self._predicting, lambda: self.session.predict(uploads, top)
        )
        return predictions_answer(version, uploads, results)

    async def learn(self, request: Request) -> Response:
        """POST /learn"""
        self.session.refuse_unless_teaching()  # before anything is read
        uploads, fields = await _read_form(request, self.session.limits)
        name, more_images = fields.get("class_name", ""), fields.get("more_images", "false")
        if more_images not in ("true", "false"):
            raise Refusal(400, f"more_images={more_images[:20]}: must be true or false")
        accuracy, remarks, served = await _in_thread(
            self._learning, lambda: self.session.learn(name, uploads, more_images == "true")
        )
        model = model_document(self.session, served)
        return answer({"accuracy": accuracy, "remarks": remarks, "model": model})

    async def undo(self, request: Request) -> Response:
        """POST /undo"""
        lesson, served = await _in_thread(self._learning, self.session.undo)
        return answer({"undone": lesson, "model": model_document(self.session, served)})

    async def mistake(self, request: Request, error: UserError) -> Response:
        """A UserError."""
        if not isinstance(error, Refusal):
            error = refusal(UNREADABLE, error, self.session.paths)
        return error_answer(error)


def web_application(session: Session, names: Collection[str] = ()) -> ASGIApp:
    """The ASGI application.

    Args:
        session: what it serves.
        names: by which the server may be called, beside addresses and localhost.
    """
    handlers = Application(session)
    routes = [
        Route("/", handlers.page),
        Route("/model", handlers.model),
        Route("/predict", handlers.predict, methods=["POST"]),
        Route("/learn", handlers.learn, methods=["POST"]),
        Route("/undo", handlers.undo, methods=["POST"]),
        *(Route(f"/{name}", _static(name, kind)) for name, kind in STATIC.items()),
    ]
    errors: dict[Any, Any] = {
        HTTPException: _refused,
        UserError: handlers.mistake,
        OSError: _failure,
        MemoryError: _failure,
        ClientDisconnect: _gone,
        Exception: _fault,
    }
    starlette = Starlette(routes=routes, exception_handlers=errors)
    return Guard(starlette, names, session.limits.request_bytes)


def _static(name: str, media_type: str) -> Callable[[Request], Response]:
    content = (FOLDER / name).read_bytes()
    return lambda request: Response(content, media_type=media_type)


async def _read_form(request: Request, limits: Limits) -> tuple[list[Upload], dict[str, str]]:
    """The files `images` of a form, at least one, and its other fields."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(415, "Content-Type: must be multipart/form-data; see /openapi.json")
    uploads: list[Upload] = []
    fields: dict[str, str] = {}
    form = await _parsed(request, limits)
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            if key != "images":
                raise Refusal(400, f"{_shown(key)}: files are sent as `images`")
            uploads.append(Upload(_shown(value.filename or "image"), await value.read()))
            await value.close()
        else:
            fields[key] = value
    if not uploads:
        raise Refusal(400, "images: send at least one image file under this name")
    return uploads, fields


async def _parsed(request: Request, limits: Limits) -> FormData:
    """A form whose files stay in memory: request.form() writes those of 1 MB to a disk."""
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=limits.images, max_fields=MAX_FIELDS
    )
    parser.spool_max_size = 0  # no bound of its own; the guard counts the bytes of a request
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, error.message) from error


def _shown(name: str) -> str:
    """A name that a client sent, as one short line."""
    return " ".join(as_text(name).split())[:LONGEST_SHOWN_NAME]


def _whole_number(text: str, key: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1 and len(text) < 9):
        raise Refusal(400, f"{key}={_shown(text)}: must be a whole number from 1")
    return int(text)


async def _in_thread(pool: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, function)


async def _refused(request: Request, error: HTTPException) -> Response:
    return error_answer(Refusal(error.status_code, error.detail))


async def _failure(request: Request, error: Exception) -> Response:
    """A full disk, or too little memory."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    return error_answer(Refusal(507, text or type(error).__name__))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    """The client ended the connection; nobody reads this."""
    return Response(status_code=400)


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of smope; the server prints it, and clients learn nothing of it."""
    return error_answer(Refusal(500, "the server has a fault; its terminal says more"))
