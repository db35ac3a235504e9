"""What a run prints at its end: accuracy matrix, scores, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smope.metrics.scores import SCORES

DECIDING_SCORE = "final_average_accuracy"
MEMORY_NAMES = {
    "cuda_allocated": "on the CUDA device",
    "process_resident": "resident set of the process",
}


def percent(value: float | None) -> str:
    """A fraction in percent with two decimals, `-` for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def matrix_table(matrix: Sequence[Sequence[float | None]]) -> str:
    """The accuracy matrix in percent: a row after each task, a column for each task, and the mean
    over the tasks seen.
    """
    tasks = len(matrix)
    lines = ["after task" + "".join(f"{task + 1:>7}" for task in range(tasks)) + "    mean"]
    for index, row in enumerate(matrix):
        seen = [value for value in row if value is not None]
        cells = "".join(f"{'' if value is None else f'{100 * value:.1f}':>7}" for value in row)
        mean = f"{100 * sum(seen) / len(seen):.1f}" if seen else ""
        lines.append(f"{index + 1:>10}{cells}{mean:>8}")
    return "\n".join(lines)


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
    if simple > ours:
        return (
            f"{line}, which is {percent(simple - ours)} points more: these images may suit "
            f"method=smope_plus, ridge or ncm, or longer training."
        )
    return f"{line}, {percent(ours - simple)} points less."


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
