r"""Every number that takes a GPU, in one run of minutes: the most wanted first, each kept at once.

    python benchmarks/gpu.py --minutes 12 --out FILE \
        --data CIFAR --data-20k CIFAR_20K --weights VIT_TI
    python benchmarks/gpu.py --list                 # the jobs in order of value
    python benchmarks/gpu.py --rehearse --out FILE  # every stage on the CPU, small: does it work?
    python benchmarks/gpu.py --table FILE           # the tables in Markdown

FILE has a line of JSON for each job that has ended, with its rows or with what went wrong. A job
that FILE holds is not done again, failed ones included: delete their lines to try them once more.
None is begun that would not end in time.

tests:     each method gives a CPU's numbers and learns in less precision; attention; prediction.
speed:     steps and inference beside the plain ViT's, in turns (measuring.py): eager beside eager,
           compiled beside compiled.
profile:   which kernels a step's time goes to, and how much of it the device waits.
run:       a whole run by part (timed_run.py), and from it one of CIFAR-100's size, which is
           computed and not measured.
images:    training batches of images that are on the device, beside those that are loaded.
accuracy:  rows that the pages in results/ lack.

CIFAR: any part of CIFAR-100 (small_cifar.py makes one). CIFAR_20K: 200 training and all test images
a class. VIT_TI: the weights of vit_tiny_patch16_224.augreg_in21k_ft_in1k.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_jobs import MOST, REHEARSED, Job, Place, all_jobs, peak_of
from gpu_tables import tables
from speed import machine

SPARE = 5.0  # seconds kept for writing the last row


class Results:
    """The file of results, with one line for each job."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def lines(self) -> list[dict[str, Any]]:
        """What it holds, but for lines that were cut short when the machine went away."""
        found = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def held(self) -> set[tuple[str, str]]:
        return {(line["stage"], line["name"]) for line in self.lines()}

    def add(self, line: dict[str, Any]) -> None:
        """Append, on a line of its own."""
        before = self.file.read_text() if self.file.exists() else ""
        with self.file.open("a") as file:
            file.write(
                ("" if before.endswith("\n") or not before else "\n") + json.dumps(line) + "\n"
            )


def about() -> dict[str, Any]:
    """The line that says where the others were measured."""
    peaks = {dtype: peak_of(dtype) for dtype in ("bfloat16", "float32")}
    return {"stage": "machine", "name": _now(), "machine": machine(), "peaks": peaks}


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def do(job: Job, place: Place, seconds: float) -> dict[str, Any]:
    """The job's line: what goes wrong in it stays in it."""
    line = {"stage": job.stage, "name": job.name, "began": _now()}
    start = time.perf_counter()
    try:
        with limited(seconds + SPARE / 2):  # jobs that can end by themselves do so before
            found: dict[str, Any] = {"rows": job.run(place, seconds)}
    except Exception:
        found = {"error": traceback.format_exc()}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes that come next
    return {**line, "seconds": time.perf_counter() - start, **found}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TimeoutError in what takes longer."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def work(jobs: Sequence[Job], place: Place, results: Results, until: float) -> None:
    """Do what the results lack and the time allows, in order.

    Args:
        jobs: In order of value.
        place: Where they run.
        results: Where their lines go.
        until: The time.monotonic() at which all has to be over.
    """
    results.add(about())
    for job in jobs:
        left = until - time.monotonic() - SPARE
        absent = [name for name in job.needs if not place.toy and getattr(place, name) is None]
        if (job.stage, job.name) in results.held():
            tell(job, "is in the file")
        elif absent:
            tell(job, f"needs --{absent[0].replace('_', '-')}")
        elif left < (estimate := 0.0 if place.toy and left > 0 else job.estimate):
            tell(job, f"left out: {max(0.0, left):.0f} s left, it takes {estimate:.0f}")
        else:
            line = do(job, place, left if place.toy else min(left, MOST[job.stage]))
            results.add(line)
            wrong = line["error"].strip().splitlines()[-1][:200] if "error" in line else "done"
            tell(job, f"{wrong} ({line['seconds']:.1f} s)")


def tell(job: Job, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {job.stage}: {job.name}: {text}", flush=True)


def chosen(options: argparse.Namespace) -> list[Job]:
    """The jobs asked for."""
    jobs = [job for job in all_jobs() if not options.only or job.stage in options.only]
    return [job for job in jobs if job.name in REHEARSED] if options.rehearse else jobs


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--minutes", type=float, default=12.0, help="for everything (12)")
    found.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("gpu.jsonl"), help="results"
    )
    found.add_argument(
        "--only", nargs="+", choices=list(MOST), metavar="STAGE", help="these stages"
    )
    found.add_argument("--list", action="store_true", help="say what there is, and do nothing")
    found.add_argument("--rehearse", action="store_true", help="every stage on the CPU, small")
    found.add_argument(
        "--table", type=Path, metavar="FILE", help="print the tables of these results"
    )
    found.add_argument("--data", metavar="CIFAR", help="a part of CIFAR-100")
    found.add_argument("--data-20k", metavar="CIFAR_20K", help="200 training images a class of it")
    found.add_argument("--weights", metavar="VIT_TI", help="a file")
    found.add_argument("--authors-checkout", type=Path, metavar="DIR", help="the authors' program")
    return found


def main(arguments: list[str] | None = None) -> None:
    start = time.monotonic()
    options = parser().parse_args(arguments)
    if options.table:
        print(tables(Results(options.table).lines()))
        return
    if options.list:
        for job in chosen(options):
            print(f"{job.stage:<9}{job.name:<32}{job.estimate:>4.0f} s")
        return
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --rehearse tries the stages on the CPU")
    given = {
        name: str(Path(value).resolve())
        for name in ("data", "data_20k", "weights")
        if (value := getattr(options, name)) is not None
    }
    device = "cpu" if options.rehearse else "cuda"
    if options.rehearse:
        torch.set_num_threads(1)  # several wait for each other on a busy machine
    with tempfile.TemporaryDirectory() as folder:
        place = Place(
            device, options.rehearse, Path(folder), checkout=options.authors_checkout, **given
        )
        work(chosen(options), place, Results(options.out), start + 60 * options.minutes)


if __name__ == "__main__":
    main()
