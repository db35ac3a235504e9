"""The map of confused classes, readable from two classes to thousands."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from matplotlib import colors
from numpy.typing import NDArray

from smope.console.markup import Grid
from smope.report import style
from smope.report.figures import Figure, points

MAX_CELLS = 250  # a side; more classes are drawn as groups of neighbours
MAX_NAMED = 30  # classes that are all named at an axis
NAME_CHARACTERS = 18


def confusion_map(
    name: str,
    title: str,
    counts: Any,
    names: Sequence[str],
    *,
    starts: list[int],
    text: str,
    grid: Grid,
) -> Figure:
    """Which share of each class is taken for which class, as a map.

    The colours are those of the square root of the share, so that single mistakes are seen beside
    the diagonal.

    Args:
        name: See Figure, as title, text and grid.
        counts: (C, C) sparse numbers of images: row the class of the image, column the predicted
            class.
        names: of the classes.
        starts: The first class of each task but the first; lines are drawn before them.
    """
    shares, step = _grouped(counts)
    size, classes = len(shares), counts.shape[0]
    named = classes <= MAX_NAMED
    height = min(style.WIDTH_INCHES * 0.95, 2.6 + 0.16 * size) if named else style.WIDTH_INCHES
    with style.drawing(height=height) as (figure, axes):
        image = axes.imshow(
            numpy.ma.masked_invalid(shares),
            cmap=style.COLOUR_MAP,
            norm=colors.PowerNorm(0.5, vmin=0, vmax=1),
            interpolation="none",
            aspect="auto",
            extent=(0, classes, classes, 0),
        )
        axes.set(xlabel="predicted class", ylabel="class of the image")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        if named:
            middle = numpy.arange(classes) + 0.5
            short = [textwrap.shorten(each, NAME_CHARACTERS, placeholder="…") for each in names]
            axes.set_xticks(middle, short, rotation=90, fontsize=7)
            axes.set_yticks(middle, short, fontsize=7)
        for start in starts if len(starts) < 25 else ():
            axes.axhline(start, color="#ffffff", linewidth=0.5)
            axes.axvline(start, color="#ffffff", linewidth=0.5)
        bar = figure.colorbar(
            image,
            ax=axes,
            pad=0.02,
            ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1],
            format=lambda value, _: f"{100 * value:.0f}",
        )
        bar.outline.set_visible(False)
        bar.ax.set_title("%", fontsize=8, fontweight="normal")
    caption = "White lines part the tasks. " if starts else ""
    caption += "Classes are in the order in which they were learned"
    caption += "." if named else ", numbered from 0; their names are in the section on classes."
    if step > 1:
        caption += f" A cell is the mean of {step} neighbouring classes."
    return Figure(name, title, text, figure, grid, caption)


def _grouped(counts: Any) -> tuple[NDArray[Any], int]:
    """Shares of each class's images; of groups of `step` neighbours if there are many classes."""
    step = -(-counts.shape[0] // MAX_CELLS)
    size = -(-counts.shape[0] // step)
    cells = counts.tocoo()
    sums = numpy.zeros((size, size))
    numpy.add.at(sums, (cells.row // step, cells.col // step), cells.data)
    total = sums.sum(1, keepdims=True)
    return numpy.divide(sums, total, out=numpy.full_like(sums, numpy.nan), where=total > 0), step


def pair_grid(pairs: pandas.DataFrame) -> Grid:
    """The result of `analysis.confused_pairs` as a table."""
    head = ["class", "taken for", "images", "% of the class", "images the other way"]
    rows = [
        [
            str(row["class"]),
            str(row["predicted"]),
            str(row["images"]),
            points(row["share"]),
            str(row["back"]),
        ]
        for row in pairs.to_dict("records")
    ]
    return [head, *rows]
