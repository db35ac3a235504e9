"""What routing costs: alone, by the number of experts, chosen experts and tokens; and in a step.

    python benchmarks/routing.py --out benchmarks/results/routing_cost.md
    python benchmarks/routing.py --only steps --batch 8 --seconds 200

Routing alone is the pooled query, the choice, and the backward pass of the weights, for 32 images
and 3 heads of width 64 (ViT-Ti). All routers take turns; seconds are medians. The exponent in E, K
or N is the slope between the logarithms at two sizes, large ones, where the fixed cost of a call
weighs least: 1 means that time grows as fast as the size, 0 that it does not grow.

A step of each is timed as in speed.py, between two steps of adaptive_noise, and given as a ratio to
the plain frozen ViT.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measuring import PLAIN, SPARSE, Setting, measure, router_of
from scale import exponent

from smope.config.conf_files import choices, conf_dir
from smope.routers.base import ExpertState
from smope.training.device import prefer_onednn

IMAGES, HEADS, WIDTH = 32, 3, 64
ROUTERS = choices("router", [conf_dir()])


@dataclass(frozen=True)
class Size:
    """E experts of a head, K chosen, N tokens of an image."""

    experts: int = 25
    chosen: int = 5
    tokens: int = 197


SIZES = {
    "experts": (400, 1600),
    "chosen": (5, 25),
    "tokens": (197, 785),
}


def routing(name: str, size: Size) -> Callable[[], None]:
    """The choice of experts and its backward pass, ready to be called again and again."""
    router = router_of(name, size.chosen)
    router.build(HEADS, size.experts, WIDTH)
    router.train()
    queries = torch.randn(IMAGES, HEADS, size.tokens, WIDTH)
    keys = torch.rand(HEADS, size.experts, WIDTH, requires_grad=True)
    counts = torch.randint(0, 9, (HEADS, size.experts))
    state = ExpertState(counts, counts > 4)

    def run() -> None:
        keys.grad = None
        query = queries if router.reads_tokens else queries.mean(2)
        weights = router(query, keys, state).weights
        weights.clamp(min=-1e9).sum().backward()  # minus infinity: not chosen

    return run


def seconds(size: Size, rounds: int) -> dict[str, float]:
    """Of each router, the median over rounds in which they take turns."""
    runs = {name: routing(name, size) for name in ROUTERS}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def alone(rounds: int) -> list[str]:
    """The table of routing by itself: microseconds at the default size, and exponents."""
    default = seconds(Size(), rounds)
    fits = {}
    for key, values in SIZES.items():
        found = [seconds(replace(Size(), **{key: value}), rounds) for value in values]
        fits[key] = {
            name: exponent(list(values), [times[name] for times in found]) for name in ROUTERS
        }
    lines = [
        "| router | time / adaptive_noise | exponent in E | in K | in N |",
        "|---|---|---|---|---|",
    ]
    for name in ROUTERS:
        slopes = " | ".join(f"{fits[key][name]:.2f}" for key in SIZES)
        lines.append(f"| {name} | {default[name] / default['adaptive_noise']:.2f} | {slopes} |")
        print(lines[-1], flush=True)
    return lines


def steps(batch: int, limit: float) -> list[str]:
    """The table of whole steps, training and inference, as ratios to the plain ViT."""
    names = [name for name in ROUTERS if name != "adaptive_noise"]
    variants = [PLAIN, SPARSE, *(replace(SPARSE, router=name) for name in names)]
    found: dict[str, list[float]] = {}
    for phase in ("train", "infer"):
        setting = Setting("vit_tiny_patch16_224", batch, phase=phase)
        for row in measure(setting, variants, limit):
            if row["variant"] != "plain":
                found.setdefault(row["router"], []).append(row["ratio_to_plain"])
    lines = ["| router | training step / plain | inference / plain |", "|---|---|---|"]
    for name, (train, infer) in sorted(found.items()):
        lines.append(f"| {name} | {train:.3f} | {infer:.3f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=["alone", "steps"], help="one of the two tables")
    parser.add_argument("--rounds", type=int, default=30, help="of routing alone, at each size")
    parser.add_argument("--batch", type=int, default=32, help="images of a whole step")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each phase of whole steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="write a Markdown file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    prefer_onednn()
    tables = [] if options.only == "steps" else [*alone(options.rounds), ""]
    if options.only != "alone":
        tables += steps(options.batch, options.seconds)
    if options.out:
        command = " ".join(["python benchmarks/routing.py", *sys.argv[1:]])
        head = f"`{command}`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
        head += f"{options.threads} thread of a CPU that other work shared."
        options.out.write_text("\n".join(["# What routing costs", "", head, "", *tables, ""]))


if __name__ == "__main__":
    main()
