"""The answer to a request that is not served."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from smope.errors import UserError, one_line
from smope.server.hidden_folders import without_folders

UNREADABLE = 422
_log = logging.getLogger(__name__)


class Refusal(UserError):
    """A request that is refused, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refusal(status: int, error: Exception, known: Sequence[Path] = ()) -> Refusal:
    """The refusal that an error leads to. It names files without the folders of this machine, which
    are not for clients; the terminal shows these.

    Args:
        status: of HTTP.
        error: what happened.
        known: files and folders of the server.
    """
    line = one_line(error)
    message = without_folders(line, known)
    if message != line:
        # a client's part of it must not steer the terminal
        _log.error("%s", "".join(letter for letter in line if letter.isprintable()))
    return Refusal(status, message)
