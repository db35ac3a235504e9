"""The card of a reproduction: everything that a reader needs to believe the numbers or to get them
again.

A card is published, so of absolute paths, which mean nothing elsewhere, only the last part is kept.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smope.console.markup import aligned, markdown_grid
from smope.reproduction.published import (
    RULE,
    SCORES,
    Comparison,
    Mean,
    Row,
    compare,
    images,
    means,
    verdict,
)

# What run.json says that is the same for all seeds, unless they ran on different machines.
SHARED = ("device", "threads", "float32_products", "backbone", "trainable_parameters", "versions")


def make_card(
    name: str,
    row: Row,
    records: Mapping[str, Mapping[str, Any]],
    changed: Sequence[str],
    command: Sequence[str],
    checkout: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The card as plain JSON.

    records: run.json of each finished run, by its directory. command: its words as typed. checkout:
    commit of the program that compares.
    """
    runs = list(records.values())
    ours, changed = means(runs), list(map(_portable, changed))
    comparisons = compare(row, ours, judge=not changed)
    word, statement = verdict(row, changed, comparisons)
    return {
        "row": name,
        "title": row.title if not changed else f"Not a repeat of {row.title}: {_what(runs)}",
        "verdict": word,
        "statement": statement,
        "changed": changed,
        "note": row.note,
        "command": shlex.join(map(_portable, command)),
        "checkout": checkout,
        "rule": RULE,
        "comparisons": [
            {**asdict(item), "difference": item.difference, "verdict": item.verdict}
            for item in comparisons
        ],
        "table": _table(comparisons),
        "means": {score: asdict(mean) for score, mean in ours.items()},
        "runs": [_run(directory, record) for directory, record in records.items()],
        "evaluated_on": _common(
            f"{images(run)['test']} {run['evaluated_on']} images" for run in runs
        ),
        "trained_on": _common(f"{images(run)['train']} images" for run in runs),
        "data": _common(_portable(_without(run["stream"], "identity")) for run in runs),
        **{key: _common(_portable(run[key]) for run in runs) for key in SHARED},
        "config": _portable(_without(runs[0]["config"], "seed", "run_dir")),
    }


def _table(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Lines of cells, the head first."""
    head = ["score", "compared with", "reported", "ours", "difference", "allowed", "verdict"]
    return [head] + [
        [
            SCORES[item.score],
            item.source,
            str(item.reported),
            str(item.ours),
            f"{item.difference:+.2f}",
            "-" if item.allowed is None else f"{item.allowed:.2f}",
            item.verdict,
        ]
        for item in comparisons
    ]


def _what(runs: Sequence[Mapping[str, Any]]) -> str:
    """What was run, where it is not the row: method, stream and backbone as they are configured."""
    tasks = _common(f"{len(run['tasks'])} tasks" for run in runs)
    parts = [
        _common(run["method"] for run in runs),
        _common(run["stream"]["name"] for run in runs),
        tasks,
    ]
    parts.append(_common(run["backbone"]["name"] for run in runs))
    method, stream, *others = (_text(part) for part in parts)
    return f"{method} on {stream}, {', '.join(others)}"


def _run(directory: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """One seed: scores in percent, seconds on the clock, the first classes of its order."""
    scores = {name: 100 * record[name] for name in (*SCORES, "sample_weighted_accuracy")}
    return {
        "seed": record["seed"],
        **scores,
        "seconds": sum(record["seconds"]["per_task"]),
        "first_classes": record["class_order"][:5],
        "stream_identity": record["stream"]["identity"],
        "config_hash": record["config_hash"],
        "directory": _portable(directory),
    }


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _common(values: Iterable[Any]) -> Any:
    """What all have in common, or the list of different values."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def _portable(value: Any) -> Any:
    """`value` with absolute paths cut to their last part: in a word key=path, or anywhere in a
    nested value.
    """
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")
    return (
        f"{key}{equals}{Path(path).name}" if os.path.isabs(path) or path.startswith("~") else value
    )


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page to read."""
    import yaml

    runs = [
        [
            "seed",
            *SCORES.values(),
            "all images",
            "seconds",
            "class order starts",
            "config hash",
            "directory",
        ]
    ]
    for run in card["runs"]:
        scores = [f"{run[name]:.2f}" for name in (*SCORES, "sample_weighted_accuracy")]
        classes = ", ".join(map(str, run["first_classes"]))
        runs.append(
            [
                str(run["seed"]),
                *scores,
                f"{run['seconds']:.0f}",
                classes,
                f"`{run['config_hash']}`",
                run["directory"],
            ]
        )
    runs.append(
        ["mean", *(str(Mean(**mean)) for mean in card["means"].values()), "", "", "", "", ""]
    )
    sections = [
        f"# {card['title']}" + ("" if card["changed"] else f": {card['verdict']}"),
        f"Row `{card['row']}`, from Le et al. 2026 (arXiv 2509.24483): {card['statement']}.",
        card["note"],
        f"    {card['command']}",
        markdown_grid(card["table"]) if card["comparisons"] else "",
        card["rule"] if card["comparisons"] else "",
        markdown_grid(runs),
        "FAA, CAA and forgetting weigh tasks equally, `all images` is the accuracy over all of "
        "them; percent. Seconds "
        "are on the clock: training, alignment and evaluation.",
        "\n".join(
            f"- {name.replace('_', ' ')}: {_text(value)}" for name, value in _facts(card).items()
        ),
        "The configuration, but for the seed:",
        f"```yaml\n{yaml.safe_dump(card['config'], sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def screen(card: Mapping[str, Any]) -> str:
    """The card in short, for a terminal."""
    seeds = ("seed " if len(card["runs"]) == 1 else "seeds ") + ", ".join(
        str(run["seed"]) for run in card["runs"]
    )
    ours = ", ".join(f"{SCORES[score]} {Mean(**mean)}" for score, mean in card["means"].items())
    sections = [
        f"{card['title']}, {seeds}: {ours} (percent)",
        aligned(card["table"]) if card["comparisons"] else "",
        textwrap.fill(card["rule"], 100) if card["comparisons"] else "",
        textwrap.fill(card["note"], 100),
        f"{card['verdict']}: {card['statement']}",
    ]
    return "\n\n".join(section for section in sections if section)


def _facts(card: Mapping[str, Any]) -> dict[str, Any]:
    """What is listed below the tables."""
    excluded = card["config"]["router"].get("exclude_unused_experts")
    unused = {
        True: "cannot be chosen, as while the authors' program trains "
        "(router.exclude_unused_experts=true)",
        False: "can be chosen, as in the authors' last table, from a model without counts "
        "(router.exclude_unused_experts=false)",
    }
    return {
        "evaluated on": card["evaluated_on"],
        "trained on": card["trained_on"],
        **({"experts never used, at evaluation": unused[excluded]} if excluded is not None else {}),
        **{name: card[name] for name in ("data", *SHARED)},
        "checkout": card["checkout"] or "none",
    }


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    return str(value)
