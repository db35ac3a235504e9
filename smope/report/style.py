"""How figures look, and from one matplotlib figure to a PNG, an SVG file and an SVG that follows a
page's theme.

Lines have the colours of Okabe and Ito (2008), which colour-blind readers tell apart, and a marker
and a dash each, which tell them apart in grayscale; every six of them the dashes, and the hatches
of bars, are shifted by one, so that no two of the first 36 are alike. Maps have cividis (Nuñez et
al. 2018). In a page, ink and series colours become CSS variables, so that one drawing serves light
and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, RULE = "#1b1c1e", "#c8c9cb"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
HATCHES = ("", "////", "..", "xxxx", "\\\\\\\\", "----")
MAP = "cividis"
WIDTH = 4.6  # inches: with text of 9 points still legible where a phone shows it 360 pixels wide
STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "hatch.linewidth": 0.6,
    "axes.spines.right": False, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.facecolor": "none", "axes.linewidth": 0.8, "lines.linewidth": 1.8, "lines.markersize": 5,
    "legend.frameon": False, "figure.constrained_layout.use": True, "axes.titlesize": 9, "axes.titleweight": "bold",
}  # fmt: skip
VARIABLES = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}


def series(number: int) -> dict[str, Any]:
    """Colour, marker and dash of the `number`-th line (from 0)."""
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[_shifted(number)],
    }


def filling(number: int) -> dict[str, Any]:
    """Colour and hatch of the `number`-th kind of bar (from 0)."""
    return {
        "color": SERIES[number % len(SERIES)],
        "hatch": HATCHES[_shifted(number)],
        "edgecolor": INK,
        "linewidth": 0.5,
    }


def _shifted(number: int) -> int:
    return (number + number // len(SERIES)) % len(SERIES)


@contextmanager
def drawing(height: float, width: float = WIDTH) -> Iterator[tuple[Figure, Any]]:
    """An empty figure and its axes, in our style; nothing of matplotlib's state is changed
    outside.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=160, facecolor="white")
    return file.getvalue()


def svg(figure: Figure, name: str) -> str:
    """An SVG's text, its background transparent; the same figure gives the same text, identifiers
    begin with `name`.
    """
    file = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure.savefig(
            file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None}
        )
    text = file.getvalue()
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)


def svg_file(drawn: str) -> str:
    """An SVG for a file: on white."""
    return re.sub(
        r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', drawn, count=1
    )


def inline_svg(drawn: str, name: str, title: str, text: str) -> str:
    """An SVG for a page: in the page's colours and font, with a text alternative."""
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        drawn = re.sub(re.escape(colour), variable, drawn, flags=re.IGNORECASE)
    drawn = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    drawn = re.sub(r"\n\s*", "\n", drawn)
    head, _, rest = drawn.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    labels = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(text)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-text">{labels}{rest}'.strip()
