"""`smope reproduce ROW`: run a row of the paper, compare it with what was published, write a card."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smope.cli.parser import Parser
from smope.config.config import MISSING, Config
from smope.config.hydra import compose_values
from smope.config.identity import flatten
from smope.config.overrides import read_overrides
from smope.console.markup import aligned
from smope.errors import UserError
from smope.reproduction.published import ROWS, SCORES, Row, changed_data, changed_settings, images
from smope.reproduction.report import make_card, markdown, screen
from smope.run.plan import RUNS, plan
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory

# What the command itself decides.
OWN_KEYS = {
    "experiment": "ROW names the experiment",
    "seed": "say --seeds instead",
    "run_dir": "runs are kept in runs/<name>/seed-<n>: say name=... for another folder",
    "resume": "a run that was interrupted is continued by the same command",
}
LISTED = """\
FAA and CAA as published, in percent; - where no number is recorded here.
stream.root is the folder of the data set, backbone.weights a file; other weights are downloaded once, or read from
backbone.weights. ImageNet-R needs the split lists published with CODA-Prompt, in stream.root or stream.split_lists.

example: smope reproduce paper_cifar100 stream.root=~/cifar100"""
CHECKOUT = Path(__file__).resolve().parents[2]
EPILOG = """\
Each seed is a run directory runs/ROW/seed-N. A finished one is not run again, an interrupted one goes on after its
last finished task, so the same command can be given again and again, and seeds can be shared out between machines.
Settings may be changed; the card then names them and claims no reproduction.

examples:
  smope reproduce --list
  smope reproduce paper_cifar100 stream.root=~/cifar100
  smope reproduce paper_cifar100 stream.root=~/cifar100 trainer.device=cuda:1 --seeds 3,4
  smope reproduce paper_cifar100 --check run_a run_b     compare runs that exist

exit code: 0 done, 1 a score is outside, 2 a mistake, 130 interrupted"""


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code, 1 where a score differs too much from the
    paper's.
    """
    options = _parser().parse_intermixed_args(argv)
    if options.list:
        print(_listing(options.config_dir))
        return 0
    row, seeds = _row(options.row), parse_seeds(options.seeds)
    _refuse_own_keys(options.overrides, options.check)
    folder = _card_folder(options.out)
    command = ["smope", "reproduce", *argv]
    if options.check:
        records = _finished_runs(options.check)
    else:
        jobs = [_job(options.row, options.overrides, seed, options.config_dir) for seed in seeds]
        _require_data(row, jobs)
        records = _run_jobs(jobs, shlex.join(command))
    return _report(
        options.row, row, records, command, _row_values(options.row, options.config_dir), folder
    )


def _parser() -> Parser:
    parser = Parser(
        "smope reproduce",
        "Run a row of the paper for each seed, compare the scores with the published ones, and "
        "write a card.",
        EPILOG,
    )
    parser.add_argument("row", nargs="?", metavar="ROW", help="a name that --list shows")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `smope train`")
    parser.add_argument(
        "--list", action="store_true", help="the rows, what each needs and what was published"
    )
    parser.add_argument(
        "--seeds", default="0-4", help="such as 0-4, the paper's and the default, or 0,2"
    )
    parser.add_argument(
        "--check",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="compare these finished runs, run nothing",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the card goes (default: benchmarks/results of a checkout, or here)",
    )
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="a folder of your own laid out like conf/, searched as well",
    )
    return parser


def parse_seeds(text: str) -> list[int]:
    """0-4, 0,2 or a mixture as ascending numbers; UserError for anything else."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(
                f"--seeds {text}: must be numbers or ascending ranges; write for example --seeds "
                f"0-4 or 0,2"
            )
        seeds |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(seeds)


def _listing(config_dir: str | None) -> str:
    """The rows, what they need, and what was published; from conf/ and without torch."""
    lines = [["row", "data", "tasks", "backbone", "FAA", "CAA", "needs"]]
    for name, row in ROWS.items():
        values = _row_values(name, config_dir)
        needs = [key for key in reversed(values) if values[key] == MISSING]
        published = [str(row.paper.get(score, "-")) for score in list(SCORES)[:2]]
        stream = [str(values[f"stream.{key}"]) for key in ("name", "num_tasks")]
        lines.append([name, *stream, values["backbone.name"], *published, ", ".join(needs)])
    return f"{aligned(lines)}\n\n{LISTED}"


def _row(name: str | None) -> Row:
    if name is None or "=" in name:
        raise UserError(
            "smope reproduce: ROW is missing; `smope reproduce --list` shows the rows and what "
            "each needs"
        )
    if name not in ROWS:
        near = difflib.get_close_matches(name, ROWS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(ROWS)}"
        raise UserError(f"ROW={name}: no such row was published; {hint}")
    return ROWS[name]


def _row_values(name: str, config_dir: str | None) -> dict[str, Any]:
    """The row's own settings by dotted key; ??? where a user has to say something."""
    return flatten(compose_values(read_overrides([f"experiment={name}"], config_dir)))


def _refuse_own_keys(overrides: Sequence[str], check: Sequence[Path] | None) -> None:
    for text in overrides:
        key = text.lstrip("+").partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"{text} belongs to `smope train`; {OWN_KEYS[key]}")
        if check:
            raise UserError(
                f"{text} has no effect with --check, which compares runs as they are; leave it out"
            )


