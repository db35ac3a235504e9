"""Colour only where it is wanted, and the same numbers with and without it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from smope.console.colour import coloured_matrix, has_colour
from smope.console.progress import Progress
from smope.console.tables import matrix_table

MATRIX = [[0.95, None], [0.1, 0.5]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_where_colour_is_wanted(environment: dict[str, str], expected: bool) -> None:
    assert has_colour(Terminal(), environment) == expected
    assert not has_colour(io.StringIO(), environment), "a pipe or a file"


def test_the_numbers_are_the_same() -> None:
    coloured = coloured_matrix(MATRIX)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == matrix_table(MATRIX)
    assert coloured.count("\x1b[0m") == 3, "measured cells alone"
    assert "\x1b[48;5;185;38;5;16m  95.0\x1b[0m" in coloured
    assert "\x1b[48;5;17;38;5;15m  10.0\x1b[0m" in coloured


def test_the_log_stays_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Progress(tmp_path / "log").line("plain", "\x1b[1mcoloured")
    assert "coloured" in terminal.getvalue()
    assert (tmp_path / "log").read_text(encoding="utf-8") == "plain\n"
