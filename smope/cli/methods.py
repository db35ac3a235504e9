"""`smope methods`: where each method is from, what it trains and what an image costs."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from smope.cli.parser import Parser
from smope.config.conf_files import choices, config_folders
from smope.console.markup import aligned
from smope.errors import UserError
from smope.planning.method_table import stored_rows

EPILOG = """\
Counted on a ViT-B/16 at 224 pixels, with 10 tasks and 200 classes. A number after / is the one that
the method's paper states. Parameters are the trained ones, classifier included. GFLOPs are those of
one image, counted in two ways. PyTorch's counter takes every product, in training also those of the
backward pass. Papers on prompt tuning count one forward pass with all rows of the last block,
without the products of attention itself. A method that learns in one pass over features takes no
training steps: 0.

examples:
  smope methods
  smope methods l2p dualprompt
  smope methods --json"""


HEADINGS = [
    "method",
    "parameters (M)",
    "train GFLOPs",
    "test GFLOPs",
    "train, as papers",
    "test, as papers",
    "source",
]


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    parser = Parser(
        "smope methods", "List the methods with what they train and what an image costs.", EPILOG
    )
    parser.add_argument("names", nargs="*", metavar="METHOD", help="only these (default: all)")
    parser.add_argument(
        "--json", action="store_true", help="print the rows as JSON; parameters in units"
    )
    parser.add_argument(
        "--count",
        action="store_true",
        help="count now; without it, methods that come with smope are read from its own table",
    )
    parser.add_config_dir()
    args = parser.parse_args(argv)
    names = _chosen(args.names, args.config_dir)

    rows = _rows(names, args.config_dir, count=args.count)
    print(json.dumps(rows, indent=1, ensure_ascii=False) if args.json else _text(rows))
    return 0


def _rows(names: Sequence[str], config_dir: str | None, *, count: bool) -> list[dict[str, Any]]:
    """The rows of the methods; torch is imported only if one has to be counted."""
    rows = {} if count else stored_rows(names, config_dir)
    missing = [name for name in names if name not in rows]
    if missing:
        from smope.planning.method_costs import method_rows

        rows |= {row["name"]: row for row in method_rows(missing, config_dir)}
    return [rows[name] for name in names]


def _chosen(names: Sequence[str], config_dir: str | None) -> list[str]:
    """The methods to list, all if `names` is empty; UserError for one that does not exist."""
    known = choices("method", config_folders(config_dir))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
            raise UserError(f"METHOD={name}: no such method; {hint}")
    return list(dict.fromkeys(names)) or known


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned table, and the notes below it."""
    lines = [HEADINGS, *map(_cells, rows)]
    notes = [f"{row['name']}: {row['note']}" for row in rows if row["note"]]
    wrapped = [textwrap.fill(note, 118, subsequent_indent="  ") for note in notes]
    elsewhere = textwrap.fill(_placements(rows), 118)
    parts = [aligned(lines), "\n".join(wrapped), elsewhere, EPILOG.split("\n\n")[0]]
    return "\n\n".join(filter(None, parts))


def _placements(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the places that experts may have; empty if none has a choice."""
    names = [row["name"] for row in rows if row["placements"]]
    if not names:
        return ""
    counted, *others = next(row["placements"] for row in rows if row["placements"])
    return (
        f"The experts of {' and '.join(names)} are counted with method.placement={counted}; they "
        f"may also be elsewhere: {' or '.join(f'method.placement={other}' for other in others)}. "
        f"`smope train --dry-run` counts any of these."
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = (row["train_gflops"], row["infer_gflops"])
    published = row["published_gflops"] or (None, None)
    as_papers = []
    for count, stated in zip(counts, published, strict=True):
        cell = f"{count['paper_convention']:.2f}"
        as_papers.append(cell if stated is None else f"{cell} / {stated:.2f}")
    counted = [f"{count['torch']:.2f}" for count in counts]
    return [row["name"], _parameters(row), *counted, *as_papers, row["source"]]


def _parameters(row: Mapping[str, Any]) -> str:
    counted, published = row["trainable_parameters"]["total"], row["published_parameters"]
    cell = f"{counted / 1e6:.3f}"
    return cell if published is None else f"{cell} / {published / 1e6:.3g}"
