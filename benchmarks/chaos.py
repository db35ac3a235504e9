"""Kills and resumes runs, and tries broken inputs: what survives, what is reported, what crashes.

    python benchmarks/chaos.py                             # 20 kills and all broken inputs, minutes
    python benchmarks/chaos.py --kills 5 trainer.epochs=6  # fewer kills, with other settings
    python benchmarks/chaos.py --kills 0                   # the broken inputs alone

kills: `smope train experiment=smoke` is started and, once it has a run directory, killed with
    SIGKILL. The moment is drawn uniformly from the time that an undisturbed run takes from there
    on. Then `smope train resume=` continues it.
survived: The resumed run ends with exit code 0, status "finished" and no half-written files.
equal: All of run.json except times and paths, metrics.csv, and every tensor of the last checkpoint
    equal those of the undisturbed run, bit for bit.
inputs: Those of broken_inputs.py, through the command line in this process. Clear: one line names
    the problem, or the run continues and prints what it did. Crash: an exception leaves the command
    line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from input_trial import Outcome, try_inputs

# The demo in two tasks of about a hundred steps together, with a checkpoint every four steps.
RUN = ("experiment=smoke", "trainer.epochs=2", "trainer.checkpoint_steps=4", "trainer.device=cpu")
# How a run was started, and how long it took.
TIME_KEYS = ("seconds", "images_per_second", "waiting_share", "cost", "launches")
PROCESS_SECONDS = 600.0  # most seconds for one process
KILL_ATTEMPTS = 10  # a run may end before the moment at which it is to be killed


@dataclass(frozen=True)
class Kill:
    """One killed run.

    Attributes:
        moment: Seconds between the run directory and the kill.
        checkpoints: Names of the checkpoints at that moment.
        message: Where the resumed run says that it continues.
        survived: Whether the resumed run finished.
        differs: What is not equal to the undisturbed run.
    """

    moment: float
    checkpoints: list[str]
    message: str
    survived: bool
    differs: list[str]

    @property
    def equal(self) -> bool:
        """Whether the resumed run equals the undisturbed one."""
        return self.survived and not self.differs


def start(arguments: Sequence[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start `smope train` in a process of its own.

    Args:
        arguments: Of `smope train`.
        log: A file to which its output is appended.
        threads: CPU threads.
    """
    count = str(threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "WANDB_MODE": "disabled",
    }
    with log.open("ab") as file:
        command = [sys.executable, "-m", "smope", "train", *arguments]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def wait_for_directory(run_dir: Path, process: subprocess.Popen[bytes]) -> None:
    """Return as soon as there is a run directory, before which nothing can be lost.

    RuntimeError if `process` ends without one, or takes too long.
    """
    deadline = time.monotonic() + PROCESS_SECONDS
    while not (run_dir / "config.yaml").is_file():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"smope train did not make {run_dir} (exit code {process.wait()})")
        time.sleep(0.005)


def undisturbed(run_dir: Path, overrides: Sequence[str], threads: int) -> float:
    """Train without interruption.

    Args:
        run_dir: A new run directory.
        overrides: Of `smope train`.
        threads: CPU threads.

    Returns:
        Seconds from the run directory to the end of the process.
    """
    log = run_dir.with_suffix(".log")
    process = start([*overrides, f"run_dir={run_dir}"], log, threads)
    wait_for_directory(run_dir, process)
    started = time.monotonic()
    if process.wait(PROCESS_SECONDS) != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{log.read_text(errors='replace')}")
    return time.monotonic() - started


def killed(
    folder: Path, overrides: Sequence[str], threads: int, longest: float, draw: random.Random
) -> tuple[Path, float]:
    """Start a run and kill it.

    Args:
        folder: Where the run directory goes.
        overrides: Of `smope train`.
        threads: CPU threads.
        longest: Latest moment, in seconds after the run directory appears.
        draw: Draws the moment.

    Returns:
        The run directory, and the moment.
    """
    for attempt in range(KILL_ATTEMPTS):
        run_dir = folder / f"run{attempt}"
        process = start([*overrides, f"run_dir={run_dir}"], folder / "killed.log", threads)
        wait_for_directory(run_dir, process)
        moment = draw.uniform(0, longest)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        if process.wait(PROCESS_SECONDS) == -signal.SIGKILL:
            return run_dir, moment
    raise RuntimeError(f"{KILL_ATTEMPTS} runs ended before they could be killed; give more epochs")


def kill_and_resume(
    whole: Path,
    folder: Path,
    overrides: Sequence[str],
    threads: int,
    longest: float,
    draw: random.Random,
) -> Kill:
    """Kill a run, resume it, and compare it with the undisturbed run `whole`; else as `killed`."""
    folder.mkdir()
    run_dir, at = killed(folder, overrides, threads, longest, draw)
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").glob("*.safetensors"))
    log = folder / "resumed.log"
    code = start([f"resume={run_dir}"], log, threads).wait(PROCESS_SECONDS)
    lines = log.read_text(errors="replace").splitlines()
    message = next(
        (line for line in lines if "resum" in line or "starting over" in line),
        lines[-1] if lines else "",
    )
    survived = (
        code == 0
        and record(run_dir).get("status") == "finished"
        and not list(run_dir.rglob(".*.tmp"))
    )
    differs = differences(whole, run_dir) if survived else ["not finished"]
    return Kill(at, checkpoints, message, survived, differs)


