"""`smope eval RUN`: evaluate a run again, as it was after its last finished task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smope.commands import Parser


def run(argv: list[str]) -> int:
    """Prints the accuracy on each task learned so far; exit code 1 if it differs from what run.json says."""
    parser = Parser(
        prog="smope eval",
        description="Rebuild a run from its directory and evaluate it as it was after its last finished task, on every "
        "task learned until then.",
        epilog="Example: smope eval runs/demo/2026-01-31_12-00-00",
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--device", default=None, help="auto, cpu, cuda, cuda:N or mps (default: the run's own)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args(argv)

    from smope.config import flatten, load_config
    from smope.errors import UserError
    from smope.report.tables import percent
    from smope.rules import check_rules
    from smope.runs import RunDirectory

    directory = RunDirectory.open(args.run)
    config = load_config(args.run)

    if args.device:
        config.trainer["device"] = args.device
        check_rules(flatten(config.as_dict()))

    from smope.build import build
    from smope.session import make_trainer
    from smope.training.checkpoint import last_checkpoint, restore
    from smope.training.history import History

    def tell(_: Path, error: UserError) -> None:
        print(f"{error}; using the one before", file=sys.stderr)

    checkpoint = last_checkpoint(directory, tell, boundary=True)
    if checkpoint is None:
        raise UserError(
            f"RUN={args.run}: holds no checkpoint of a finished task; train on with: smope train resume={args.run}"
        )
    trainer = make_trainer(build(config))
    restore(trainer.method, trainer.stream, checkpoint)
    seen = trainer.spans[checkpoint.tasks_done - 1].stop
    row = [trainer.accuracy(index, seen) for index in range(checkpoint.tasks_done)]
    recorded = History.read(checkpoint.history, checkpoint.path).accuracy_matrix[-1]
    same = row == recorded
    if args.json:
        print(json.dumps({"tasks_done": checkpoint.tasks_done, "accuracy": row, "recorded": recorded, "equal": same}))
    else:
        for index, value in enumerate(row):
            print(f"task {index + 1:>3}  {percent(value):>6} %")
        print(f"mean      {percent(sum(row) / len(row)):>6} %  on the {trainer.stream.evaluated_on} images")
        print("equal to what the run recorded" if same else f"the run recorded {' '.join(map(percent, recorded))}")
    return 0 if same else 1
