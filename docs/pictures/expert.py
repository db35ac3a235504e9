"""Attention of one head: tokens of the image, and beside them the experts that it chose."""

from __future__ import annotations

from drawing import arrow, box, line, measured, picture, text

TOKENS, CELL = 12, 24


def draw() -> str:
    """The SVG text."""
    chosen = measured()["digits"][4]["experts"]
    parts = [
        text(120, 24, "experts of this head (trained)", bold=True, colour="orange"),
        text(470, 24, "tokens of the image (frozen)", bold=True, colour="blue"),
        text(12, 60, "keys", colour="muted"),
        text(12, 98, "values", colour="muted"),
    ]
    for expert in range(25):
        parts += _pair(120 + expert * 12, 8, "orange", expert in chosen)
    for token in range(TOKENS):
        parts += _pair(470 + token * CELL, 18, "blue", True)
    ends = [120 + sorted(chosen)[0] * 12, 470 + TOKENS * CELL - 8]
    parts += [
        line([(ends[0], 116), (ends[0], 126), (ends[1], 126), (ends[1], 116)], "muted"),
        arrow((380, 126), (380, 152)),
        box(230, 156, 300, 34, radius=8),
        text(380, 178, "one softmax over both, for each token", size=13, anchor="middle"),
        arrow((380, 192), (380, 214)),
        text(380, 234, "output of the head: attention weights times values", size=13,
             anchor="middle"),
    ]  # fmt: skip
    return picture(780, 246, parts)


def _pair(x: float, width: float, colour: str, used: bool) -> list[str]:
    """A key, and below it its value."""
    fill, opacity = (colour, 0.9) if used else ("line", 0.4)
    return [box(x, y, width, 26, fill=fill, opacity=opacity, radius=2) for y in (42, 80)]
