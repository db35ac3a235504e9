"""One step of a variant, timed in turns with the others, and the memory that it takes; see
speed.py.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from authors_program import AuthorsProgram

from smope.backbones.held import hold_frozen_weights
from smope.backbones.vit import load_backbone
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.methods.smope_plus import SMoPEPlus
from smope.metrics.cost import saved_bytes
from smope.routers.base import Router
from smope.run.build import make_router
from smope.training.compiling import compile_backbone
from smope.training.device import prefer_onednn
from smope.training.phase import make_optimizer
from smope.training.precision import AUTOCAST_DTYPES, autocast

CLASSES = 100
WIDTH_AND_HEADS = {"vit_tiny_patch16_224": (192, 3), "vit_base_patch16_224": (768, 12)}


@dataclass(frozen=True)
class Setting:
    """What a group of variants that are measured in turns has in common.

    steps: taken one after the other between two looks at the clock, for which a GPU is waited for.
    compiler: of the variants that are compiled.
    """

    backbone: str
    batch: int
    device: str = "cpu"
    dtype: str = "float32"
    phase: Literal["train", "infer"] = "train"
    image_size: int = 224
    steps: int = 1
    compiler: str = "inductor"


@dataclass(frozen=True)
class Variant:
    """plain, plain_torch_default, plain_compiled, smope, dense, smope_compiled,
    smope_graphs_compiled (CUDA graphs), smope_recompute, smope_plus (what it does with images of
    later tasks: one pass, and no step) or authors."""

    variant: str
    num_experts: int | None = None
    top_k: int | None = None
    task: int | None = None
    router: str = "adaptive_noise"


PLAIN, DEFAULT = Variant("plain"), Variant("plain_torch_default")
SPARSE = Variant("smope", 25, 5, 0)
TORCH_DEFAULT = ("plain_torch_default", "authors")


def build(
    setting: Setting, variant: Variant, checkout: Path | None = None
) -> tuple[Callable[[], Any], nn.Module]:
    """One step of `variant`, ready to be called again and again, and the module it runs."""
    images = torch.rand(
        setting.batch, 3, setting.image_size, setting.image_size, device=setting.device
    )
    labels = torch.arange(setting.batch, device=setting.device) % 10 + 10 * (variant.task or 0)
    if variant.variant.startswith("plain"):
        vit = timm.create_model(setting.backbone, num_classes=0, img_size=setting.image_size).eval()
        _share_weights(vit.requires_grad_(False).to(setting.device), setting)
        if variant.variant == "plain_held" and setting.dtype in AUTOCAST_DTYPES:
            hold_frozen_weights(vit, AUTOCAST_DTYPES[setting.dtype])
        if variant.variant == "plain_compiled":
            vit.compile(backend=setting.compiler)
        return _plain(vit, images, setting), vit
    if variant.variant == "authors":
        assert checkout and variant.num_experts and variant.top_k and variant.task is not None
        width, heads = WIDTH_AND_HEADS[setting.backbone]
        sizes = {"num_experts": variant.num_experts, "top_k": variant.top_k, "task": variant.task}
        program = AuthorsProgram(checkout, width=width, heads=heads, **sizes).to(setting.device)
        return (
            program.step(images, labels) if setting.phase == "train" else program.inference(images)
        ), program
    method = _method(setting, variant)
    return _smope(method, images, labels, setting, variant), method


_weights: dict[tuple[str, int, str], dict[str, Tensor]] = {}


def _share_weights(vit: nn.Module, setting: Setting) -> None:
    """One copy of the frozen weights for all variants: another one for each would push the others
    out of memory.
    """
    known = _weights.setdefault(
        (setting.backbone, setting.image_size, setting.device), vit.state_dict()
    )
    vit.load_state_dict(known, assign=True)


def _plain(vit: nn.Module, images: Tensor, setting: Setting) -> Callable[[], Any]:
    def train() -> None:
        leaf = images.detach().requires_grad_()
        with autocast(setting.dtype, torch.device(setting.device)):
            features = vit(leaf)
        features.float().sum().backward()

    def infer() -> None:
        with torch.no_grad(), autocast(setting.dtype, torch.device(setting.device)):
            vit(images)

    return train if setting.phase == "train" else infer


def router_of(name: str, top_k: int) -> Router:
    """The router of conf/router/<name>.yaml with K = `top_k`."""
    return make_router(compose(read_overrides([f"router={name}", f"router.top_k={top_k}"])).router)


def _method(setting: Setting, variant: Variant) -> SMoPE:
    torch.manual_seed(0)
    backbone = load_backbone(setting.backbone, "random", "none", image_size=setting.image_size).to(
        setting.device
    )
    _share_weights(backbone.vit, setting)
    router = router_of(variant.router, variant.top_k or 5)
    kind = SMoPEPlus if variant.variant == "smope_plus" else SMoPE
    method = kind(backbone, CLASSES, router, num_experts=variant.num_experts or 25).to(
        setting.device
    )
    method.dense = variant.variant == "dense"
    backbone.recompute = variant.variant == "smope_recompute"
    if variant.variant != "smope_cast" and setting.dtype in AUTOCAST_DTYPES:
        backbone.hold(AUTOCAST_DTYPES[setting.dtype])
    if variant.variant.endswith("compiled"):
        compile_backbone(backbone, "graphs" in variant.variant, setting.compiler)
    for bank in method.experts:
        # as after a task: about half of the experts are used more than the mean
        bank.counts.random_(9)
    if variant.task:
        method.begin_task(TaskSpan(variant.task, 10 * variant.task, 10 * variant.task + 10))
    return method.train(setting.phase == "train")


def _smope(
    method: SMoPE, images: Tensor, labels: Tensor, setting: Setting, variant: Variant
) -> Callable[[], Any]:
    span = TaskSpan(variant.task or 0, 10 * (variant.task or 0), 10 * (variant.task or 0) + 10)
    optimizer = make_optimizer(method.parameter_groups(5e-3), 0.0)

    def train() -> None:
        with autocast(setting.dtype, torch.device(setting.device)):
            loss = torch.stack(list(method.losses(images, labels, span).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def infer() -> None:
        with torch.no_grad(), autocast(setting.dtype, torch.device(setting.device)):
            method(images)

    def look() -> None:
        with torch.no_grad(), autocast(setting.dtype, torch.device(setting.device)):
            method.features(images)

    if variant.variant == "smope_plus":
        method.eval()
        return look
    return train if setting.phase == "train" else infer


@contextmanager
def torch_default_products() -> Iterator[None]:
    """The matrix products of a process that has not called prefer_onednn."""
    switch: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(switch, "fp32_precision", None)
    if before is not None:
        switch.fp32_precision = "ieee"
    yield
    if before is not None:
        switch.fp32_precision = before


def timed(run: Callable[[], Any], setting: Setting) -> float:
    """Seconds of a step, the mean of `setting.steps` of them."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(setting.steps):
        run()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / setting.steps


