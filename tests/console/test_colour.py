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


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_matrix_of_many_tasks_fits_the_terminal(width: int) -> None:
    tasks = 100
    matrix = [
        [(row + column) / 200 if column <= row else None for column in range(tasks)]
        for row in range(tasks)
    ]
    plain, coloured = matrix_table(matrix, width), coloured_matrix(matrix, width)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    head, *rows, note = plain.splitlines()
    assert max(map(len, [head, *rows])) <= max(width, 39) and len(rows) <= 20
    assert head.split()[2] == "1" and head.split()[-2:] == ["100", "mean"]
    assert rows[0].split() == ["1", "0.0", "...", "0.0"]
    assert rows[-1].split()[-2:] == ["99.0", "74.2"]
    assert note.startswith("(of 100 tasks")
    assert "..." not in matrix_table(matrix[:10], 100), "ten tasks in a file, as they always were"


def test_a_terminal_of_80_columns_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    matrix = [[0.5] * 20 for _ in range(20)]
    assert max(map(len, matrix_table(matrix).splitlines())) <= 80


def test_the_log_stays_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Progress(tmp_path / "log").line("plain", "\x1b[1mcoloured")
    assert "coloured" in terminal.getvalue()
    assert (tmp_path / "log").read_text(encoding="utf-8") == "plain\n"