def _card_folder(out: Path | None) -> Path:
    """Where cards go; made now, so that a mistake is told before anything is trained."""
    folder = out.expanduser() if out else Path()
    if out is None and (CHECKOUT / ".git").exists() and Path.cwd().is_relative_to(CHECKOUT):
        folder = Path(os.path.relpath(CHECKOUT / "benchmarks" / "results"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    return folder


@dataclass(frozen=True)
class Job:
    """One seed: what is left to train, or (config None) the finished run in `run_dir`."""

    seed: int
    run_dir: Path
    config: Config | None
    resume: bool = False


def _job(name: str, overrides: Sequence[str], seed: int, config_dir: str | None) -> Job:
    """Where the row's run with this seed is kept, and what is left to do there.

    UserError for what cannot be run.
    """
    texts = [f"experiment={name}", *overrides, f"seed={seed}"]
    asked = flatten(compose_values(read_overrides(texts, config_dir)))
    run_dir = _place(asked, changed_settings(_row_values(name, config_dir), asked), seed)
    directory = RunDirectory(run_dir)
    if not directory.config.is_file():
        config, _, _ = plan(read_overrides([*texts, f"run_dir={run_dir}"], config_dir))
        return Job(seed, run_dir, config)
    record = directory.read_record()
    other = changed_settings(asked, flatten(record["config"])) if record else []
    if other:
        raise UserError(
            f"{run_dir} holds a run with {', '.join(other)}, in brackets what is asked for now; "
            "move that folder away, or write name=... to use another"
        )
    if record.get("status") == "finished":
        return Job(seed, run_dir, None)
    config, _, _ = plan(read_overrides([*texts, f"resume={run_dir}"], config_dir))
    return Job(seed, run_dir, config, resume=True)


def _place(values: Mapping[str, Any], changed: Sequence[str], seed: int) -> Path:
    """runs/<name>/seed-<n>, and for runs with changed settings a folder of their own in between."""
    folder = RUNS / str(values["name"])
    return (folder / f"changed-{_digest(changed)}" if changed else folder) / f"seed-{seed}"


def _digest(changed: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(changed).encode()).hexdigest()[:8]


def _require_data(row: Row, jobs: Sequence[Job]) -> None:
    """UserError, before hours of training, where the images on disk are not those of the row."""
    config = next((job.config for job in jobs if job.config is not None), None)
    if config is None:
        return
    from smope.run.build_source import make_source

    source = make_source(config)
    other = changed_data(row, {"train": len(source.train), "test": len(source.test)}, source.facts)
    if other:
        raise UserError(
            f"stream.root={config.stream.get('root')}: found {', '.join(other)}, in brackets what "
            f"the row wants, which "
            f"is {row.data}; `smope train experiment=...` trains on other images with the row's "
            f"settings"
        )


def _run_jobs(jobs: Sequence[Job], command: str) -> dict[str, dict[str, Any]]:
    """Train what is left, one seed after the other; run.json of every run by its directory."""
    for number, job in enumerate(jobs, 1):
        label = f"seed {job.seed} ({number} of {len(jobs)})"
        if job.config is None:
            print(f"{label}: finished before, in {job.run_dir}", flush=True)
            continue
        print(f"{label}: {'going on' if job.resume else 'starting'} in {job.run_dir}", flush=True)
        from smope.run.train import train

        try:
            train(job.config, job.run_dir, resume=job.resume)
        except KeyboardInterrupt:
            print(
                f"stopped in seed {job.seed}; the same command goes on from here: {command}",
                flush=True,
            )
            raise
    return {str(job.run_dir): RunDirectory(job.run_dir).read_record() for job in jobs}


def _finished_runs(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """run.json of each run, by its directory.

    UserError for one that is not finished, or two of the same seed.
    """
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        record = RunDirectory.open(path, "--check RUN").read_record()
        if record.get("status") != "finished":
            raise UserError(
                f"--check RUN={path}: is not finished; continue it with: smope train resume={path}"
            )
        twin = next((other for other in records if records[other]["seed"] == record["seed"]), None)
        if twin is not None:
            raise UserError(
                f"--check {twin} {path}: both have seed {record['seed']}; give one run a seed"
            )
        records[str(path)] = record
    return records


def _report(
    name: str,
    row: Row,
    records: Mapping[str, Mapping[str, Any]],
    command: Sequence[str],
    values: Mapping[str, Any],
    folder: Path,
) -> int:
    """Show and write what the runs come to; returns the exit code."""
    changed: list[str] = []
    for record in records.values():
        found = changed_settings(values, flatten(record["config"]))
        found += changed_data(row, images(record), record["stream"])
        changed += [text for text in found if text not in changed]
    card = make_card(name, row, records, changed, command, _checkout())
    seeds = [run["seed"] for run in card["runs"]]
    stem = "_".join(
        [name, *(["changed", _digest(changed)] if changed else []), "seeds", *map(str, seeds)]
    )
    write_atomically(
        folder / f"{stem}.json", (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode()
    )
    write_atomically(folder / f"{stem}.md", markdown(card).encode())
    print(f"\n{screen(card)}\n\ncard: {folder / stem}.md (and .json)")
    return 1 if card["verdict"] == "outside" else 0


def _checkout() -> dict[str, Any] | None:
    """The commit of the checkout that this program runs from, and whether smope/ or conf/ differ
    from it.
    """
    git = ["git", "-C", str(CHECKOUT)]
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--", "smope", "conf"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": head.stdout.strip(), "uncommitted_changes": "yes" if status.stdout else "no"}
