"""What is printed of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smope.config.signatures import chosen_name
from smope.console.colour import coloured_matrix
from smope.console.progress import Progress
from smope.console.tables import cost_table, matrix_table, reference_line, score_lines
from smope.metrics.expert_use import block_numbers, collapse_sentence
from smope.storage.commands import command
from smope.storage.run_directory import RunDirectory

SPREADING_ROUTERS = ("centred", "aux_free", "standardised")
WAY_OUT = "router=standardised"


def print_matrix(record: Mapping[str, Any], progress: Progress) -> None:
    """The accuracy after each task.

    Args:
        record: run.json.
        progress: where it is printed.
    """
    matrix = record["accuracy_matrix"]
    progress.line("")
    progress.line(f"accuracy on each task's {record['evaluated_on']} images, in percent")
    progress.line(matrix_table(matrix), coloured_matrix(matrix))
    progress.line("")


def numbers(record: Mapping[str, Any], directory: RunDirectory) -> list[str]:
    """Scores, the reference, the use of experts, cost, and where all of it is.

    Args:
        record: run.json.
        directory: the run's.

    Returns:
        Texts of one or several lines.
    """
    texts = [score_lines(record), reference_line(record), collapse(record)]
    return [
        *filter(None, texts),
        "",
        cost_table(record["cost"]),
        f"{sum(record['seconds']['per_task']):.0f} s; numbers in {directory.record}",
        f"a page with pictures: {command('report', directory.path)}",
    ]


def collapse(record: Mapping[str, Any]) -> str:
    """A sentence if the mixture has collapsed after the last task, and a way out; "" otherwise."""
    if not record.get("experts"):
        return ""
    use, config = record["experts"][-1], record["config"]
    sentence = collapse_sentence(use, block_numbers(config, len(use["effective"])))
    if sentence is None:
        return ""
    return sentence if _spreads(config) else f"{sentence} To spread the use, choose {WAY_OUT}."


def way_out(record: Mapping[str, Any]) -> str:
    """The override that spreads the use of experts if the mixture has collapsed; "" otherwise."""
    return WAY_OUT if collapse(record) and not _spreads(record["config"]) else ""


def _spreads(config: Mapping[str, Any]) -> bool:
    return chosen_name(config["router"]["_target_"]) in SPREADING_ROUTERS
