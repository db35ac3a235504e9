"""The one error class for everything a user can cause and put right."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, file or combination that came from the user.

    The message names the key, the value, the rule and the way out in one line; the command line prints it
    without a traceback and exits with code 2. A failed assertion, by contrast, is a fault of this program.
    """
