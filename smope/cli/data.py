"""`smope data check ROOT`: what a data set holds, what is wrong with it, and what each task would
hold.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smope.cli.parser import Parser
from smope.config.config import MISSING, Config, validate
from smope.config.hydra import compose_values
from smope.config.overrides import read_overrides
from smope.errors import UserError

EPILOG = """\
Errors (exit code 1): images that cannot be read, classes without images, a layout or tasks that
training refuses, and more than 1 % of the test images among the training images, compared pixel for
pixel. Fewer of these, small classes and unusual colour modes are warnings; --strict makes them
errors. Notes never fail. Nothing is written.

examples:
  smope data check ~/photos                          class folders in train/ and test/
  smope data check ~/photos stream.num_tasks=5       and what each of 5 tasks would hold
  smope data check ~/pictures stream=imagenet_r      where the layout does not say what it is
  smope data check ~/photos --json > report.json     everything, with every image named"""


def run(argv: Sequence[str]) -> int:
    """Exit code 1 if something is wrong with the data; UserError if something is wrong with the
    command.
    """
    options = _parser().parse_intermixed_args(argv)
    root = _root(options.root)
    config, mark = _configuration(root, options.overrides, options.config_dir)

    from smope.cli.data_report import document, lines
    from smope.run.data_check import check

    report = check(root, config, mark)
    if options.strict:
        report.findings = [
            replace(finding, level="error") if finding.level == "warning" else finding
            for finding in report.findings
        ]
    text = json.dumps(document(report), indent=1) if options.json else "\n".join(lines(report))
    print(text)
    return 1 if report.count("error") else 0


def _parser() -> Parser:
    parser = Parser(
        "smope data",
        "Look through a data set before training on it; every image is decoded once.",
        EPILOG,
    )
    parser.usage = "smope data check ROOT [key=value ...] [--json] [--strict] [--config-dir DIR]"
    parser.add_argument(
        "action", metavar="check", nargs="?", choices=["check"], help="look for what is wrong"
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        nargs="?",
        help="the folder of a data set, or a .csv table of images",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as for `smope train`; stream=NAME says what ROOT holds",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    parser.add_argument("--strict", action="store_true", help="make warnings errors")
    parser.add_config_dir()
    return parser


def _root(text: str | None) -> Path:
    """ROOT as an absolute path. It need not exist, since some streams can download their data."""
    if text is None:  # the parser's own error would call the overrides missing as well
        raise UserError("smope data: which folder? Write smope data check ROOT")
    root = Path(os.path.abspath(Path(text).expanduser()))
    if not root.exists() and "=" in text:
        quoted = shlex.quote(text)
        raise UserError(
            f"smope data: ROOT comes before {text}; write smope data check ROOT {quoted}"
        )
    return root


def _configuration(root: Path, texts: Sequence[str], config_dir: str | None) -> tuple[Config, str]:
    """The configuration that training would have, and by which name on disk its stream was
    recognised ("" if the user chose it). A missing number of tasks becomes None.
    """
    given = read_overrides(texts, config_dir).given
    key = "stream.table" if root.is_file() else "stream.root"
    if key in given:
        raise UserError(f"smope data: {key} is ROOT={root}; leave it out of what follows")
    mark, chosen = "", []
    if not {"stream", "benchmark", "experiment"} & given:
        from smope.streams.checking.recognition import recognise

        stream, mark = recognise(root)
        chosen = [f"stream={stream}"]
    overrides = read_overrides([*chosen, *texts, f"{key}={root}"], config_dir)
    values = compose_values(overrides)
    if values["stream"].get("num_tasks") == MISSING:
        values["stream"]["num_tasks"] = None
    return validate(values, overrides.given), mark
