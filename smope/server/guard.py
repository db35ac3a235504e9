"""What is checked of every request before anything reads it, and what every answer carries.

The server has no password. What protects it from web pages that a user of this machine visits:

    Host            must be an address, localhost or a name that the server was given. A page whose
                    own name is made to point here (DNS rebinding) sends its own name.
    Origin          must be the server's own where something is sent; browsers say it, and a page
                    cannot change it. So does Sec-Fetch-Site.
    answers         run no script but the page's own, load nothing from elsewhere, are in no frame,
                    and are stored nowhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smope.server.answers import error_answer
from smope.server.refusal import Refusal

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OWN_PAGE = ("same-origin", "none")  # of Sec-Fetch-Site; none: typed by the user
OVERHEAD_BYTES = 100_000  # of a request beside its files: names and boundaries
LARGEST_AT_A_TIME = 8  # requests of the largest size whose bodies are in memory together
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        names: by which the server may be called, beside addresses and localhost.
        request_bytes: how large the files of a request may be together.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], request_bytes: int) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}
        self._request_bytes = request_bytes
        self._held_bytes = 0  # of the bodies of all requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check(scope["method"], headers)
        except Refusal as refusal:
            await error_answer(refusal)(scope, receive, send_with_headers)
            return
        with self._counted(receive) as receive_counted:
            await self._app(scope, receive_counted, send_with_headers)

    def _check(self, method: str, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Refusal(
                403,
                "Host: is not a name of this server; open the address that it printed, or start it "
                "with --name NAME",
            )
        if method not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2].lower() != hosts[0].lower():
                raise Refusal(403, "Origin: requests from other web pages are refused")
            if headers.get("sec-fetch-site", "none") not in OWN_PAGE:
                raise Refusal(403, "Sec-Fetch-Site: requests from other web pages are refused")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most_bytes:
            raise self._too_large()

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    @property
    def _most_bytes(self) -> int:
        return self._request_bytes + OVERHEAD_BYTES

    def _too_large(self) -> Refusal:
        megabytes = self._request_bytes / 1e6
        return Refusal(
            413,
            f"images: more than {megabytes:g} MB in one request; send fewer, or start the server "
            "with a larger --max-upload",
        )

    @contextmanager
    def _counted(self, receive: Receive) -> Iterator[Receive]:
        """The body, as far as neither it nor all bodies together are too large: its length need not
        have been declared. It counts until the request is answered.
        """
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            size = len(message.get("body", b""))
            read += size
            self._held_bytes += size
            if read > self._most_bytes:
                raise self._too_large()
            if self._held_bytes > LARGEST_AT_A_TIME * self._most_bytes:
                raise Refusal(503, "images: the server holds too many already; try again")
            return message

        try:
            yield receive_counted
        finally:
            self._held_bytes -= read
