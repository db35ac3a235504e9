"""The accuracy matrix in colour, where a terminal has colours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from smope.console.tables import matrix_table

# From dark blue over grey to yellow, as in the report's maps: the numbers of background and text in
# the palette of 256 colours.
SHADES = ((17, 15), (60, 15), (102, 16), (143, 16), (185, 16))


def has_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to write colours: to a terminal that has them, unless NO_COLOR is set (no-color.org).

    Args:
        stream: Where the text goes.
        environment: Environment variables.
    """
    plain = environment.get("NO_COLOR") or environment.get("TERM") in (None, "dumb")
    return stream.isatty() and not plain


def coloured_matrix(matrix: Sequence[Sequence[float | None]], width: int | None = None) -> str:
    """`matrix_table` with backgrounds from dark (0 %) to bright (100 %).

    Args:
        matrix: Fractions; None where nothing was measured.
        width: Characters of a line; None: those of the terminal.

    Returns:
        The lines, with the codes of colours.
    """
    return matrix_table(matrix, width, _shade)


def _shade(cell: str, value: float) -> str:
    background, text = SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)]
    return f" \x1b[48;5;{background};38;5;{text}m{cell[1:]}\x1b[0m"
