"""The figures of a report, each with a sentence on what it shows and a table of its numbers.

The arguments name, title, text and caption are the fields of Figure.
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
from smope.console.tables import shortened
from smope.report import style

MAX_VECTOR_CELLS = 2500  # of a map; more are pixels, so that the page stays small
MOST_TICKS = 20  # of bars with a number each
MAX_GRID_SIDE = 25  # rows and columns of the table of a map


@dataclass(frozen=True)
class Figure:
    """A figure.

    name:    the name of its files and its anchor in the page.
    text:    what it shows, in words, for readers who cannot see it.
    drawing: the matplotlib figure.
    grid:    its numbers as a table.
    """

    name: str
    title: str
    text: str
    drawing: Drawing
    grid: Grid
    caption: str = ""


def points(value: float, digits: int = 1) -> str:
    """A fraction in percent, empty for NaN.

    Args:
        value: The fraction.
        digits: Decimals.
    """
    return "" if value is None or numpy.isnan(value) else f"{100 * value:.{digits}f}"


def frame_grid(frame: pandas.DataFrame, corner: str = "", digits: int = 1) -> Grid:
    """A frame of fractions as a table in percent.

    Args:
        frame: The frame; its index becomes the first column.
        corner: The heading of the first column, by default the name of the index.
        digits: Decimals.
    """
    grid = [[corner or str(frame.index.name or ""), *map(str, frame.columns)]]
    for index, row in zip(frame.index, frame.to_numpy(dtype=float), strict=True):
        grid.append([str(index), *(points(value, digits) for value in row)])
    return grid


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
    """A table of fractions as a map, with numbers in the cells if they fit.

    Args:
        frame: Fractions, NaN for an empty cell; the names of index and columns label the axes.
        low: The fraction of the darkest colour.
        high: The fraction of the brightest colour.
    """
    values = frame.to_numpy(dtype=float)
    rows, columns = values.shape
    with style.drawing(height=min(style.WIDTH_INCHES, 0.9 + 0.32 * rows)) as (figure, axes):
        mesh = axes.pcolormesh(
            numpy.ma.masked_invalid(values),
            cmap=style.COLOUR_MAP,
            vmin=low,
            vmax=high,
            rasterized=values.size > MAX_VECTOR_CELLS,
        )
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
        _shortened_grid(frame),
        caption,
    )


def _shortened_grid(frame: pandas.DataFrame) -> Grid:
    """The numbers of a map as a table; of many rows and columns the first and the last."""
    rows, columns = (shortened(size, MAX_GRID_SIDE) for size in frame.shape)
    head, *lines = frame_grid(frame, f"{frame.index.name} / {frame.columns.name}")
    gap = ["..."] * len(head)
    return [
        [line[0], *("..." if column is None else line[column + 1] for column in columns)]
        for line in [head, *(gap if row is None else lines[row] for row in rows)]
    ]


def _write_cells(axes: Any, values: NDArray, low: float, high: float) -> None:
    """Write numbers in black or white, whichever has more contrast to the cell.

    The black is not quite black: an SVG leaves pure black out, so that the text would take the
    colour of the page.
    """
    colours = colormaps[style.COLOUR_MAP]
    for (row, column), value in numpy.ndenumerate(values):
        if numpy.isnan(value):
            continue
        red, green, blue, _ = colours((value - low) / (high - low))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        size = 9 if values.shape[1] <= 8 else 7
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            fontsize=size,
            color="#ffffff" if dark else "#010101",
        )


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
    """A line for each group; several seeds give a band of one standard deviation (ddof 0).

    Args:
        frame: A row for each point and seed.
        columns: The columns with the group, x and y.
        labels: The labels of the axes.
        percent: Whether y is a fraction, shown in percent.
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
                colour = style.SERIES_COLOURS[number % len(style.SERIES_COLOURS)]
                axes.fill_between(
                    part.index, scale * low, scale * high, color=colour, alpha=0.18, linewidth=0
                )
        axes.set(xlabel=labels[0], ylabel=labels[1], xticks=_ticks(frame[x]))
        if percent:
            style.start_at_floor(axes)
        if len(names) > 1:
            add_legend(figure, axes)
    several = bool((table["size"] > 1).any())
    return Figure(
        name, title, text, figure, _line_grid(table, labels[0], percent, several), caption
    )


