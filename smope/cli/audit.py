"""`smope audit RUN`: whether a run's numbers can be trusted, one verdict in each line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.cli.chosen_run import chosen_run
from smope.cli.parser import Parser
from smope.config.config import Config, load_config
from smope.errors import UserError
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory
from smope.training.device_presence import refuse_absent_device

if TYPE_CHECKING:
    from smope.audit.restored_run import Verdict

EPILOG = """\
The run is rebuilt from its directory in the state after its last finished task. The checks: do
logits depend on the other images of a batch, on the order of images, or on the time; is the method
in evaluation mode, with evaluation transforms; do training and test share images; are the frozen
weights unchanged; does the accuracy matrix come out again, and do its scores follow from it.
smope/audit/checks.py has the tolerances and the reasons for them.

The verdicts are stored as audit.json in the run directory; nothing else is written. A check that is
not possible for this run is marked - and counts neither way. The exit code is 1 if a check fails.

examples:
  smope audit latest                                    the latest finished run of runs/
  smope audit runs/demo/2026-01-31_12-00-00
  smope audit runs/demo/2026-01-31_12-00-00 --strict    fail on a single shared image"""


def run(argv: Sequence[str]) -> int:
    """Entry point of the command. The exit code is 1 if a check fails."""
    options = _parser().parse_args(argv)
    if options.images < 0:
        raise UserError(
            f"--images must be 0 or more, got {options.images}; write for example --images 64"
        )
    directory, config = _open(chosen_run(options.run), options.device)

    from smope.audit.checks import run_checks
    from smope.audit.restored_run import document, restore_run

    restored, verdict = restore_run(directory, config, images=options.images, strict=options.strict)
    verdicts = [verdict]
    show = _ignore if options.json else _show
    show(verdict)
    if restored is not None:
        for verdict in run_checks(restored):
            verdicts.append(verdict)
            show(verdict)
    content = document(verdicts, restored, options.strict)
    if options.json:
        print(json.dumps(content, indent=1))
    else:
        print(_summary(verdicts, content))
    _store(directory.path, content)
    return 0 if content["passed"] else 1


def _parser() -> Parser:
    parser = Parser("smope audit", "Check whether a run's numbers can be trusted.", EPILOG)
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run directory, a folder with runs, or latest"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail on any image in both training and test"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=64,
        help="test images to compare one by one (default: 64; 0: all)",
    )
    parser.add_argument(
        "--device", default=None, help="auto, cpu, cuda, cuda:N or mps (default: the run's own)"
    )
    parser.add_argument("--json", action="store_true", help="print what audit.json holds")
    return parser


def _open(path: Path, device: str | None) -> tuple[RunDirectory, Config]:
    if path.is_file():
        raise UserError(
            f"RUN={path}: is a file; smope audit looks at a run directory, runs/<name>/<time>, "
            f"and at nothing else yet"
        )
    directory = RunDirectory.open(path)
    config = load_config(path, moved={"trainer.device": device} if device else None)
    refuse_absent_device(config.trainer["device"], "--device" if device else "trainer.device")
    return directory, config


def _ignore(_verdict: Verdict) -> None:
    """Print nothing: --json prints all verdicts at the end."""


def _show(verdict: Verdict) -> None:
    """Print a verdict."""
    outcome = {True: "ok", False: "FAILED", None: "-"}[verdict.passed]
    print(f"{outcome:<6}  {verdict.check:<22}  {verdict.text}", flush=True)


def _summary(verdicts: Sequence[Verdict], content: Mapping[str, Any]) -> str:
    """How many checks passed, how many were not possible, and which tasks are not learned yet."""
    outcomes = [verdict.passed for verdict in verdicts]
    text = f"{outcomes.count(True)} of {len(outcomes)} checks passed"
    if None in outcomes:
        text += f", {outcomes.count(None)} could not be made"
    done, tasks = content["tasks_done"], content["tasks"]
    if done is None:
        return f"{text}; the others need a state that fits"
    if done < tasks:
        return f"{text}; of {tasks} tasks {done} are learned, and nothing is said of the others"
    return text


def _store(run_dir: Path, content: dict[str, Any]) -> None:
    """Write audit.json. A run directory that cannot be written, in an archive for instance, can
    be audited too.
    """
    path = run_dir / "audit.json"
    try:
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        print(
            f"smope: {path}: cannot be written ({error.strerror}); the verdicts stand",
            file=sys.stderr,
        )
        return
    print(f"stored in {path}", file=sys.stderr)
