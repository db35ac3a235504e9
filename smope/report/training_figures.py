"""Curves of training: losses and learning rates by step, broken where a task or phase begins."""

from __future__ import annotations

from typing import Any

import numpy
import pandas

from smope.console.markup import Grid
from smope.report import style
from smope.report.figures import Figure, add_legend

MAX_POINTS = 240  # of a line
MARKED_POINTS = 40  # at most so many points have markers


def step_curves(
    name: str,
    title: str,
    frame: pandas.DataFrame,
    *,
    label: str,
    text: str,
    grid: Grid,
    caption: str = "",
) -> Figure:
    """A line for each name; a line has a gap where `part` changes.

    Args:
        name: See Figure, as title, text, grid and caption.
        frame: Columns line, part, step, value.
        label: Of the vertical axis, which starts at 0.
    """
    with style.drawing(height=3.0) as (figure, axes):
        names = list(dict.fromkeys(frame["line"]))
        for number, line in enumerate(names):
            part: Any = frame[frame["line"] == line]
            steps, values = _with_gaps(_thinned(part))
            appearance = style.series(number)
            if len(part) > MARKED_POINTS:
                appearance |= {"marker": "", "linewidth": 1.3}
            axes.plot(steps, values, label=str(line), **appearance)
        axes.set(xlabel="training step", ylabel=label)
        top = max(frame["value"].to_numpy(), default=0.0)
        axes.set_ylim(0, 1.05 * top if top > 0 else 1)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        if len(names) > 1:
            add_legend(figure, axes)
    return Figure(name, title, text, figure, grid, caption)


def _thinned(part: pandas.DataFrame) -> pandas.DataFrame:
    """At most MAX_POINTS rows, the last of each part among them."""
    every = -(-len(part) // MAX_POINTS)
    last = part["part"] != part["part"].shift(-1)
    chosen: Any = part[last | (numpy.arange(len(part)) % every == 0)]
    return chosen


def _with_gaps(part: pandas.DataFrame) -> tuple[list[float], list[float]]:
    """Steps and values, with NaN between parts."""
    steps: list[float] = []
    values: list[float] = []
    before: Any = None
    for row in part.to_dict("records"):
        if before is not None and row["part"] != before:
            steps.append(numpy.nan)
            values.append(numpy.nan)
        before = row["part"]
        steps.append(row["step"])
        values.append(row["value"])
    return steps, values
