"""What a step launches: kernels by kind, the dearest of them, and how long the device waits."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# The first that matches a kernel's name, or the operator that launched it, is its kind.
KINDS = {
    "copies and casts": r"copy_kernel|aten::(_to_copy|copy_|to|clone|contiguous)$|[Mm]emcpy",
    "attention": r"flash|fmha|attention|sdpa",
    "convolutions": r"conv|cudnn|fprop|dgrad|wgrad",
    "matrix products": r"gemm|cutlass|cublas|nvjet|xmma|splitK|aten::(b?add)?(b?mm)$|linear|matmul",
    "norms": r"layer_?norm|GammaBeta",
    "softmax": r"[Ss]oft[Mm]ax",
    "optimizer": r"[Aa]dam|multi_tensor",
    "compiled": r"^triton_",
    "choosing": r"topk|TopK|[Ss]ort|gather|scatter|index",
    "sums": r"reduce|aten::(sum|mean)$",
    "fills": r"[Mm]emset|[Ff]ill",
    "elementwise": r"elementwise|vectorized|gelu",
}
CASTS = {"aten::_to_copy", "aten::copy_"}
ON_DEVICE = {"cuda": {"kernel", "gpu_memcpy", "gpu_memset"}, "cpu": {"cpu_op"}}


@dataclass(frozen=True)
class Kernel:
    """One that ran: operator launched it, start and seconds say when and how long."""

    name: str
    operator: str
    start: float
    seconds: float

    @property
    def is_copy(self) -> bool:
        """Whether it copies, most often into another precision."""
        return self.operator in CASTS or "copy_kernel" in self.name

    @property
    def kind(self) -> str:
        if self.is_copy:
            return "copies and casts"
        return next((kind for kind, words in KINDS.items() if re.search(words, self.name)), "other")


def traced(run: Callable[[], Any], device: str, steps: int = 1) -> list[Kernel]:
    """The kernels of some steps, in the order in which they began.

    Args:
        run: A step.
        device: "cuda", or "cpu", where operators (those within others too) stand for kernels.
        steps: How many are taken.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        for _ in range(steps):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return _kernels(events, device)


def _kernels(events: Sequence[dict[str, Any]], device: str) -> list[Kernel]:
    """Of a trace: operators and what they launched have the same "External id"."""
    operators = {
        event["args"]["External id"]: event["name"]
        for event in events
        if event.get("cat") == "cpu_op" and "External id" in event.get("args", {})
    }

    def operator(event: dict[str, Any]) -> str:
        return operators.get(event.get("args", {}).get("External id"), "")

    kernels = [
        Kernel(event["name"], operator(event), event["ts"] / 1e6, event["dur"] / 1e6)
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ON_DEVICE[device]
    ]
    return sorted(kernels, key=lambda kernel: kernel.start)


def count(run: Callable[[], Any], device: str) -> int:
    """Kernels of a step, copies and fills of memory among them."""
    return len(traced(run, device))


def busy(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one kernel ran."""
    total, until = 0.0, float("-inf")
    for kernel in kernels:
        stop = kernel.start + kernel.seconds
        total += max(0.0, stop - max(kernel.start, until))
        until = max(until, stop)
    return total


def profile_step(run: Callable[[], Any], device: str, steps: int = 3) -> dict[str, Any]:
    """A step's kernels by kind, the ten dearest, and the share of time in which the device waits.

    That share is told from steps that nobody watches: a profiler slows launches, not kernels.

    Args:
        run: A step.
        device: "cuda" or "cpu".
        steps: That are looked at; three times as many are timed.
    """
    traced(run, device)  # the first one also sets the profiler up
    seconds = _seconds(run, device, 3 * steps)
    kernels = traced(run, device, steps)
    total = sum(kernel.seconds for kernel in kernels) or 1.0
    working = busy(kernels) / steps
    return {
        "seconds": seconds,
        "busy_seconds": working,
        "idle_share": max(0.0, 1 - working / seconds),
        "kernels": len(kernels) / steps,
        "casts": sum(kernel.is_copy for kernel in kernels) / steps,
        "kinds": _grouped([(kernel.kind, kernel.seconds) for kernel in kernels], total, steps),
        "dearest": _grouped([(kernel.name, kernel.seconds) for kernel in kernels], total, steps)[
            :10
        ],
    }


def _grouped(pairs: Sequence[tuple[str, float]], total: float, steps: int) -> list[dict[str, Any]]:
    """By name, the dearest first: count and seconds a step, and the share of all seconds."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, seconds in pairs:
        found[name].append(seconds)
    rows = [
        {
            "name": name,
            "count": len(each) / steps,
            "seconds": sum(each) / steps,
            "share": sum(each) / total,
        }
        for name, each in found.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def _seconds(run: Callable[[], Any], device: str, steps: int) -> float:
    """Of a step, one after the other as in training."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps
