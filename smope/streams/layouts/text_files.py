"""Text files that users write: lists of classes and tables."""

from __future__ import annotations

import codecs
from pathlib import Path

MARKED_ENCODINGS = (
    # the mark of UTF-32 begins like that of UTF-16
    ("utf-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("utf-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
SHOWN_BYTES = 15  # on each side of a byte that is not text


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or another form of Unicode that its first bytes mark, as
    spreadsheets write it. OSError or UnicodeDecodeError where that fails.
    """
    content = path.read_bytes()
    for encoding, marks in MARKED_ENCODINGS:
        if content.startswith(marks):
            return content.decode(encoding)
    return content.decode("utf-8-sig")


def describe_error(error: UnicodeDecodeError) -> str:
    """The line and the bytes around what is not text: `line 2: b'caf\\xe9,train' is not UTF-8
    text`.
    """
    content, start = error.object, error.start
    line = content.count(b"\n", 0, start) + 1
    before = content[max(0, start - SHOWN_BYTES) : start].rpartition(b"\n")[2]
    after = content[start : start + SHOWN_BYTES].partition(b"\n")[0].rstrip(b"\r")
    return f"line {line}: {before + after!r} is not UTF-8 text"
