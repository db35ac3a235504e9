"""What a run prints at its end: accuracy matrix, scores, cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smope.metrics.scores import SCORES

DECIDING_SCORE = "final_average_accuracy"
SIMPLE_METHODS = ("smope_plus", "ridge", "ncm")  # for runs that nearest class mean exceeds
FEW_TEST_IMAGES = 200  # one of these changes an accuracy by half a point
# Of the accuracy matrix, in characters and lines.
LABEL_WIDTH, CELL_WIDTH, MEAN_WIDTH = 10, 7, 8
MOST_ROWS = 20
WIDTH_WITHOUT_TERMINAL = 100  # a file or a pipe: ten tasks fit
MEMORY_NAMES = {
    "cuda_allocated": "on the CUDA device",
    "process_resident": "resident set of the process",
}


def percent(value: float | None) -> str:
    """A fraction in percent with two decimals, `-` for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def terminal_width() -> int:
    """Characters of a line of the terminal; WIDTH_WITHOUT_TERMINAL where there is none."""
    return shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns


def shortened(count: int, most: int) -> list[int | None]:
    """Numbers from 0, without those in the middle where there are too many.

    Args:
        count: How many numbers there are.
        most: How many entries the result may have; at least 3.

    Returns:
        The numbers, with a None for all that are left out.
    """
    if count <= most:
        return list(range(count))
    last = (most - 1) // 2
    return [*range(most - 1 - last), None, *range(count - last, count)]


def matrix_table(
    matrix: Sequence[Sequence[float | None]],
    width: int | None = None,
    paint: Callable[[str, float], str] = lambda cell, _: cell,
) -> str:
    """The accuracy matrix in percent: a row after each task, a column for each task, and the mean
    over the tasks seen. Of many tasks the first and the last are shown.

    Args:
        matrix: Fractions; None where nothing was measured.
        width: Characters of a line; None: those of the terminal.
        paint: Changes how a cell of a given value looks, and not its width.

    Returns:
        The lines.
    """
    tasks, width = len(matrix), terminal_width() if width is None else width
    fitting = (width - LABEL_WIDTH - MEAN_WIDTH) // CELL_WIDTH
    columns, rows = shortened(tasks, max(fitting, 3)), shortened(tasks, MOST_ROWS)
    gap = f"{'...':>{CELL_WIDTH}}"
    head = [gap if column is None else f"{column + 1:>{CELL_WIDTH}}" for column in columns]
    lines = ["after task" + "".join(head) + f"{'mean':>{MEAN_WIDTH}}"]
    for index in rows:
        if index is None:
            lines.append(f"{'...':>{LABEL_WIDTH}}")
            continue
        row = matrix[index]
        seen = [value for value in row if value is not None]
        cells = [gap if column is None else _cell(row[column], paint) for column in columns]
        mean = f"{100 * sum(seen) / len(seen):.1f}" if seen else ""
        lines.append(f"{index + 1:>{LABEL_WIDTH}}{''.join(cells)}{mean:>{MEAN_WIDTH}}")
    if None in columns or None in rows:
        lines.append(f"(of {tasks} tasks the first and the last; run.json has all numbers)")
    return "\n".join(lines)


def _cell(value: float | None, paint: Callable[[str, float], str]) -> str:
    if value is None:
        return " " * CELL_WIDTH
    return paint(f"{100 * value:>{CELL_WIDTH}.1f}", value)


def score_lines(record: Mapping[str, Any]) -> str:
    """The scores of run.json in percent, a line for each."""
    lines = [f"{score.title:<34}{percent(record[name]):>7} %" for name, score in SCORES.items()]
    return "\n".join(lines)


def reference_line(record: Mapping[str, Any]) -> str:
    """How the run compares with what run.json has as `reference`; "" where it has none."""
    reference = record.get("reference") or {}
    ours, simple = record.get(DECIDING_SCORE), reference.get(DECIDING_SCORE)
    if ours is None or simple is None:
        return ""
    line = f"Nearest class mean on the same frozen features reaches {percent(simple)} %"
    images = sum(task.get("test", 0) for task in record.get("tasks", ()))
    chance = (
        f"; with {images} test images that may be chance" if 0 < images < FEW_TEST_IMAGES else ""
    )
    if percent(simple) == percent(ours):
        return f"{line} as well."
    if simple < ours:
        return f"{line}, {percent(ours - simple)} points less{chance}."
    target = record.get("config", {}).get("method", {}).get("_target_", "")
    others = [name for name in SIMPLE_METHODS if f".{name}." not in target]
    return (
        f"{line}, which is {percent(simple - ours)} points more{chance}. These images may suit "
        f"method={' or '.join(others)}, or longer training."
    )


def cost_table(cost: Mapping[str, Any]) -> str:
    """The block `cost` of run.json: what an image costs in training and inference, and the run."""
    flops, rate, seconds = cost["gflops_per_image"], cost["images_per_second"], cost["seconds"]
    all_rows, parameters = flops["without_cls_saving"], cost["trainable_parameters"]

    def row(title: str, train: float | None, infer: float | None) -> str:
        return f"{title:<42}" + "".join(f"{_number(value):>12}" for value in (train, infer))

    def gflops(title: str, counts: Mapping[str, Any], counter: str) -> str:
        return row(title, counts["train_gflops"][counter], counts["infer_gflops"][counter])

    peaks = [
        f"{_megabytes(size)} {MEMORY_NAMES[what]}"
        for what, size in cost["peak_memory_bytes"].items()
    ]
    waiting = ""
    if cost["waiting_share"] is not None:
        waiting = f" ({percent(cost['waiting_share'])} % of it waiting for images)"
    lines = [
        f"{'cost of an image':<42}{'training':>12}{'inference':>12}",
        gflops("GFLOPs, PyTorch's count", flops, "torch"),
        gflops("  with all rows of the last block", all_rows, "torch"),
        gflops("GFLOPs, the papers' convention", flops, "paper_convention"),
        gflops("  with all rows of the last block", all_rows, "paper_convention"),
        row("images a second", rate["train"], rate["infer"]),
        f"trained parameters: {parameters['prompt']:,} in prompts, {parameters['classifier']:,} "
        f"in the classifier; stored state {_megabytes(cost['stored_state_bytes'])}",
        f"seconds: {seconds['train']:.1f} training{waiting}, {seconds['align']:.1f} alignment, "
        f"{seconds['eval']:.1f} evaluation",
        f"peak memory: {', '.join(peaks) or 'not known on this system'}",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Two decimals, or two digits of a small number."""
    if value is None:
        return "-"
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
