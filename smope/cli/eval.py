"""`smope eval RUN`: evaluate a run again after its last finished task."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.cli.chosen_run import chosen_run
from smope.cli.parser import Parser
from smope.config.config import load_config
from smope.console.tables import percent
from smope.errors import UserError
from smope.run.quick_import import quick_imports
from smope.storage.commands import resume_command
from smope.storage.run_directory import RunDirectory
from smope.training.device_presence import refuse_absent_device

if TYPE_CHECKING:
    from smope.run.reevaluate import Reevaluation


def run(argv: list[str]) -> int:
    """Print the accuracy on each task learned so far. The exit code is 1 if it differs from what
    the run recorded.
    """
    parser = Parser(
        prog="smope eval",
        description="Rebuild a run from its directory and evaluate it as it was after its last "
        "finished task, on every task learned until then.",
        epilog="Examples: smope eval latest; smope eval runs/demo/2026-01-31_12-00-00",
    )
    parser.add_argument("run", type=Path, help="a run directory, a folder with runs, or latest")
    parser.add_argument(
        "--device", default=None, help="auto, cpu, cuda, cuda:N or mps (default: the run's own)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args(argv)

    directory = RunDirectory.open(chosen_run(args.run))
    config = load_config(
        directory.path, moved={"trainer.device": args.device} if args.device else None
    )
    refuse_absent_device(config.trainer["device"], "--device" if args.device else "trainer.device")

    with quick_imports():
        from smope.run.prepare import prepare
        from smope.run.reevaluate import evaluate_again
        from smope.training.checkpoint import last_checkpoint, restore

    def warn(_: Path, error: UserError) -> None:
        print(f"{error}; using the one before", file=sys.stderr)

    checkpoint = last_checkpoint(directory, warn, boundary=True)
    if checkpoint is None:
        raise UserError(
            f"RUN={directory.path}: holds no checkpoint of a finished task; continue with: "
            f"{resume_command(directory.path)}"
        )
    _, trainer = prepare(config)
    restore(trainer.method, trainer.stream, checkpoint)
    again = evaluate_again(trainer, checkpoint)
    if args.json:
        print(json.dumps(_as_dict(again)))
    else:
        print("\n".join(_lines(again, trainer.stream.evaluated_on)))
        tasks, done = len(trainer.spans), len(again.fresh)
        if done < tasks:
            print(
                f"{done} of the {tasks} tasks are learned; continue with: "
                f"{resume_command(directory.path)}"
            )
        print(_verdict(again))
    return 1 if again.differing_tasks else 0


def _as_dict(again: Reevaluation) -> dict[str, Any]:
    return {
        "tasks_done": len(again.fresh),
        "accuracy": again.fresh,
        "recorded": again.recorded,
        "equal": again.fresh == again.recorded,
        "agrees": not again.differing_tasks,
    }


def _lines(again: Reevaluation, evaluated_on: str) -> list[str]:
    """The accuracy on each task, and their mean."""
    lines = [f"task {task:>3}  {percent(value):>6} %" for task, value in enumerate(again.fresh, 1)]
    mean = sum(again.fresh) / len(again.fresh)
    return [*lines, f"mean      {percent(mean):>6} %  on the {evaluated_on} images"]


def _verdict(again: Reevaluation) -> str:
    if again.fresh == again.recorded:
        return "equal to what the run recorded"
    recorded = " ".join(map(percent, again.recorded))
    if again.differing_tasks:
        return f"the run recorded {recorded}, which does not agree"
    return f"the run recorded {recorded}, which agrees {again.rule}"