def measure(
    setting: Setting,
    variants: list[Variant],
    seconds: float,
    checkout: Path | None = None,
    look: Callable[[Callable[[], Any], Variant], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Rows of variants that are measured in turns with SPARSE.

    Args:
        setting: What they have in common.
        variants: One a row, SPARSE and PLAIN among them.
        seconds: For all rounds together; at least three are taken.
        checkout: Of the authors' program, where that is a variant.
        look: Gives more columns of a variant's row, from its step.
    """
    built = {variant: build(setting, variant, checkout) for variant in variants}
    kept = {variant: _first_call(*built[variant], setting, variant) for variant in variants}
    peaks = {variant: _cuda_peak(built[variant][0], setting) for variant in variants}
    more = {variant: look(built[variant][0], variant) if look else {} for variant in variants}
    runs = {variant: run for variant, (run, _) in built.items()}
    rounds = list[Round]()
    start = time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() - start < seconds * len(rounds) / (
        len(rounds) + 1
    ):
        before = rounds[-1][SPARSE][1] if rounds else timed(runs[SPARSE], setting)
        rounds.append(_round(runs, len(rounds), setting, before))
    return [_row(setting, variant, rounds, kept, peaks) | more[variant] for variant in variants]


Round = dict[Variant, tuple[float, float]]
"""Seconds of a step, and of the steps of SPARSE beside it."""


def _round(
    runs: dict[Variant, Callable[[], Any]], number: int, setting: Setting, before: float
) -> Round:
    """Each variant once, between two steps of SPARSE: what slows the machine down for a while slows
    both.

    before: seconds of the step of SPARSE just taken.
    """
    others = [variant for variant in runs if variant != SPARSE]
    turn = number % len(others)
    found: Round = {}
    first = before
    for variant in others[turn:] + others[:turn]:
        with torch_default_products() if variant.variant in TORCH_DEFAULT else nullcontext():
            own = timed(runs[variant], setting)
        after = timed(runs[SPARSE], setting)
        found[variant] = own, (before + after) / 2
        before = after
    found[SPARSE] = first, before
    return found


def _first_call(
    run: Callable[[], Any], module: nn.Module, setting: Setting, variant: Variant
) -> int | None:
    """Warms up; the bytes that it keeps, where the autograd hooks see them (a compiled graph keeps
    them itself).
    """
    if setting.phase == "infer" or variant.variant.endswith("compiled"):
        run()
        backbone = getattr(module, "backbone", module)
        if variant.variant.endswith("compiled") and backbone._compiled_call_impl is None:
            raise RuntimeError("compiling failed, and what ran was not compiled")
        return None
    return saved_bytes(run, module)


def _cuda_peak(run: Callable[[], Any], setting: Setting) -> int | None:
    if setting.device != "cuda":
        return None
    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _row(
    setting: Setting,
    variant: Variant,
    rounds: list[Round],
    kept: dict[Variant, int | None],
    peaks: dict[Variant, int | None],
) -> dict[str, Any]:
    def against_plain(sizes: dict[Variant, int | None]) -> float | None:
        size, plain = sizes[variant], sizes[PLAIN]
        return size / plain if size is not None and plain else None

    def fastest(which: Variant) -> float:
        return min(found[which][0] for found in rounds)

    plain = statistics.median(own / beside for own, beside in (found[PLAIN] for found in rounds))
    ratios = [own / beside for own, beside in (found[variant] for found in rounds)]
    to_smope = 1.0 if variant == SPARSE else statistics.median(ratios)
    return {
        **asdict(setting),
        **asdict(variant),
        "ratio_to_plain": to_smope / plain,
        "peak_bytes": peaks[variant],
        "peak_memory_ratio": against_plain(peaks),
        "saved_bytes_ratio": against_plain(kept),
        "ratio_to_smope": to_smope,
        "ratio_error": _error(ratios) / plain,
        "seconds": statistics.median(found[variant][0] for found in rounds),
        "rounds": len(rounds),
        "lowest_ratio": min(ratios) / plain,
        "highest_ratio": max(ratios) / plain,
        "fastest_ratio": fastest(variant) / fastest(PLAIN),
    }


def _error(ratios: list[float]) -> float:
    """Standard error of their median from their middle half; in normal noise 1.25 s / sqrt(n) with
    s = IQR / 1.35.
    """
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return 1.25 * (high - low) / 1.35 / math.sqrt(len(ratios))


@functools.cache
def resident_peak(setting: Setting, variant: Variant) -> int:
    """Bytes by which a fresh process grows over its models while it takes two steps (Linux)."""
    asked = json.dumps([asdict(setting), asdict(variant)])
    command = [sys.executable, __file__, asked, str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _resident_peak_here(setting: Setting, variant: Variant) -> int:
    run, _ = build(setting, variant)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    run()
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)
    )
    return 1024 * int(line.split()[1])


def add_resident_peaks(rows: list[dict[str, Any]], setting: Setting) -> None:
    """Fills in peak_memory_ratio of smope's first task."""
    if (
        setting.device == "cpu"
        and setting.phase == "train"
        and Path("/proc/self/clear_refs").exists()
    ):
        ratio = resident_peak(setting, SPARSE) / resident_peak(setting, PLAIN)
        for row in rows:
            which = Variant(*(row[field] for field in Variant.__dataclass_fields__))
            row["peak_memory_ratio"] = {SPARSE: ratio, PLAIN: 1.0}.get(
                which, row["peak_memory_ratio"]
            )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    prefer_onednn()
    asked_setting, asked_variant = json.loads(sys.argv[1])
    print(_resident_peak_here(Setting(**asked_setting), Variant(**asked_variant)))
