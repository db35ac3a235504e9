"""The card of a reproduction: everything that a reader needs to check the numbers or repeat them.

Cards are published, so absolute paths, which mean nothing elsewhere, are cut to their last part.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smope.console.markup import aligned, markdown_grid
from smope.metrics.scores import SCORES
from smope.reproduction.published import (
    RULE,
    PublishedRow,
    ScoreComparison,
    SeedMean,
    compare_scores,
    images,
    means,
    percent_scores,
    verdict,
)
from smope.storage.files import write_atomically

CHECKOUT = Path(__file__).resolve().parents[2]
# Entries of run.json that are the same for all seeds, unless they ran on different machines.
SHARED_FACTS = (
    "device",
    "threads",
    "float32_products",
    "backbone",
    "trainable_parameters",
    "versions",
)


def make_card(
    name: str,
    row: PublishedRow,
    records: Mapping[str, Mapping[str, Any]],
    changed: Sequence[str],
    command: Sequence[str],
    checkout: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The card as plain JSON values.

    Args:
        name: The name of the row.
        row: The published row.
        records: run.json of each finished run, by its directory.
        changed: What the runs did otherwise than the row.
        command: The words of the command.
        checkout: `checkout_state()`.
    """
    runs = list(records.values())
    ours, changed = means(runs), list(map(_portable, changed))
    comparisons = compare_scores(row, ours, judge=not changed)
    word, statement = verdict(row, changed, comparisons)
    return {
        "row": name,
        "title": row.title if not changed else f"Not a repeat of {row.title}: {_description(runs)}",
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
        **{key: _common(_portable(run[key]) for run in runs) for key in SHARED_FACTS},
        "config": _portable(_without(runs[0]["config"], "seed", "run_dir")),
    }


def _table(comparisons: Sequence[ScoreComparison]) -> list[list[str]]:
    """Lines of cells, the head first."""
    head = ["score", "compared with", "reported", "ours", "difference", "allowed", "verdict"]
    return [head] + [
        [
            SCORES[item.score].short,
            item.source,
            str(item.reported),
            str(item.ours),
            f"{item.difference:+.2f}",
            "-" if item.allowed is None else f"{item.allowed:.2f}",
            item.verdict,
        ]
        for item in comparisons
    ]


def _description(runs: Sequence[Mapping[str, Any]]) -> str:
    """Method, stream and backbone of runs that are not the row."""
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
    return {
        "seed": record["seed"],
        **percent_scores(record),
        "seconds": sum(record["seconds"]["per_task"]),
        "first_classes": record["class_order"][:5],
        "stream_identity": record["stream"]["identity"],
        "config_hash": record["config_hash"],
        "directory": _portable(directory),
    }


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _common(values: Iterable[Any]) -> Any:
    """The value that all share, or the list of different values."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def _portable(value: Any) -> Any:
    """`value` with absolute paths cut to their last part, also in a text key=path and inside
    lists and mappings.
    """
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")
    if os.path.isabs(path) or path.startswith("~"):
        return f"{key}{equals}{Path(path).name}"
    return value


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page to read."""
    import yaml

    title = card["title"] if card["changed"] else f"{card['title']}: {card['verdict']}"
    facts = [f"- {name.replace('_', ' ')}: {_text(value)}" for name, value in _facts(card).items()]
    config = yaml.safe_dump(card["config"], sort_keys=False, allow_unicode=True)
    sections = [
        f"# {title}",
        f"Row `{card['row']}`, from Le et al. 2026 (arXiv 2509.24483): {card['statement']}.",
        card["note"],
        f"    {card['command']}",
        *([markdown_grid(card["table"]), card["rule"]] if card["comparisons"] else []),
        markdown_grid(_run_grid(card)),
        "Scores are in percent and weigh tasks equally, except for `all images`. Seconds are on "
        "the clock: training, alignment and evaluation.",
        "\n".join(facts),
        "The configuration, but for the seed:",
        f"```yaml\n{config}```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _run_grid(card: Mapping[str, Any]) -> list[list[str]]:
    """A line for each seed and one for the means, the head first."""
    facts = ["seconds", "class order starts", "config hash", "directory"]
    names = list(card["means"])
    head = ["seed", *(SCORES[name].short for name in names), *facts]
    lines = [
        [
            str(run["seed"]),
            *(f"{run[name]:.2f}" for name in names),
            f"{run['seconds']:.0f}",
            ", ".join(map(str, run["first_classes"])),
            f"`{run['config_hash']}`",
            run["directory"],
        ]
        for run in card["runs"]
    ]
    means = [str(SeedMean(**mean)) for mean in card["means"].values()]
    return [head, *lines, ["mean", *means, *[""] * len(facts)]]


def screen(card: Mapping[str, Any]) -> str:
    """The card in short, for a terminal."""
    seeds = ", ".join(str(run["seed"]) for run in card["runs"])
    seeds = f"seed {seeds}" if len(card["runs"]) == 1 else f"seeds {seeds}"
    ours = ", ".join(
        f"{SCORES[name].short} {SeedMean(**mean)}" for name, mean in card["means"].items()
    )
    comparison = []
    if card["comparisons"]:
        comparison = [aligned(card["table"]), textwrap.fill(card["rule"], 100)]
    sections = [
        f"{card['title']}, {seeds}: {ours} (percent)",
        *comparison,
        textwrap.fill(card["note"], 100),
        f"{card['verdict']}: {card['statement']}",
    ]
    return "\n\n".join(section for section in sections if section)


def write_card(card: Mapping[str, Any], path: Path) -> Path:
    """Write the card as Markdown and JSON.

    Args:
        card: The result of `make_card`.
        path: Where, without a suffix.

    Returns:
        The path of the Markdown file.
    """
    content = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path.with_name(f"{path.name}.json"), content.encode())
    page = path.with_name(f"{path.name}.md")
    write_atomically(page, markdown(card).encode())
    return page


def checkout_state() -> dict[str, Any] | None:
    """The commit of the checkout that this package is in, and whether smope/ or conf/ differ.

    None outside a checkout, or if git fails.
    """
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", "smope", "conf")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "uncommitted_changes": "yes" if changes else "no"}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _facts(card: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that are listed below the tables, by name."""
    excluded = card["config"]["router"].get("exclude_unused_experts")
    unused = {
        True: "cannot be chosen, as while the authors' code trains "
        "(router.exclude_unused_experts=true)",
        False: "can be chosen, as in the authors' last table, from a model without counts "
        "(router.exclude_unused_experts=false)",
    }
    return {
        "evaluated on": card["evaluated_on"],
        "trained on": card["trained_on"],
        **({"experts never used, at evaluation": unused[excluded]} if excluded is not None else {}),
        **{name: card[name] for name in ("data", *SHARED_FACTS)},
        "checkout": card["checkout"] or "none",
    }


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    return str(value)
