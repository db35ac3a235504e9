"""Runs that are killed and resumed, and input that is broken: what survives, what is said, what
crashes.

    python benchmarks/chaos.py                            # 20 kills of experiment=smoke and the broken inputs, minutes
    python benchmarks/chaos.py --kills 5 trainer.epochs=6 # fewer kills, of runs with other settings
    python benchmarks/chaos.py --kills 0                  # the broken inputs alone

kills:  `smope train` is started and, once it has a run directory, killed with SIGKILL at a moment
        drawn evenly from the
        time that an undisturbed run took from there on; then `smope train resume=` takes it up.
survived: the resumed run ends with exit code 0, status "finished" and no half-written file left
    behind.
equal:  run.json (all of it but wall-clock times and the run's own place), metrics.csv and, bit for
        bit, every tensor of
        the last checkpoint (experts, classifier, counts, class statistics) are those of the
        undisturbed run.
inputs: broken_inputs.py, through the command line in this process. Clear: one line that names the
matter, or the run
        goes on and says what it did. Crash: an exception that leaves the command line.
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

# The demo in two tasks, about a hundred steps, with a checkpoint every fourth.
RUN = ("experiment=smoke", "trainer.epochs=2", "trainer.checkpoint_steps=4", "trainer.device=cpu")
TIMES = ("seconds", "images_per_second", "waiting_share", "cost")
PATIENCE = 600.0  # seconds for one process
ATTEMPTS = 10  # of one kill: a run may end before its moment comes


@dataclass(frozen=True)
class Kill:
    """One killed run. moment: seconds after the run directory was there; found: checkpoints at that
    moment, by name;
    said: where the resumed run went on; differs: what is not as in the undisturbed run.
    """

    moment: float
    found: list[str]
    said: str
    survived: bool
    differs: list[str]

    @property
    def equal(self) -> bool:
        return self.survived and not self.differs


def start(arguments: Sequence[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """`smope train` with these arguments in a process of its own, what it prints in `log`."""
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
    """Return as soon as there is a run directory: nothing can be lost before."""
    last = time.monotonic() + PATIENCE
    while not (run_dir / "config.yaml").is_file():
        if process.poll() is not None or time.monotonic() > last:
            process.kill()
            raise RuntimeError(f"smope train did not make {run_dir} (exit code {process.wait()})")
        time.sleep(0.005)


def undisturbed(run_dir: Path, overrides: Sequence[str], threads: int) -> float:
    """Train without a break; seconds from the run directory to the end of the process."""
    log = run_dir.with_suffix(".log")
    process = start([*overrides, f"run_dir={run_dir}"], log, threads)
    wait_for_directory(run_dir, process)
    started = time.monotonic()
    if process.wait(PATIENCE) != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{log.read_text(errors='replace')}")
    return time.monotonic() - started


def killed(
    folder: Path, overrides: Sequence[str], threads: int, longest: float, draw: random.Random
) -> tuple[Path, float]:
    """A run directory whose process was killed, and when."""
    for attempt in range(ATTEMPTS):
        run_dir = folder / f"run{attempt}"
        process = start([*overrides, f"run_dir={run_dir}"], folder / "killed.log", threads)
        wait_for_directory(run_dir, process)
        moment = draw.uniform(0, longest)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        if process.wait(PATIENCE) == -signal.SIGKILL:
            return run_dir, moment
    raise RuntimeError(f"{ATTEMPTS} runs ended before they could be killed; give more epochs")


def kill_and_resume(
    whole: Path,
    folder: Path,
    overrides: Sequence[str],
    threads: int,
    longest: float,
    draw: random.Random,
) -> Kill:
    """Kill a run, resume it, and compare it with the undisturbed run in `whole`."""
    folder.mkdir()
    run_dir, at = killed(folder, overrides, threads, longest, draw)
    found = sorted(path.name for path in (run_dir / "checkpoints").glob("*.safetensors"))
    log = folder / "resumed.log"
    code = start([f"resume={run_dir}"], log, threads).wait(PATIENCE)
    lines = log.read_text(errors="replace").splitlines()
    said = next(
        (line for line in lines if "resum" in line or "starting over" in line),
        lines[-1] if lines else "",
    )
    survived = (
        code == 0
        and record(run_dir).get("status") == "finished"
        and not list(run_dir.rglob(".*.tmp"))
    )
    return Kill(
        at, found, said, survived, differences(whole, run_dir) if survived else ["not finished"]
    )


def record(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "run.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}


def differences(whole: Path, run_dir: Path) -> list[str]:
    """What of a run is not bit for bit as in another: keys of run.json, metrics.csv, tensors of
    the last checkpoint.
    """
    import torch

    from smope.storage.run_directory import RunDirectory
    from smope.training.checkpoint import list_checkpoints, read_checkpoint

    old, new = (_timeless(record(path)) for path in (whole, run_dir))
    found = [
        f"run.json {key}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    ]
    if _rows(whole) != _rows(run_dir):
        found.append("metrics.csv")
    first, second = (
        read_checkpoint(list_checkpoints(RunDirectory(path))[-1]).state for path in (whole, run_dir)
    )
    return found + [
        f"tensor {key}"
        for key in sorted(first.keys() | second.keys())
        if key not in first or key not in second or not torch.equal(first[key], second[key])
    ]


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in TIMES}
    return {**kept, "config": {**kept.get("config", {}), "run_dir": None}}


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


def campaign(
    folder: Path, overrides: Sequence[str], kills: int, seed: int, threads: int
) -> list[Kill]:
    """Kill and resume `kills` runs, and say how each went."""
    draw, whole, results = random.Random(seed), folder / "whole", []
    longest = undisturbed(whole, overrides, threads)
    print(f"an undisturbed run takes {longest:.1f} s from its run directory on")
    for number in range(kills):
        kill = kill_and_resume(whole, folder / str(number), overrides, threads, longest, draw)
        results.append(kill)
        verdict = "equal" if kill.equal else f"DIFFERS: {', '.join(kill.differs[:3])}"
        print(
            f"kill {number + 1:>2} after {kill.moment:5.2f} s: {kill.said}: {verdict}", flush=True
        )
    return results


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
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
    return {
        "kills_tried": len(kills),
        "kills_survived": sum(kill.survived for kill in kills),
        "numbers_equal": sum(kill.equal for kill in kills),
        "inputs_tried": sum(outcome.verdict != "skipped" for outcome in inputs),
        "clear_errors": sum(outcome.verdict == "clear" for outcome in inputs),
        "crashes": sum(outcome.verdict == "crash" for outcome in inputs),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a run was lost or came out different, or an input was answered in any way
    but a clear one.
    """
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
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
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
