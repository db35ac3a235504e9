"""`smope methods`: every method, where it is from, what it trains and what an image costs."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.cli.parser import Parser
from smope.config.conf_files import choices, conf_dir
from smope.console.markup import aligned
from smope.errors import UserError

EPILOG = """\
Counted on a ViT-B/16 at 224 pixels, 10 tasks, 200 classes, and beside it, after /, what the method's paper prints.
parameters: trained ones, classifier included. GFLOPs of one image: as PyTorch counts them, training with its backward
pass; and as papers on prompt tuning do, all rows of the last block, forward passes alone, without the products of
attention itself. A method that learns in one pass over features takes no training steps: 0.

examples:
  smope methods
  smope methods l2p dualprompt
  smope methods --json"""


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
        "--config-dir",
        metavar="DIR",
        help="a folder of your own laid out like conf/, searched as well",
    )
    args = parser.parse_args(argv)
    names = _chosen(args.names, args.config_dir)

    from smope.planning.method_costs import method_rows

    rows = list(method_rows(names, args.config_dir))
    print(json.dumps(rows, indent=1, ensure_ascii=False) if args.json else _text(rows))
    return 0


def _chosen(names: Sequence[str], config_dir: str | None) -> list[str]:
    """The methods asked for, all where none is; UserError for one that does not exist."""
    folders = [Path(config_dir).expanduser(), conf_dir()] if config_dir else [conf_dir()]
    if not folders[0].is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder; name one laid out like conf/")
    known = choices("method", folders)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
            raise UserError(f"METHOD={name}: no such method; {hint}")
    return list(dict.fromkeys(names)) or known


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned table, and the notes below it."""
    lines = [
        [
            "method",
            "parameters (M)",
            "train GFLOPs",
            "test GFLOPs",
            "train, as papers",
            "test, as papers",
            "source",
        ]
    ]
    for row in rows:
        both, said = (
            (row["train_gflops"], row["infer_gflops"]),
            row["published_gflops"] or (None, None),
        )
        counted = [f"{one['paper_convention']:.2f}" for one in both]
        lines.append(
            [
                row["name"],
                _parameters(row),
                *(f"{one['torch']:.2f}" for one in both),
                *(
                    own if one is None else f"{own} / {one:.2f}"
                    for own, one in zip(counted, said, strict=True)
                ),
                row["source"],
            ]
        )
    notes = [f"{row['name']}: {row['note']}" for row in rows if row["note"]]
    wrapped = [textwrap.fill(note, 118, subsequent_indent="  ") for note in notes]
    return "\n".join([aligned(lines), "", *wrapped, "", EPILOG.split("\n\n")[0]])


def _parameters(row: Mapping[str, Any]) -> str:
    own, published = row["trainable_parameters"]["total"], row["published_parameters"]
    return f"{own / 1e6:.3f}" + ("" if published is None else f" / {published / 1e6:.3g}")