def add_legend(figure: Drawing, axes: Any) -> None:
    """Put the legend below the axes: three short names a line, or one long name, wrapped.

    The figure grows for long names.
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
    """A column for each line: the mean, with ± standard deviation if there are several seeds."""

    def cell(name: Any, x: Any) -> str:
        if (name, x) not in table.index:
            return ""
        values = table.loc[(name, x)]
        texts = [
            points(values[kind]) if percent else f"{values[kind]:.3f}" for kind in ("mean", "std")
        ]
        return " ± ".join(texts) if several else texts[0]

    names = list(dict.fromkeys(table.index.get_level_values(0)))
    rows = list(dict.fromkeys(table.index.get_level_values(1)))
    cells = [[str(x), *(cell(name, x) for name in names)] for x in rows]
    return [[corner, *map(str, names)], *cells]


def bars(
    name: str,
    title: str,
    frame: pandas.DataFrame,
    *,
    labels: tuple[str, str],
    text: str,
    caption: str = "",
) -> Figure:
    """Bars side by side.

    Args:
        frame: Fractions; a group of bars for each row, a bar for each column.
        labels: The labels of the axes.
    """
    with style.drawing(height=2.8) as (figure, axes):
        width = 0.8 / len(frame.columns)
        positions = numpy.arange(len(frame))
        for number, column in enumerate(frame.columns):
            offset = (number - (len(frame.columns) - 1) / 2) * width
            axes.bar(
                positions + offset,
                100 * frame[column],
                width,
                label=str(column),
                **style.filling(number),
            )
        axes.axhline(0, color=style.TEXT_COLOUR, linewidth=0.8)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        every = -(-len(frame) // MOST_TICKS)
        axes.set_xticks(positions[::every], [str(index) for index in frame.index[::every]])
        axes.grid(visible=False, axis="x")
        if len(frame.columns) > 1:
            add_legend(figure, axes)
    return Figure(name, title, text, figure, frame_grid(frame, labels[0]), caption)


def stacked(
    name: str, title: str, frame: pandas.DataFrame, *, label: str, text: str, caption: str = ""
) -> Figure:  # fmt: skip
    """Horizontal bars of parts that add up.

    Args:
        frame: Fractions; a bar for each row, a part for each column.
        label: The label of the horizontal axis.
    """
    names = [textwrap.fill(str(index), 24) for index in frame.index]
    with style.drawing(
        height=1.2 + sum(0.15 + 0.15 * (name.count("\n") + 1) for name in names)
    ) as (figure, axes):
        start = numpy.zeros(len(frame))
        positions = numpy.arange(len(frame))
        for number, column in enumerate(frame.columns):
            part = 100 * frame[column].to_numpy(dtype=float)
            axes.barh(positions, part, 0.7, left=start, label=str(column), **style.filling(number))
            start += part
        axes.set_yticks(positions, names)
        axes.invert_yaxis()
        axes.set(xlabel=label, ylabel=str(frame.index.name))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside lower center", ncols=1)
    return Figure(name, title, text, figure, frame_grid(frame, str(frame.index.name)), caption)


def reliability_diagram(
    name: str, title: str, tables: Mapping[str, pandas.DataFrame], *, text: str
) -> Figure:
    """Accuracy against confidence, a line for each label; the diagonal is perfect calibration.

    Args:
        tables: The result of `analysis.reliability` by label.
    """
    with style.drawing(height=3.4) as (figure, axes):
        axes.plot(
            [0, 100], [0, 100], color=style.TEXT_COLOUR, linewidth=1, linestyle=":", label="perfect"
        )
        for number, (label, table) in enumerate(tables.items()):
            full = table[table["images"] >= max(1, 0.01 * table["images"].sum())]
            axes.plot(
                100 * full["confidence"],
                100 * full["accuracy"],
                label=label,
                **style.series(number),
            )
        axes.set(xlabel="confidence, %", ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 102))
        add_legend(figure, axes)
    caption = (
        "Above the dotted line a method is less sure than it should be, below it surer. Bins with "
        "less than a hundredth of the images are not drawn."
    )
    return Figure(name, title, text, figure, _reliability_grid(tables), caption)


def _reliability_grid(tables: Mapping[str, Any]) -> Grid:
    """A line for each bin, with images and accuracy of each label."""
    first = next(iter(tables.values()))
    head = ["confidence"]
    lines = [f"{100 * row['low']:.0f} to {100 * row['high']:.0f}" for _, row in first.iterrows()]
    grid = [[line] for line in lines]
    for label, table in tables.items():
        head += [f"{label}: images", "accuracy"]
        for cells, images, accuracy in zip(grid, table["images"], table["accuracy"], strict=True):
            cells += [str(images), points(accuracy)]
    return [head, *grid]


def load_map(name: str, title: str, load: NDArray, blocks: Sequence[int], *, text: str) -> Figure:
    """The load of experts: a row for each head, its experts from the busiest to the least used.

    Args:
        load: (L, H, E), the share of images that chose each expert.
        blocks: The numbers of the L blocks.
    """
    layers, heads, experts = load.shape
    ordered = -numpy.sort(-load, axis=-1)
    with style.drawing(height=min(7.0, 1.2 + 0.1 * layers * heads)) as (figure, axes):
        image = axes.imshow(
            ordered.reshape(-1, experts),
            cmap=style.COLOUR_MAP,
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, experts + 0.5, layers, 0),
        )
        axes.set(xlabel="experts of a head, busiest first", ylabel="block (one row for each head)")
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
    caption = (
        "Share of the test images that chose the expert. The table has means over the heads of a "
        "block."
    )
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
    """Points, a marker for each group.

    Args:
        groups: x and y of each group, fractions.
        labels: The labels of the axes.
    """
    with style.drawing(height=3.0) as (figure, axes):
        for number, (label, (x, y)) in enumerate(groups.items()):
            appearance = style.series(number) | {"linestyle": ""}
            axes.plot(100 * x, 100 * y, label=label, alpha=0.8, **appearance)
        axes.axhline(0, color=style.TEXT_COLOUR, linewidth=0.8)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if len(groups) > 1:
            add_legend(figure, axes)
    rows = [
        [label, points(a), points(b)]
        for label, (x, y) in groups.items()
        for a, b in zip(x, y, strict=True)
    ]
    return Figure(name, title, text, figure, [["run", *labels], *rows], caption)
