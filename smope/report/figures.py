"""Figures of a report, each with the sentence that says in words what it shows, and its numbers as
a table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pandas
from matplotlib import colormaps
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from smope.console.markup import Grid
from smope.report import style


@dataclass(frozen=True)
class Figure:
    """name: of its files, and its anchor in the page; text: the alternative for who does not see
    it; grid: numbers.
    """

    name: str
    title: str
    text: str
    drawing: Drawing
    grid: Grid
    caption: str = ""


def points(value: float, digits: int = 1) -> str:
    """A fraction in percent, empty where there is none."""
    return "" if value is None or numpy.isnan(value) else f"{100 * value:.{digits}f}"


def frame_grid(frame: pandas.DataFrame, corner: str = "", digits: int = 1) -> Grid:
    """A table of fractions as percent, its index in front."""
    head = [corner or str(frame.index.name or ""), *map(str, frame.columns)]
    return [head, *([str(index), *(points(value, digits) for value in row)] for index, row in zip(
        frame.index, frame.to_numpy(dtype=float), strict=True))]  # fmt: skip


def heat_map(
    name: str,
    title: str,
    frame: pandas.DataFrame,
    *,
    text: str,
    caption: str = "",
    low: float = 0.0,
    high: float = 1.0,
) -> Figure:
    """A square table of fractions as a map, its numbers in the cells where they fit; empty where
    there is none.
    """
    values = frame.to_numpy(dtype=float)
    rows, columns = values.shape
    with style.drawing(height=min(style.WIDTH, 0.9 + 0.32 * rows)) as (figure, axes):
        mesh = axes.pcolormesh(numpy.ma.masked_invalid(values), cmap=style.MAP, vmin=low, vmax=high)
        axes.set(xlabel=str(frame.columns.name), ylabel=str(frame.index.name))
        axes.invert_yaxis()
        axes.grid(visible=False)
        every = max(1, columns // 10)
        axes.set_xticks(numpy.arange(columns)[::every] + 0.5, list(frame.columns)[::every])
        axes.set_yticks(numpy.arange(rows)[::every] + 0.5, list(frame.index)[::every])
        axes.tick_params(length=0)
        if columns <= 12:
            _write_cells(axes, values, low, high)
        bar = figure.colorbar(
            mesh, ax=axes, shrink=0.9, pad=0.02, format=lambda value, _: f"{100 * value:.0f}"
        )
        bar.outline.set_visible(False)
        bar.ax.set_title("%", fontsize=8, fontweight="normal")
    return Figure(
        name,
        title,
        text,
        figure,
        frame_grid(frame, f"{frame.index.name} / {frame.columns.name}"),
        caption,
    )


def _write_cells(axes: Any, values: NDArray, low: float, high: float) -> None:
    """Numbers in black or white, whichever stands out more from the cell.

    Not quite black: an SVG leaves black out, and the text would have the colour of the page's.
    """
    colours = colormaps[style.MAP]
    for (row, column), value in numpy.ndenumerate(values):
        if numpy.isnan(value):
            continue
        red, green, blue, _ = colours((value - low) / (high - low))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        size = 9 if values.shape[1] <= 8 else 7
        axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=size,
                  color="#ffffff" if dark else "#010101")  # fmt: skip


def lines(
    name: str,
    title: str,
    frame: pandas.DataFrame,
    columns: tuple[str, str, str],
    *,
    labels: tuple[str, str],
    text: str,
    caption: str = "",
    percent: bool = True,
) -> Figure:
    """Lines over tasks, one a group, with a band of one standard deviation (ddof 0) where there are
    several seeds.

    columns: of the group, of x and of y; labels: of the axes.
    """
    group, x, y = columns
    scale = 100 if percent else 1
    table: Any = frame.groupby([group, x], sort=False)[y].agg(
        ["mean", lambda values: values.std(ddof=0), "size"]
    )
    table.columns = ["mean", "std", "size"]
    with style.drawing(height=3.0) as (figure, axes):
        names = list(dict.fromkeys(frame[group]))
        for number, label in enumerate(names):
            part = table.loc[label]
            axes.plot(part.index, scale * part["mean"], label=str(label), **style.series(number))
            if (part["size"] > 1).any():
                low, high = part["mean"] - part["std"], part["mean"] + part["std"]
                colour = style.SERIES[number % len(style.SERIES)]
                axes.fill_between(
                    part.index, scale * low, scale * high, color=colour, alpha=0.18, linewidth=0
                )
        axes.set(xlabel=labels[0], ylabel=labels[1], xticks=_ticks(frame[x]))
        if len(names) > 1:
            _legend(figure, axes)
    several = bool((table["size"] > 1).any())
    return Figure(
        name, title, text, figure, _line_grid(table, labels[0], percent, several), caption
    )


def _legend(figure: Drawing, axes: Any) -> None:
    """Below the axes: three short names a line, or one long name, wrapped, for which the figure
    grows.
    """
    handles, names = axes.get_legend_handles_labels()
    if max(map(len, names)) <= 22:
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        return
    names = [textwrap.fill(name, 52) for name in names]
    width, height = figure.get_size_inches()
    lines_high = sum(0.08 + 0.16 * (name.count("\n") + 1) for name in names)
    figure.set_size_inches(width, height + max(0.0, lines_high - 0.6))
    figure.legend(handles, names, loc="outside lower center", ncols=1)


def _ticks(values: Any) -> list[int]:
    ticks = sorted({int(value) for value in values})
    return ticks[:: max(1, len(ticks) // 10)]


def _line_grid(table: Any, corner: str, percent: bool, several: bool) -> Grid:
    """One column a line; mean ± standard deviation where there are several seeds."""

    def cell(row: Any) -> str:
        mean, std = (
            points(value) if percent else f"{value:.3f}" for value in (row["mean"], row["std"])
        )
        return f"{mean} ± {std}" if several else mean

    names = list(dict.fromkeys(table.index.get_level_values(0)))
    rows = list(dict.fromkeys(table.index.get_level_values(1)))
    return [
        [corner, *map(str, names)],
        *([str(row), *(cell(table.loc[(name, row)]) if (name, row) in table.index else "" for name in names)]
          for row in rows),
    ]  # fmt: skip


def bars(
    name: str,
    title: str,
    frame: pandas.DataFrame,
    *,
    labels: tuple[str, str],
    text: str,
    caption: str = "",
) -> Figure:
    """Bars side by side: a group a row of `frame`, a bar a column; fractions."""
    with style.drawing(height=2.8) as (figure, axes):
        width = 0.8 / len(frame.columns)
        places = numpy.arange(len(frame))
        for number, column in enumerate(frame.columns):
            offset = (number - (len(frame.columns) - 1) / 2) * width
            axes.bar(
                places + offset,
                100 * frame[column],
                width,
                label=str(column),
                **style.filling(number),
            )
        axes.axhline(0, color=style.INK, linewidth=0.8)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.set_xticks(places, [str(index) for index in frame.index])
        axes.grid(visible=False, axis="x")
        if len(frame.columns) > 1:
            _legend(figure, axes)
    return Figure(name, title, text, figure, frame_grid(frame, labels[0]), caption)


def stacked(
    name: str, title: str, frame: pandas.DataFrame, *, label: str, text: str, caption: str = ""
) -> Figure:  # fmt: skip
    """Horizontal bars of parts that add up: a bar a row of `frame`, a part a column; fractions."""
    names = [textwrap.fill(str(index), 24) for index in frame.index]
    with style.drawing(
        height=1.2 + sum(0.15 + 0.15 * (name.count("\n") + 1) for name in names)
    ) as (figure, axes):
        start = numpy.zeros(len(frame))
        places = numpy.arange(len(frame))
        for number, column in enumerate(frame.columns):
            part = 100 * frame[column].to_numpy(dtype=float)
            axes.barh(places, part, 0.7, left=start, label=str(column), **style.filling(number))
            start += part
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(xlabel=label, ylabel=str(frame.index.name))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside lower center", ncols=1)
    return Figure(name, title, text, figure, frame_grid(frame, str(frame.index.name)), caption)


def reliability_diagram(
    name: str, title: str, tables: Mapping[str, pandas.DataFrame], *, text: str
) -> Figure:
    """Accuracy against confidence, a line a label; the diagonal is perfect calibration."""
    with style.drawing(height=3.4) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=style.INK, linewidth=1, linestyle=":", label="perfect")
        for number, (label, table) in enumerate(tables.items()):
            full = table[table["images"] >= max(1, 0.01 * table["images"].sum())]
            axes.plot(
                100 * full["confidence"],
                100 * full["accuracy"],
                label=label,
                **style.series(number),
            )
        axes.set(xlabel="confidence, %", ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 102))
        _legend(figure, axes)
    head = [
        "confidence",
        *(column for label in tables for column in (f"{label}: images", "accuracy")),
    ]
    rows = [
        [f"{100 * low:.0f} to {100 * high:.0f}", *(text for table in tables.values() for text in (
            str(table.loc[bin_, "images"]), points(table.loc[bin_, "accuracy"])))]  # pyright: ignore[reportArgumentType]
        for bin_, (low, high) in enumerate(zip(*(next(iter(tables.values()))[edge] for edge in ("low", "high")),
                                               strict=True))
    ]  # fmt: skip
    caption = (
        "Above the dotted line a method is less sure than it should be, below it surer. Bins with "
        "less than a "
        "hundredth of the images are not drawn."
    )
    return Figure(name, title, text, figure, [head, *rows], caption)


def load_map(name: str, title: str, load: NDArray, blocks: Sequence[int], *, text: str) -> Figure:
    """load (L, H, E): a row a head, its experts from the busiest to the least used."""
    layers, heads, experts = load.shape
    ordered = -numpy.sort(-load, axis=-1)
    with style.drawing(height=min(7.0, 1.2 + 0.1 * layers * heads)) as (figure, axes):
        image = axes.imshow(ordered.reshape(-1, experts), cmap=style.MAP, vmin=0, vmax=1, aspect="auto",
                            interpolation="nearest", extent=(0.5, experts + 0.5, layers, 0))  # fmt: skip
        axes.set(xlabel="experts of a head, busiest first", ylabel="block (a row a head)")
        axes.set_yticks(numpy.arange(layers) + 0.5, [str(block) for block in blocks])
        axes.set_xticks([tick for tick in (1, 5, 10, 15, 20, 25, 50, 100) if tick <= experts])
        axes.grid(visible=False)
        axes.hlines(range(1, layers), 0.5, experts + 0.5, color="#ffffff", linewidth=1)
        bar = figure.colorbar(
            image, ax=axes, pad=0.02, format=lambda value, _: f"{100 * value:.0f}"
        )
        bar.outline.set_visible(False)
        bar.ax.set_title("%", fontsize=8, fontweight="normal")
    frame = pandas.DataFrame(
        ordered.mean(1), pandas.Index(blocks, name="block"), range(1, experts + 1)
    )
    caption = "Share of the test images that chose the expert. The table has means over the heads of a block."
    return Figure(name, title, text, figure, frame_grid(frame, "block / rank"), caption)


def scatter(
    name: str,
    title: str,
    groups: Mapping[str, tuple[NDArray, NDArray]],
    *,
    labels: tuple[str, str],
    text: str,
    caption: str,
) -> Figure:
    """Points, a marker a group; x and y are fractions."""
    with style.drawing(height=3.0) as (figure, axes):
        for number, (label, (x, y)) in enumerate(groups.items()):
            look = {key: value for key, value in style.series(number).items() if key != "linestyle"}
            axes.plot(100 * x, 100 * y, linestyle="", label=label, alpha=0.8, **look)
        axes.axhline(0, color=style.INK, linewidth=0.8)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if len(groups) > 1:
            _legend(figure, axes)
    rows = [
        [label, points(a), points(b)]
        for label, (x, y) in groups.items()
        for a, b in zip(x, y, strict=True)
    ]
    return Figure(name, title, text, figure, [["run", *labels], *rows], caption)
