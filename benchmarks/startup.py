"""How long commands take until they answer, beside `python -c 'import torch'`, in turns.

    python benchmarks/startup.py --repeats 5

Processor seconds are counted beside wall-clock seconds, since other work may run on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

SMOPE = [sys.executable, "-m", "smope"]
COMMANDS = {
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "smope --version": [*SMOPE, "--version"],
    "smope methods": [*SMOPE, "methods"],
    "smope train trainer.device=mps": [*SMOPE, "train", "trainer.device=mps"],
    "smope train stream.num_tasks=3": [*SMOPE, "train", "stream.num_tasks=3"],
    "smope train --dry-run": [*SMOPE, "train", "--dry-run"],
}


def measure(command: list[str], folder: str) -> tuple[float, float, float]:
    """Seconds by the clock, of the processor, and until the first byte of output."""
    before, start = os.times(), time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    after = os.times()
    used = after.children_user + after.children_system
    return time.perf_counter() - start, used - before.children_user - before.children_system, first


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for name, command in COMMANDS.items():
                rows[name].append(measure(command, folder))
    medians = {
        name: [statistics.median(column) for column in zip(*row, strict=True)]
        for name, row in rows.items()
    }
    wall, used, _ = medians["python -c 'import torch'"]
    print("| command | seconds | of torch | processor seconds | of torch | first output, s |")
    print("|---|---|---|---|---|---|")
    for name, (seconds, processor, first) in medians.items():
        ratios = f"{seconds / wall:.2f}", f"{processor / used:.2f}"
        cells = [f"{seconds:.2f}", ratios[0], f"{processor:.2f}", ratios[1], f"{first:.2f}"]
        print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
