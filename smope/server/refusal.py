"""The answer to a request that is not served."""

from __future__ import annotations

import logging
import os
import re

from smope.errors import UserError, one_line

UNREADABLE = 422
# up to the last separator of a path, which may hold blanks behind its first one
FOLDERS = re.compile(r"""[^\s/:;,'"()=]*/(?:[^/:;'"]*/)*""".replace("/", re.escape(os.sep)))
_log = logging.getLogger(__name__)


class Refusal(UserError):
    """A request that is refused, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refusal(status: int, error: Exception) -> Refusal:
    """The refusal that an error leads to. It names files without the folders of this machine, which
    are not for clients; the terminal shows these.

    Args:
        status: of HTTP.
        error: what happened.
    """
    line = one_line(error)
    message = FOLDERS.sub("", line)
    if message != line:
        # a client's part of it must not steer the terminal
        _log.error("%s", "".join(letter for letter in line if letter.isprintable()))
    return Refusal(status, message)
