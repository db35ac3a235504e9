"""The table of scores, from the list that the terminal, run.json and reports read."""

from __future__ import annotations

from smope.metrics.scores import SCORES


def table() -> str:
    """A Markdown table with a row for each score."""
    lines = ["| name in `run.json` | short | definition | better |", "|---|---|---|---|"]
    for name, score in SCORES.items():
        definition = score.definition.removeprefix(f"{score.title.partition(' (')[0]}: ")
        lines.append(f"| `{name}` | {score.short} | {definition} | {score.better} |")
    return "\n".join(lines)
