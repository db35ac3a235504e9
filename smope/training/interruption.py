"""SIGINT and SIGTERM: noted during a training step and answered after it, answered at once
elsewhere.

Where several processes train together, they stop at the same place or they would wait for each
other: a signal is noted wherever it comes and answered by all of them at the next batch, see
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
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Answer signals until the end of the block; does nothing outside the main thread.

        The first signal puts the handlers back that were there before, so a second one stops the
        process as ever. A signal that is ignored (nohup, a background job of a script) stays
        ignored.
        """
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {
                n: handler
                for n, handler in handlers.items()
                if handler not in (None, signal.SIG_IGN)
            }
            for number in self._before:
                signal.signal(number, self._answer)
        try:
            yield
        finally:
            self._put_back()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that is finished first: a signal in it is raised at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._noted is not None and collectives.world() == 1:
            self._stop(self._noted)

    def agree(self) -> None:
        """Called by all processes in the same place: where one of them has noted a signal, all
        stop here.
        """
        if collectives.world() > 1:
            [number] = collectives.largest([self._noted or 0])
            if number:
                self._stop(number)

    def _stop(self, number: int) -> NoReturn:
        self._noted = None
        raise Interrupted(number)

    def _answer(self, number: int, _frame: FrameType | None) -> None:
        self._put_back()
        if not self._held and collectives.world() == 1:
            raise Interrupted(number)
        self._noted = number
        if collectives.is_first():
            with suppress(OSError):
                os.write(2, NOTICE)  # print may be what the signal came into

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
