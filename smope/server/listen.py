"""The address of the server, and serving until somebody stops it."""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from smope.errors import UserError

DEFAULT_PORT = 8000
REQUESTS_AT_A_TIME = 64  # more are answered with 503
GRACE_SECONDS = 10  # for what is being answered when the server is stopped


def open_socket(host: str, port: int | None) -> socket.socket:
    """A listening socket.

    Args:
        host: a name or an address of this machine.
        port: its port, 0 for any that is free; None for the default one, or a free one if that is
            in use.

    Raises:
        UserError: the host is not this machine, or the port is in use or forbidden.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, DEFAULT_PORT if port is None else port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError) as error:
        raise _no_host(host, "is not known") from error
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            if port is None:
                return open_socket(host, 0)
            raise UserError(
                f"--port={port}: is in use; choose another, or leave --port out for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise UserError(
                f"--port={port}: is for the administrator alone; choose one from 1024"
            ) from error
        raise _no_host(host, "is not an address of this machine") from error


def _no_host(host: str, problem: str) -> UserError:
    return UserError(f"--host={host}: {problem}; leave it out for this machine alone (127.0.0.1)")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def names_of(host: str) -> tuple[str, ...]:
    """The names by which other machines may call a server that they reach."""
    return () if is_loopback(host) else (host, socket.gethostname())


def address_of(listening: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    application: ASGIApp,
    listening: socket.socket,
    on_ready: Callable[[], object],
    on_stop: Callable[[], object],
) -> None:
    """Serve until a signal; KeyboardInterrupt after Ctrl-C.

    Args:
        application: answers requests.
        listening: the socket.
        on_ready: called when requests are answered.
        on_stop: called in the handler of the signal, so that what is being computed ends.
    """
    # Pillow's remarks about files of clients say nothing to whoever started the server, and its
    # bound on pixels, at which it warns, is above that of limits.py.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        limit_concurrency=REQUESTS_AT_A_TIME,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    _Server(config, on_ready, on_stop).run([listening])


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and when it has to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], object],
        on_stop: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(signal.Signals(sig), frame)
