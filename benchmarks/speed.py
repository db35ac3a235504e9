"""What a step of SMoPE costs beside the plain frozen ViT: seconds and bytes, in one process.

    python benchmarks/speed.py                     # the figures with a goal: at most 8 minutes
    python benchmarks/speed.py --full --plot FILE  # also other experts, batches, ViTs, precisions

plain: timm's ViT, frozen. A training step is a forward pass, and a backward pass to the images.
smope: A training step is the losses of the method, their backward pass, and the optimizer's step.

Each measured step stands between two steps of smope with 25 experts, 5 chosen, in the first task.
Its ratio to smope is the median over rounds of its seconds / the mean seconds of those two. Its
ratio to plain is that / plain's own ratio to smope. The error, lowest and highest value belong to
the ratio to smope, in units of plain's. For smope itself they compare the first and last step of a
round: they show how noisy the machine is.

The prototype loss, which begins with the second task, costs the same whatever the batch. It is
measured with a quarter of the images, because short steps show it best and more of them fit into
the time.

Matrix products on a CPU are computed as training does (smope.training.device), also for plain.
plain_torch_default and the authors' code use torch's own way, as they do by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measuring import DEFAULT, PLAIN, SPARSE, Setting, Variant, add_resident_peaks, measure
from speed_plot import draw

from smope.training.device import prefer_onednn
from smope.training.precision import AUTOCAST_DTYPES

TINY, SMALL, BASE = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))
SECOND, MANY, DENSE = (
    replace(SPARSE, task=1),
    replace(SPARSE, num_experts=2500),
    replace(SPARSE, variant="dense"),
)
AUTHORS = replace(SPARSE, variant="authors")
# time / plain, training and inference
LIMITS = {
    (BASE, 8): 0.97,
    (TINY, 32): 1.05,
    (BASE, 128): 1.02,
}

FIRST_STEP = """
import os
from smope.cli.main import main
from smope.methods.smope import SMoPE
losses, calls = SMoPE.losses, []
def count(*arguments):
    calls.append(1)
    return losses(*arguments) if len(calls) == 1 else os._exit(0)
