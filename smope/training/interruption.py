"""SIGINT and SIGTERM: during a training step they are obeyed after it, elsewhere at once.

Several processes that train together must stop at the same place, or they would wait for each
other. There a signal is noted wherever it arrives, and all processes obey it at the next batch; see
`agree`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from smope.distributed import collectives
from smope.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nstopping after this step; a second signal stops at once\n"


class Interruption:
    """Turns signals into `Interrupted`, raised where nothing is half done.

    Without `watching` nothing is ever raised, and `held` costs nothing.
    """

    def __init__(self) -> None:
        self._held = False
        self._noted: int | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle signals until the end of the block; does nothing outside the main thread.

        The first signal restores the handlers of before, so a second one stops the process at once.
        A signal that was ignored (nohup, a background job of a script) stays ignored.
        """
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._old_handlers = {
                n: handler
                for n, handler in handlers.items()
                if handler not in (None, signal.SIG_IGN)
            }
            for number in self._old_handlers:
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            self._restore_handlers()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that is not interrupted: a signal within it is raised at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._noted is not None and collectives.world() == 1:
            self._stop(self._noted)

    def request(self, number: int) -> None:
        """Stop at the end of the step that another thread is in, as a signal would.

        Args:
            number: of the signal that asks for it.
        """
        self._noted = number

    def agree(self) -> None:
        """Stop here if any process has noted a signal; all processes call this at the same
        place.
        """
        if collectives.world() > 1:
            [number] = collectives.largest([self._noted or 0])
            if number:
                self._stop(number)

    def _stop(self, number: int) -> NoReturn:
        self._noted = None
        raise Interrupted(number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._restore_handlers()
        if not self._held and collectives.world() == 1:
            raise Interrupted(number)
        self._noted = number
        if collectives.is_first():
            with suppress(OSError):
                os.write(2, NOTICE)  # the signal may have interrupted a print

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}
