"""What benchmarks/gpu.py does: its jobs, the most wanted first, with their seconds on an H100."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_images import batches
from gpu_runs import RUN_BASE, RUN_TINY, Place, cuda_tests, missing_rows, whole_run
from kernels import count, profile_step
from measuring import PLAIN, SPARSE, Setting, Variant, build, measure
from torch.utils.flop_counter import FlopCounterMode

TINY, BASE = (f"vit_{size}_patch16_224" for size in ("tiny", "base"))
SECOND, LATER = replace(SPARSE, task=1), Variant("smope_plus", 25, 5, 1)
PLAIN_COMPILED = Variant("plain_compiled")
COMPILED = replace(SPARSE, variant="smope_compiled")
GRAPHS = replace(SPARSE, variant="smope_graphs_compiled")
CAST = replace(SPARSE, variant="smope_cast")
PLAIN_HELD = Variant("plain_held")
AUTHORS = replace(SPARSE, variant="authors")

# TFLOP/s by NVIDIA's data sheets, dense: bfloat16, TF32, and float32 without tensor cores
PEAKS = {
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 495, 67),  # SXM
    "H200": (989, 495, 67),
    "A100": (312, 156, 19.5),
}


@dataclass(frozen=True)
class Job:
    """One line of the results.

    estimate: seconds without which it is not begun. run: gives its rows, in no more than so many
    seconds. needs: fields of Place without which there is nothing to do.
    """

    stage: str
    name: str
    estimate: float
    run: Callable[[Place, float], list[dict[str, Any]]]
    needs: tuple[str, ...] = ()


def speed(
    setting: Setting, variants: Sequence[Variant], place: Place, seconds: float
) -> list[dict[str, Any]]:
    """The rows of variants that are measured in turns; see measuring.py for their ratios.

    Args:
        setting: What they have in common.
        variants: One a row, PLAIN and SPARSE among them.
        place: Where they are measured; the authors' program comes in where it is there.
        seconds: A quarter of them goes to rounds, the rest is for building and compiling.
    """
    setting, wanted = adapted(setting, place), wanted_variants(setting, variants, place)
    rounds = 0.0 if place.toy else min(8.0, seconds / 4)

    def rows(some: list[Variant]) -> list[dict[str, Any]]:
        torch.compiler.reset()  # else a graph of another batch would be made one for all batches
        look = functools.partial(looked_at, setting)
        return completed(measure(setting, some, rounds, place.checkout, look))

    try:
        return rows(wanted)
    except TimeoutError:
        raise
    except Exception:  # what is new here must not cost the numbers of what is not
        sure = [variant for variant in wanted if variant in (PLAIN, SPARSE, PLAIN_COMPILED)]
        if sure == wanted:
            raise
        failure = {"left_out": traceback.format_exc()}
        return [row | failure for row in rows(sure)]


def wanted_variants(setting: Setting, variants: Sequence[Variant], place: Place) -> list[Variant]:
    """The variants, with the authors' program where it is there."""
    again = replace(COMPILED, task=1)
    if place.toy:  # compiling it a second time would show nothing new
        return [variant for variant in variants if variant != again]
    own = place.checkout and setting.dtype == "float32" and setting.backbone == BASE
    if not own or PLAIN_COMPILED in variants:
        return list(variants)
    tasks = (0, 1) if setting.phase == "train" else (0,)
    return [*variants, *(replace(AUTHORS, task=task) for task in tasks)]


def adapted(setting: Setting, place: Place) -> Setting:
    if not place.toy:
        return replace(setting, device=place.device)
    small = {"backbone": TINY, "batch": 2, "image_size": 32, "steps": 1, "compiler": "aot_eager"}
    return replace(setting, device=place.device, **small)


def looked_at(setting: Setting, run: Callable[[], Any], variant: Variant) -> dict[str, Any]:
    """Kernels of a step, and its operations; those of a compiled one are its eager one's."""
    found: dict[str, Any] = {"kernels": None, "operations": None}
    try:
        found["kernels"] = count(run, setting.device)
        if not variant.variant.endswith("compiled"):
            with FlopCounterMode(display=False) as counter:
                run()
            found["operations"] = counter.get_total_flops()
    except TimeoutError:
        raise
    except Exception:  # a count must not cost the seconds
        found["not_counted"] = traceback.format_exc()
    return found


def completed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with images a second, the share of the card's peak, and compiled beside compiled."""
    eager = {(row["variant"], row["task"]): row["operations"] for row in rows}
    compiled = next(
        (row["ratio_to_plain"] for row in rows if row["variant"] == "plain_compiled"), None
    )
    for row in rows:
        row["images_per_second"] = row["batch"] / row["seconds"]
        if row["variant"].endswith("compiled"):
            name = row["variant"].removesuffix("_compiled").removesuffix("_graphs")
            task = row["task"]
            row["operations"] = eager.get((name, task)) or eager.get((name, 0))
            row["ratio_to_plain_compiled"] = row["ratio_to_plain"] / compiled if compiled else None
        row |= peak_of(row["dtype"])
        rate = row["operations"] / row["seconds"] / 1e12 if row["operations"] else None
        row["tflops"] = rate
        row["share_of_peak"] = rate / row["peak_tflops"] if rate and row["peak_tflops"] else None
    return rows