SMoPE.losses = count
main(["train", "run_dir=" + os.environ["DIRECTORY"]])
"""


def start_up(directory: Path) -> list[dict[str, Any]]:
    """Rows of phase start_up: seconds to the end of the command, or of the demo's first training
    step.
    """
    keys = (
        *Setting.__dataclass_fields__,
        *Variant.__dataclass_fields__,
        "ratio_to_plain",
        "peak_memory_ratio",
    )
    rows = []
    for name, arguments in {
        "smope --help": ["-m", "smope", "--help"],
        "demo": ["-c", FIRST_STEP],
    }.items():
        seconds = []
        for attempt in range(3):
            environment = {**os.environ, "DIRECTORY": str(directory / str(attempt))}
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], check=True, capture_output=True, env=environment
            )
            seconds.append(time.perf_counter() - start)
        row = {**dict.fromkeys(keys), "phase": "start_up", "variant": name}
        rows.append({**row, "seconds": statistics.median(seconds), "rounds": 3})
    return rows


Group = tuple[Setting, list[Variant]]


def goal_groups(devices: list[str], checkout: Path | None) -> Iterator[Group]:
    """What has a goal, in the settings that the goals name."""
    on_cpu = [Setting(BASE, 8), Setting(TINY, 32)]
    on_cuda = [Setting(BASE, 128, "cuda", dtype) for dtype in ("float32", "bfloat16")]
    for setting in (on_cpu if "cpu" in devices else []) + (on_cuda if "cuda" in devices else []):
        authors = [AUTHORS] if checkout and setting.dtype == "float32" else []
        yield setting, [PLAIN, SPARSE, MANY, *authors, *(replace(a, task=1) for a in authors)]
        yield replace(setting, phase="infer"), [PLAIN, SPARSE, *authors]
        yield replace(setting, batch=max(1, setting.batch // 4)), [PLAIN, SPARSE, SECOND]


def other_groups(devices: list[str]) -> Iterator[Group]:
    """Numbers of experts and chosen experts, ways to run, batches, ViTs and precisions."""
    for device in devices:
        setting = Setting(TINY, 32, device)
        experts = [replace(SPARSE, num_experts=number) for number in (10, 100, 250, 1000, 2500)]
        yield setting, [PLAIN, SPARSE, *experts, *(replace(v, task=1) for v in (SPARSE, *experts))]
        default = [DEFAULT] if device == "cpu" else []
        yield replace(setting, phase="infer"), [PLAIN, SPARSE, *experts, *default]
        ways = [replace(SPARSE, variant=f"smope_{way}") for way in ("compiled", "recompute")]
        yield (
            setting,
            [PLAIN, SPARSE, DENSE, *(replace(SPARSE, top_k=k) for k in (1, 10, 25)), *ways],
        )
        sizes = [
            (TINY, 1),
            (TINY, 8),
            (TINY, 64),
            (SMALL, 16),
            (BASE, 1),
            *([(BASE, 64)] if device == "cuda" else []),
        ]
        for backbone, batch in sizes:
            for phase in ("train", "infer"):
                yield Setting(backbone, batch, device, phase=phase), [PLAIN, SPARSE, DENSE]
        # A CPU that does not compute in bfloat16 takes twenty times as long, as a few images tell
        # too.
        halves = (
            [(dtype, 32) for dtype in AUTOCAST_DTYPES] if device == "cuda" else [("bfloat16", 4)]
        )
        for dtype, batch in halves:
            for phase in ("train", "infer"):
                yield replace(setting, dtype=dtype, batch=batch, phase=phase), [PLAIN, SPARSE]


def goals(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """Name, value and the limit that it should stay under, for each goal that `rows` can tell."""
    for row in rows:
        where = f"{row['backbone']}, batch {row['batch']}, {row['device']}, {row['dtype']}"
        variant, which = row["variant"], (row["variant"], row["num_experts"], row["task"])
        if row["phase"] == "start_up":
            yield f"{variant}, seconds", row["seconds"], 1.0 if variant == "smope --help" else 15.0
        elif which == ("smope", 25, 1):
            yield f"{where}: step with the prototype loss / without", row["ratio_to_smope"], 1.02
        elif (row["backbone"], row["batch"]) not in LIMITS:
            continue
        elif row["phase"] == "infer" and which == ("smope", 25, 0):
            yield (
                f"{where}: inference / plain",
                row["ratio_to_plain"],
                LIMITS[row["backbone"], row["batch"]],
            )
        elif which == ("smope", 25, 0):
            yield (
                f"{where}: training step / plain",
                row["ratio_to_plain"],
                LIMITS[row["backbone"], row["batch"]],
            )
            yield f"{where}: bytes kept for backward / plain", row["saved_bytes_ratio"], 1.05
            if row["peak_memory_ratio"] is not None:
                yield f"{where}: peak memory of a step / plain", row["peak_memory_ratio"], 1.05
        elif which == ("smope", 2500, 0):
            yield f"{where}: 2,500 experts / 25", row["ratio_to_smope"], 1.05
        elif variant == "authors" and row["phase"] == "train":
            yield (
                f"{where}: task {row['task']}, step / authors' program",
                1 / row["ratio_to_smope"],
                1 / 1.5,
            )


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{os.cpu_count()} x {models[0] if models else platform.processor()}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    return {"cpu": cpu, "gpu": gpu, "threads": torch.get_num_threads(), **versions}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="also what has no goal")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw time by the number of experts (.svg or .png)",
    )
    parser.add_argument(
        "--authors-checkout", type=Path, metavar="DIR", help="a checkout of the authors' program"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument(
        "--devices",
        nargs="+",
        choices=there,
        default=there,
        help="where to measure (all there are)",
    )
    parser.add_argument(
        "--seconds", type=float, default=65.0, help="for a group with ViT-B; less for the others"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    prefer_onednn()
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items() if value))
    with tempfile.TemporaryDirectory() as directory:
        rows = start_up(Path(directory))
    rows += measured(goal_groups(options.devices, options.authors_checkout), options)
    told = list(goals(rows))
    if options.full:
        rows += measured(other_groups(options.devices), options)
    for name, value, limit in told:
        print(f"{'ok  ' if value <= limit else 'OVER'} {name}: {value:.3f} (goal {limit:.2f})")
    if options.json:
        options.json.write_text(json.dumps([{**row, **about} for row in rows], indent=1) + "\n")
    if options.plot:
        draw(rows, options.plot)


def measured(groups: Iterator[Group], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all groups, printed as they come."""
    rows: list[dict[str, Any]] = []
    for setting, variants in groups:
        share = {"train": 1.0, "infer": 0.6}[setting.phase] if setting.backbone == BASE else 0.4
        seconds = share * options.seconds
        found = measure(setting, variants, seconds, options.authors_checkout)
        if (setting.backbone, setting.batch) in LIMITS:
            add_resident_peaks(found, setting)
        rows += found
        print(*(describe(row) for row in found), sep="\n", flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    sizes = (
        ""
        if row["num_experts"] is None
        else f" E={row['num_experts']} K={row['top_k']} task {row['task']}"
    )
    ratios = "".join(
        f", {name} {row[key]:.3f}"
        for name, key in (("kept", "saved_bytes_ratio"), ("peak", "peak_memory_ratio"))
        if row[key] is not None
    )
    setting = (
        f"{row['backbone']} batch {row['batch']} {row['device']} {row['dtype']} {row['phase']}"
    )
    spread = f"{row['ratio_to_plain']:.3f} ± {row['ratio_error']:.3f} of plain, "
    spread += f"{row['ratio_to_smope']:.3f} of smope ("
    spread += f"{row['lowest_ratio']:.2f} to {row['highest_ratio']:.2f} in {row['rounds']} rounds; "
    spread += f"fastest/fastest {row['fastest_ratio']:.3f})"
    return f"{setting}: {row['variant']}{sizes} {row['seconds']:.3f} s, {spread}{ratios}"


if __name__ == "__main__":
    main()
