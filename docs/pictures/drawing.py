"""What the pictures are drawn with: SVG texts whose colours follow a light or dark palette.

Alone, as in the README, a picture follows the reader's system. Inside a page of the site it follows
the palette of the page. The same data give the same bytes.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LIGHT = {
    "ink": "#1f2430", "muted": "#5d6675", "line": "#b9c0cc", "card": "#eef1f6",
    "blue": "#3949ab", "orange": "#d9480f", "teal": "#0b7d72", "plum": "#862e9c",
}  # fmt: skip
DARK = {
    "ink": "#e7eaf1", "muted": "#a4adbd", "line": "#5a6375", "card": "#2c3240",
    "blue": "#91a7ff", "orange": "#ff922b", "teal": "#38d9a9", "plum": "#e599f7",
}  # fmt: skip
SYNC = '[data-md-color-scheme="{scheme}"] svg.smope'


def measured() -> dict[str, Any]:
    """What measure.py has stored."""
    return json.loads(Path(__file__).with_name("measured.json").read_text(encoding="utf-8"))


def picture(width: int, height: int, parts: Iterable[str]) -> str:
    """A whole SVG file."""
    body = "\n".join(parts)
    return (
        f'<svg class="smope" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">\n'
        f"<style>{_style()}</style>\n{body}\n</svg>\n"
    )


def _style() -> str:
    light, dark = (
        ";".join(f"--{name}:{value}" for name, value in palette.items())
        for palette in (LIGHT, DARK)
    )
    return (
        f"svg.smope{{{light}}}"
        f"@media(prefers-color-scheme:dark){{svg.smope{{{dark}}}}}"
        f"{SYNC.format(scheme='default')}{{{light}}}"
        f"{SYNC.format(scheme='slate')}{{{dark}}}"
    )


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 14,
    colour: str = "ink",
    anchor: str = "start",
    bold: bool = False,
) -> str:
    """One line of text; (x, y) is on its base line."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size}" text-anchor="{anchor}"{weight} '
        f'style="fill:var(--{colour})">{html.escape(words)}</text>'
    )


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str = "card",
    stroke: str = "none",
    opacity: float = 1.0,
    radius: float = 4,
) -> str:
    """A rectangle with round corners."""
    edge = "none" if stroke == "none" else f"var(--{stroke})"
    inside = "none" if fill == "none" else f"var(--{fill})"
    size = f'width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}"'
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" {size} '
        f'style="fill:{inside};stroke:{edge};fill-opacity:{_n(opacity)}"/>'
    )


def line(points: Sequence[tuple[float, float]], colour: str = "line", *, width: float = 1.5) -> str:
    """A line through points."""
    joined = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return (
        f'<polyline points="{joined}" style="fill:none;stroke:var(--{colour});'
        f'stroke-width:{_n(width)};stroke-linejoin:round"/>'
    )


def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = "muted") -> str:
    """A straight arrow, from left to right or downward."""
    to_x, to_y = end
    if start[1] == to_y:
        head = [(to_x - 7, to_y - 4), (to_x, to_y), (to_x - 7, to_y + 4)]
    else:
        head = [(to_x - 4, to_y - 7), (to_x, to_y), (to_x + 4, to_y - 7)]
    return line([start, end], colour) + line(head, colour)


def dot(x: float, y: float, colour: str) -> str:
    """A point of a curve."""
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.5" style="fill:var(--{colour})"/>'


def scan(
    pixels: Sequence[int],
    x: float,
    y: float,
    side: float,
    *,
    colour: str = "ink",
    frame: str = "card",
) -> str:
    """A scanned digit of 8 by 8 values 0..16 in a square with this upper left corner."""
    cell = side / 8
    parts = [box(x, y, side, side, fill=frame, radius=3)]
    for index, value in enumerate(pixels):
        if value > 1:
            row, column = divmod(index, 8)
            left, top = x + column * cell, y + row * cell
            parts.append(box(left, top, cell, cell, fill=colour, opacity=value / 16, radius=0))
    return "".join(parts)


def _n(value: float) -> str:
    """A number with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
