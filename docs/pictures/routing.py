"""How three images find their experts: the picture of the home page."""

from __future__ import annotations

from drawing import arrow, box, measured, picture, scan, text

SHOWN = (1, 4, 6)
ROW, TOP = 78, 74
EXPERTS_AT, CELL = 270, 14


def draw() -> str:
    """The SVG text."""
    data = measured()
    entries = [entry for entry in data["digits"] if entry["digit"] in SHOWN]
    height = TOP + ROW * len(entries) + 14
    parts = [
        text(52, 24, "image", anchor="middle", bold=True),
        box(120, 40, 500, height - 44, radius=10),
        text(136, 24, "frozen transformer", bold=True),
        text(136, 60, "a router scores the 25 experts of each head and takes 5", size=13,
             colour="muted"),
        text(690, 24, "class", anchor="middle", bold=True),
    ]  # fmt: skip
    for number, entry in enumerate(entries):
        parts += _row(entry, TOP + ROW * number)
    return picture(760, height, parts)


def _row(entry: dict, top: float) -> list[str]:
    middle = top + 30
    parts = [
        scan(entry["pixels"], 24, top + 2, 56),
        arrow((90, middle), (136, middle)),
        box(140, middle - 18, 76, 36, fill="none", stroke="line"),
        text(178, middle + 5, "router", size=13, anchor="middle"),
        arrow((218, middle), (262, middle), "orange"),
    ]
    for expert in range(25):
        chosen = expert in entry["experts"]
        x = EXPERTS_AT + expert * CELL
        parts.append(
            box(x, middle - 16, CELL - 4, 32, fill="orange" if chosen else "line",
                opacity=1 if chosen else 0.45, radius=2)
        )  # fmt: skip
    right = EXPERTS_AT + 25 * CELL
    parts.append(arrow((right + 6, middle), (660, middle)))
    parts.append(
        text(690, middle + 9, str(entry["predicted"]), size=26, anchor="middle", bold=True)
    )
    return parts
