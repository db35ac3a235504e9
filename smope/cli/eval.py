"""`smope eval RUN`: evaluate a run again, as it was after its last finished task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smope.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Prints the accuracy on each task learned so far; exit code 1 if it differs from what the run
    recorded.
    """
    parser = Parser(
        prog="smope eval",
        description="Rebuild a run from its directory and evaluate it as it was after its last "
        "finished task, on every "
        "task learned until then.",
        epilog="Example: smope eval runs/demo/2026-01-31_12-00-00",
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument(
        "--device", default=None, help="auto, cpu, cuda, cuda:N or mps (default: the run's own)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args(argv)

    from smope.config.config import load_config
    from smope.console.tables import percent
    from smope.errors import UserError
    from smope.storage.run_directory import RunDirectory

    directory = RunDirectory.open(args.run)
    config = load_config(args.run, moved={"trainer.device": args.device} if args.device else None)

    from smope.run.prepare import prepare
    from smope.run.reevaluate import evaluate_again
    from smope.training.checkpoint import last_checkpoint, restore

    def tell(_: Path, error: UserError) -> None:
        print(f"{error}; using the one before", file=sys.stderr)

    checkpoint = last_checkpoint(directory, tell, boundary=True)
    if checkpoint is None:
        raise UserError(
            f"RUN={args.run}: holds no checkpoint of a finished task; train on with: smope train "
            f"resume={args.run}"
        )
    _, trainer = prepare(config)
    restore(trainer.method, trainer.stream, checkpoint)
    again = evaluate_again(trainer, checkpoint)
    row, equal = again.fresh, again.fresh == again.recorded
    if args.json:
        found = {
            "tasks_done": len(row),
            "accuracy": row,
            "recorded": again.recorded,
            "equal": equal,
        }
        print(json.dumps({**found, "agrees": not again.off}))
    else:
        for index, value in enumerate(row):
            print(f"task {index + 1:>3}  {percent(value):>6} %")
        print(
            f"mean      {percent(sum(row) / len(row)):>6} %  on the {trainer.stream.evaluated_on} "
            f"images"
        )
        tasks = len(trainer.spans)
        if len(row) < tasks:
            print(
                f"{len(row)} of the {tasks} tasks are learned; train on with: smope train "
                f"resume={args.run}"
            )
        recorded = " ".join(map(percent, again.recorded))
        verdict = "which does not agree" if again.off else f"which agrees {again.rule}"
        print(
            "equal to what the run recorded" if equal else f"the run recorded {recorded}, {verdict}"
        )
    return 1 if again.off else 0
