"""A page of many tasks and classes stays small and legible."""

from __future__ import annotations

from pathlib import Path

import numpy
import pandas
from scipy.sparse import csr_array

from smope.analysis.confusion import most_confused
from smope.report.class_figures import confusion_map
from smope.report.figures import bars, heat_map
from smope.report.sections.classes import classes
from smope.report.sections.confusion import _error_figure
from smope.report.style import svg
from tests.analysis.made_runs import usual_run

TASKS_AND_NUMBERS = pandas.Index(range(1, 101), name="task")


def test_a_map_of_many_tasks_is_small_and_its_table_short() -> None:
    values = numpy.random.default_rng(0).random((100, 100))
    frame = pandas.DataFrame(values, TASKS_AND_NUMBERS, TASKS_AND_NUMBERS)
    figure = heat_map("map", "Map", frame, text="")
    assert len(svg(figure.drawing, "map")) < 100_000
    assert len(figure.grid) == 26 and len(figure.grid[0]) == 26
    assert figure.grid[0][-1] == "100" and figure.grid[-1][1] == f"{100 * values[-1, 0]:.1f}"
    small = heat_map("map", "Map", frame.iloc[:10, :10], text="")
    assert [len(small.grid), len(small.grid[0])] == [11, 11]


def test_bars_of_many_tasks_have_legible_numbers() -> None:
    frame = pandas.DataFrame({"run": numpy.ones(100)}, TASKS_AND_NUMBERS)
    (axes,) = bars("bars", "Bars", frame, labels=("task", "points"), text="").drawing.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()][:3] == ["1", "6", "11"]


def test_errors_of_many_tasks_are_a_bar_for_some_of_them_and_the_last() -> None:
    kinds = dict.fromkeys(("accuracy", "within_task", "between_tasks", "into_newest"), 0.1)
    frame = pandas.DataFrame({"after_task": range(1, 101), **kinds})
    (axes,) = _error_figure(frame.tail(1), {"run": [frame]}).drawing.axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[0] == "4" and labels[-1] == "100" and len(labels) == 25


def test_classes_by_the_thousand_need_no_square_of_memory() -> None:
    classes = 200_000
    counts = csr_array(([3, 1, 5], ([0, 7, 9], [1, 7, 4])), shape=(classes, classes))
    names = [f"class {number}" for number in range(classes)]
    pairs = most_confused(counts, names, 10)
    assert pairs["images"].tolist() == [5, 3] and pairs["class"].tolist() == ["class 9", "class 0"]
    figure = confusion_map("map", "Map", counts, names, starts=[], text="", grid=[["class"]])
    assert "mean of 800 neighbouring classes" in figure.caption


def test_many_tasks_and_names_are_shortened_with_their_number(tmp_path: Path) -> None:
    run = usual_run(tmp_path / "run")
    number = 2000
    run.record["class_names"] = [f"class {label}" for label in range(2 * number)]  # pyright: ignore
    tasks = [dict(task) for task in run.record["tasks"]]
    for index, task in enumerate(tasks):
        task["classes"] = list(range(index * number, (index + 1) * number))
    run.record["tasks"] = tasks  # pyright: ignore[reportIndexIssue]
    section = classes([run])
    assert section.tables[0].grid[1][-1].endswith("class 999 and 1,000 more")
    assert section.folded[0].title == "The first 2,000 classes"
    assert "The first 2,000 of 4,000 classes are listed." in section.note
