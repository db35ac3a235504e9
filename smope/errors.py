"""The one error class for everything a user can cause and put right, and what a signal is."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """A wrong value, file or combination that came from the user.

    The message names the key, the value, the rule and the way out in one line; the command line
    prints it without a traceback and exits with code 2. A failed assertion, by contrast, is a fault
    of smope.
    """


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop. exit_code is what a shell makes of it: 130 for SIGINT, 143 for
    SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
