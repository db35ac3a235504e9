"""Which device a run uses, and how the process is set up for it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smope.distributed import torchrun
from smope.errors import UserError
from smope.methods.base import Method
from smope.training.precision import hold_frozen
from smope.training.settings import TrainerSettings

COMPILER = "inductor"
# largest relative error at which a float32 product still counts as computed in float32; bfloat16
# gives 1e-3
EXACT = 1e-5
PROBES = ((32, 32), (256, 192), (640, 768))  # rows and width of the products that this is seen by


def resolve_device(name: str, key: str = "trainer.device") -> torch.device:
    """auto: the first CUDA device, else Apple's, else the CPU; of several processes on a machine
    each has a CUDA device of its own. UserError, naming `key`, for a device that this machine
    lacks.
    """
    if torchrun.world_size() > 1:
        return _device_of_process(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)  # the form of the name is checked with the configuration
    lacking = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if lacking:
        raise UserError(f"{key}={name}: this machine has no such device; use {key}=auto or cpu")
    return device


def _device_of_process(name: str) -> torch.device:
    """The device of one of the processes that torchrun started."""
    number, there = torchrun.local_rank(), torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and there == 0):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UserError(
            f"trainer.device={name}: each of {torchrun.world_size()} processes needs a device of "
            f"its own; write "
            "trainer.device=cuda or cpu"
        )
    if number >= there:
        raise UserError(
            f"trainer.device={name}: process {number} of this machine has no CUDA device, there "
            f"are {there}; start as "
            "many as there are (torchrun --nproc-per-node), or write trainer.device=cpu"
        )
    return torch.device("cuda", number)


def prepare_process(settings: TrainerSettings, device: torch.device) -> None:
    """Set torch's process-wide switches: repeatable kernels if asked for, and the faster float32
    products on a CPU.
    """
    if settings.precision == "float16" and device.type != "cuda":
        raise UserError(
            f"trainer.precision=float16 needs a CUDA device, this is {device.type}; use bfloat16 "
            f"or float32"
        )
    if settings.precision == "float64" and device.type == "mps":
        raise UserError(
            "trainer.precision=float64: mps has no float64; use float32, or trainer.device=cpu"
        )
    torch.use_deterministic_algorithms(settings.deterministic)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if device.type == "cpu":
        prefer_onednn()


def prepare_backbone(method: Method, settings: TrainerSettings, device: torch.device) -> None:
    """Hold a frozen backbone's weights in the precision of the step, compile it, or have it keep
    less for the backward pass, where the settings ask for it.

    UserError where nothing is there that could compile.
    """
    hold_frozen(method, settings.precision)
    method.backbone.recompute = settings.activation_checkpointing
    if not settings.compile:
        return
    if device.type == "cpu" and not any(
        map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))
    ):
        raise UserError(
            "trainer.compile=true needs a C++ compiler, and none is installed; install g++, or "
            "set it to false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            "trainer.compile=true needs triton on a CUDA device; pip install triton, or set it to "
            "false"
        )
    method.backbone.compile(backend=COMPILER)


def fetch(scalar: Tensor) -> Callable[[], float]:
    """Send for a scalar; what is returned waits for it, but not for what a CUDA device has been
    given to do since.
    """
    if scalar.device.type != "cuda":
        return scalar.item
    here = torch.empty((), dtype=scalar.dtype, pin_memory=True)
    here.copy_(scalar, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(scalar.device))

    def number() -> float:
        there.synchronize()
        return here.item()

    return number


def float32_products() -> str:
    """Which precision CPU products may be computed in: "bf16" means by oneDNN, checked to be in
    float32; see below.
    """
    return getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "ieee")


def prefer_onednn() -> bool:
    """Have oneDNN compute float32 matrix products where it does so in full precision; returns
    whether it now does.

    torch sends them to its BLAS unless reduced precision is allowed. Allowing it selects oneDNN,
    which on processors without bfloat16 matrix units still computes in float32, and on AMD ones
    twice as fast. Where a product comes out in reduced precision the switch is put back.
    """
    switch: Any = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    if switch is None or not _onednn_has_effect():
        return False
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    if _products_are_exact():
        return True
    switch.fp32_precision = before
    return False


def _products_are_exact() -> bool:
    """Small and large ones, single and in a batch: torch 2.11 reduces those in a batch, and single
    ones if large.
    """
    generator = torch.Generator().manual_seed(0)
    for rows, width in PROBES:
        left, right = torch.randn(2, 2, rows, width, generator=generator)
        exact = left.double() @ right.double().mT
        single = torch.stack(
            [torch.nn.functional.linear(a, b) for a, b in zip(left, right, strict=True)]
        )
        for product in (single, torch.bmm(left, right.mT)):
            if (product - exact).abs().max() > EXACT * exact.abs().max():
                return False
    return True


def _onednn_has_effect() -> bool:
    """torch listens to the switch on processors with AVX-512 (or Arm's bfloat16) only."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and supported()