def peak_of(dtype: str) -> dict[str, Any]:
    """The card's peak for products as this process computes them; None for an unknown card.

    float32 is TF32 only if torch is set to it, which neither the trainer nor this benchmark does.
    """
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    half, reduced, full = next(
        (peaks for name, peaks in PEAKS.items() if name in card), (None,) * 3
    )
    if dtype in ("bfloat16", "float16"):
        return {"peak_of": "bfloat16, dense", "peak_tflops": half}
    if float32_precision() == "tf32":
        return {"peak_of": "TF32, dense", "peak_tflops": reduced}
    return {"peak_of": "float32, no tensor cores", "peak_tflops": full}


def float32_precision() -> str:
    """How a CUDA device computes float32 products here: tf32, or without tensor cores."""
    return getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")


def profiled(setting: Setting, place: Place, seconds: float) -> list[dict[str, Any]]:
    """A row for a step of SMoPE in its first and its second task, and one for plain."""
    setting = adapted(setting, place)
    rows = []
    for variant in (SPARSE, SECOND, PLAIN):
        run, _ = build(setting, variant)
        run()
        named = {"backbone": setting.backbone, "batch": setting.batch, "dtype": setting.dtype}
        sizes = {"variant": variant.variant, "task": variant.task}
        rows.append({**named, **sizes, **profile_step(run, setting.device)})
    return rows


def _speed(name: str, setting: Setting, variants: Sequence[Variant], estimate: float) -> Job:
    return Job("speed", name, estimate, functools.partial(speed, setting, variants))


def all_jobs() -> list[Job]:
    """In order of value: a machine that is there for minutes gives the most wanted numbers."""
    base, tiny = (
        Setting(BASE, 128, "cuda", "bfloat16", steps=4),
        Setting(TINY, 256, "cuda", "bfloat16", steps=6),
    )
    eager, later = [PLAIN, SPARSE], [PLAIN, SPARSE, SECOND, LATER]
    ways = [PLAIN_HELD, CAST]
    compiled = [PLAIN, SPARSE, PLAIN_COMPILED, COMPILED]
    found = [
        Job("tests", "on CUDA as on the CPU", 60, cuda_tests),
        _speed("ViT-B bfloat16 train", base, [*later, *ways], 40),
        _speed("ViT-B bfloat16 infer", replace(base, phase="infer"), [*eager, *ways], 20),
        Job("profile", "ViT-B bfloat16", 20, functools.partial(profiled, base)),
        _speed("ViT-B bfloat16 train compiled", base, [*compiled, replace(COMPILED, task=1)], 90),
        Job("run", "ViT-B, random weights", 45, functools.partial(whole_run, RUN_BASE), ("data",)),
        Job("run", "ViT-Ti", 45, functools.partial(whole_run, RUN_TINY), ("data", "weights")),
    ]
    found.append(Job("images", "batches of 128", 40, batches))
    graphs = [*compiled, GRAPHS]
    found += [
        _speed("ViT-Ti bfloat16 train CUDA graphs", tiny, graphs, 100),
        _speed("ViT-B bfloat16 train CUDA graphs", base, graphs, 110),
    ]
    rest = []
    for name, start in (
        ("ViT-Ti bfloat16", tiny),
        ("ViT-B float32", replace(base, dtype="float32", steps=2)),
    ):
        found.append(_speed(f"{name} train", start, [*later, *ways], 35))
        found.append(_speed(f"{name} infer", replace(start, phase="infer"), eager, 20))
    found.append(_speed("ViT-Ti bfloat16 train compiled", tiny, compiled, 80))
    found.append(
        _speed("ViT-B bfloat16 infer compiled", replace(base, phase="infer"), compiled, 70)
    )
    found.append(Job("accuracy", "missing rows", 100, missing_rows, ("data_20k", "weights")))
    full = replace(tiny, dtype="float32", steps=4)
    rest.append(_speed("ViT-Ti float32 train", full, later, 30))
    rest.append(_speed("ViT-Ti float32 infer", replace(full, phase="infer"), eager, 20))
    slow = replace(base, dtype="float32", steps=2)
    rest.append(_speed("ViT-B float32 train compiled", slow, compiled, 90))
    rest.append(_speed("ViT-Ti float32 train compiled", full, compiled, 80))
    return found + rest


REHEARSED = (
    "on CUDA as on the CPU",
    "ViT-B bfloat16 train",
    "ViT-B bfloat16 infer",
    "ViT-B bfloat16",
    "ViT-Ti",
    "batches of 128",
    "ViT-B bfloat16 train compiled",
    "ViT-Ti bfloat16 train CUDA graphs",
    "missing rows",
)
MOST = {
    "tests": 150.0,
    "speed": 180.0,
    "profile": 60.0,
    "run": 90.0,
    "images": 60.0,
    "accuracy": 420.0,
}
"""Seconds that a job of a stage may take at most."""
