"""The style of figures, and writing them as PNG, as an SVG file, and as an SVG inside a page.

Lines have the colours of Okabe and Ito (2008), which colour-blind readers can tell apart. Marker
and dash tell them apart in grayscale. After every six lines the dashes, and the hatches of bars,
are shifted by one, so that no two of the first 36 are alike. Maps use cividis (Nuñez et al. 2018).
In a page, the colours of text and series become CSS variables, so that one drawing serves the light
and the dark theme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TEXT_COLOUR, GRID_COLOUR = "#1b1c1e", "#c8c9cb"
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
HATCHES = ("", "////", "..", "xxxx", "\\\\\\\\", "----")
COLOUR_MAP = "cividis"
# Text of 9 points is still legible if a phone shows a figure of this width with 360 pixels.
WIDTH_INCHES = 4.6
RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": TEXT_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.edgecolor": TEXT_COLOUR,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
CSS_VARIABLES = {TEXT_COLOUR: "currentColor", GRID_COLOUR: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES_COLOURS, 1)
}


def series(number: int) -> dict[str, Any]:
    """Colour, marker and dash of the `number`-th line (from 0)."""
    return {
        "color": SERIES_COLOURS[number % len(SERIES_COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[_shifted(number)],
    }


def filling(number: int) -> dict[str, Any]:
    """Colour and hatch of the `number`-th kind of bar (from 0)."""
    return {
        "color": SERIES_COLOURS[number % len(SERIES_COLOURS)],
        "hatch": HATCHES[_shifted(number)],
        "edgecolor": TEXT_COLOUR,
        "linewidth": 0.5,
    }


def _shifted(number: int) -> int:
    return (number + number // len(SERIES_COLOURS)) % len(SERIES_COLOURS)


@contextmanager
def drawing(height: float, width: float = WIDTH_INCHES) -> Iterator[tuple[Figure, Any]]:
    """An empty figure and its axes in our style, which is active inside the block only.

    Args:
        height: Inches.
        width: Inches.
    """
    with mpl.rc_context(RC_PARAMS):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def start_at_floor(axes: Any) -> None:
    """Let a vertical axis in percent start at 0, or at 50 or 80 if everything lies well above, and
    end at 100 at the most, so that small differences do not look large.
    """
    low, high = axes.dataLim.y0, axes.dataLim.y1
    floor = max(start for start in (-math.inf, 0, 50, 80) if low >= start + start / 20)
    if floor < 0:
        return
    top = high + 0.08 * max(high - floor, 1)
    axes.set_ylim(floor, min(101.0, top) if high <= 100 else top)


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white."""
    file = io.BytesIO()
    with mpl.rc_context(RC_PARAMS):
        figure.savefig(file, format="png", dpi=160, facecolor="white")
    return file.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The text of an SVG with a transparent background; equal figures give equal texts.

    Args:
        figure: The figure.
        name: Identifiers in the SVG begin with it, so that a page may have several.
    """
    file = io.StringIO()
    style: Any = {**RC_PARAMS, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure.savefig(
            file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None}
        )
    text = file.getvalue()
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)


def svg_file(drawn: str) -> str:
    """An SVG on white, for a file."""
    return re.sub(
        r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', drawn, count=1
    )


def inline_svg(drawn: str, name: str, title: str, text: str) -> str:
    """An SVG for a page: in the page's colours and font, with a text alternative.

    Args:
        drawn: The text of the SVG.
        name: The name with which its identifiers begin.
        title: A short title.
        text: What the figure shows, in words.
    """
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    for colour, variable in CSS_VARIABLES.items():
        drawn = re.sub(re.escape(colour), variable, drawn, flags=re.IGNORECASE)
    drawn = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    drawn = re.sub(r"\n\s*", "\n", drawn)
    head, _, rest = drawn.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    labels = (
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(text)}</desc>'
    )
    return f'{head} role="img" aria-labelledby="{name}-title {name}-text">{labels}{rest}'.strip()
