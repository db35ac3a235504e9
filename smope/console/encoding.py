"""How the terminal and logs show what they cannot encode.

The name of a file need not be text, and a terminal may lack letters. A byte that is not UTF-8 is
shown as \\xe9, as in the names of classes.
"""

from __future__ import annotations

import codecs
import io
import sys

SHOW_ANY_NAME = "smope.any_name"  # what `errors=` of a text file is called


def print_any_name() -> None:
    """Let standard output and standard error show every name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SHOW_ANY_NAME)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """The bytes that Python marked in a name (surrogateescape) as \\xNN, other letters as
    `backslashreplace` has them.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = "".join(
        f"\\x{ord(letter) - 0xDC00:02x}"
        if "\udc80" <= letter <= "\udcff"
        else letter.encode("ascii", "backslashreplace").decode()
        for letter in letters
    )
    return escaped, error.end


codecs.register_error(SHOW_ANY_NAME, _escaped)