def record(run_dir: Path) -> dict[str, Any]:
    """The content of run.json; empty if there is none."""
    path = run_dir / "run.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}


def differences(whole: Path, run_dir: Path) -> list[str]:
    """What differs between two runs: keys of run.json, metrics.csv, last checkpoint's tensors."""
    import torch

    from smope.storage.run_directory import RunDirectory
    from smope.training.checkpoint import list_checkpoints, read_checkpoint

    old, new = (_timeless(record(path)) for path in (whole, run_dir))
    keys = sorted(old.keys() | new.keys())
    differing = [f"run.json {key}" for key in keys if old.get(key) != new.get(key)]
    if _rows(whole) != _rows(run_dir):
        differing.append("metrics.csv")
    first, second = (
        read_checkpoint(list_checkpoints(RunDirectory(path))[-1]).state for path in (whole, run_dir)
    )
    return differing + [
        f"tensor {key}"
        for key in sorted(first.keys() | second.keys())
        if key not in first or key not in second or not torch.equal(first[key], second[key])
    ]


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    """A record without times, starts and its own path."""
    timeless = {key: value for key, value in values.items() if key not in TIME_KEYS}
    reference = {
        key: value for key, value in values.get("reference", {}).items() if key not in TIME_KEYS
    }
    config = {**timeless.get("config", {}), "run_dir": None}
    return {**timeless, "config": config, "reference": reference}


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


def campaign(
    folder: Path, overrides: Sequence[str], kills: int, seed: int, threads: int
) -> list[Kill]:
    """Kill and resume runs, and print the result of each.

    Args:
        folder: Where run directories go.
        overrides: Of `smope train`.
        kills: How many runs.
        seed: Of the moments.
        threads: CPU threads of each run.
    """
    draw, whole, results = random.Random(seed), folder / "whole", []
    longest = undisturbed(whole, overrides, threads)
    print(f"an undisturbed run takes {longest:.1f} s from its run directory on")
    for number in range(kills):
        kill = kill_and_resume(whole, folder / str(number), overrides, threads, longest, draw)
        results.append(kill)
        verdict = "equal" if kill.equal else f"DIFFERS: {', '.join(kill.differs[:3])}"
        print(
            f"kill {number + 1:>2} after {kill.moment:5.2f} s: {kill.message}: {verdict}",
            flush=True,
        )
    return results


def machine(threads: int) -> dict[str, Any]:
    """The machine and versions that this runs on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{os.cpu_count()} x {models[0] if models else platform.processor()}"
    return {
        "cpu": cpu,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def summary(kills: Sequence[Kill], inputs: Sequence[Outcome]) -> dict[str, int]:
    """The counts of all kills and inputs."""
    return {
        "kills_tried": len(kills),
        "kills_survived": sum(kill.survived for kill in kills),
        "numbers_equal": sum(kill.equal for kill in kills),
        "inputs_tried": sum(outcome.verdict != "skipped" for outcome in inputs),
        "clear_errors": sum(outcome.verdict == "clear" for outcome in inputs),
        "crashes": sum(outcome.verdict == "crash" for outcome in inputs),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a run was lost or differs, or an input did not get a clear answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help=f"added to {' '.join(RUN)}"
    )
    parser.add_argument("--kills", type=int, default=20, help="runs to kill (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each run (default: 1)"
    )
    parser.add_argument(
        "--inputs", default="", metavar="TEXT", help="only inputs with TEXT in their name"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    options = parser.parse_intermixed_args(arguments)
    about = machine(options.threads)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*RUN, *options.overrides]
        kills = (
            campaign(folder, overrides, options.kills, options.seed, options.threads)
            if options.kills
            else []
        )
        inputs = try_inputs(folder / "inputs", options.inputs)
    totals = summary(kills, inputs)
    print(f"kills survived / tried: {totals['kills_survived']} / {totals['kills_tried']}")
    print(f"numbers equal / tried: {totals['numbers_equal']} / {totals['kills_tried']}")
    clear = f"{totals['inputs_tried']} / {totals['clear_errors']} / {totals['crashes']}"
    print(f"inputs tried / clear errors / crashes: {clear}")
    if options.json:
        rows = {
            "kills": [asdict(kill) for kill in kills],
            "inputs": [asdict(outcome) for outcome in inputs],
        }
        about = {**about, "overrides": overrides, "seed": options.seed}
        options.json.write_text(json.dumps({**about, **totals, **rows}, indent=1) + "\n")
    good = (
        totals["numbers_equal"] == len(kills) and totals["clear_errors"] == totals["inputs_tried"]
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
