"""Which device a run uses, and how the process is set up for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from smope.distributed import torchrun
from smope.errors import UserError
from smope.methods.base import Method
from smope.training.device_presence import absent_device
from smope.training.precision import hold_frozen
from smope.training.settings import TrainerSettings

# Up to this relative error a product counts as computed in float32. bfloat16 gives 1e-3.
FLOAT32_TOLERANCE = 1e-5
PROBE_SHAPES = ((32, 32), (256, 192), (640, 768))  # rows and width of the products tried


def resolve_device(name: str, key: str = "trainer.device") -> torch.device:
    """The device of a name.

    Args:
        name: auto, cpu, cuda, cuda:N or mps. auto is the first CUDA device, else Apple's, else the
            CPU. Of several processes on a machine, each gets a CUDA device of its own.
        key: the setting that an error names.

    Returns:
        The device.

    Raises:
        UserError: this machine has no such device.
    """
    if torchrun.world_size() > 1:
        return _device_of_process(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)  # the form of the name is checked with the configuration
    if not _is_available(device):
        raise UserError(absent_device(name, key))
    return device


def _is_available(device: torch.device) -> bool:
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or torch.backends.mps.is_available()


def _device_of_process(name: str) -> torch.device:
    """The device of one of the processes that torchrun started."""
    number, available = torchrun.local_rank(), torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and available == 0):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UserError(
            f"trainer.device={name}: each of {torchrun.world_size()} processes needs a device of "
            f"its own; write trainer.device=cuda or cpu"
        )
    if number >= available:
        raise UserError(
            f"trainer.device={name}: process {number} of this machine has no CUDA device, there "
            f"are {available}; start as many as there are (torchrun --nproc-per-node), or write "
            f"trainer.device=cpu"
        )
    return torch.device("cuda", number)


def prepare_process(settings: TrainerSettings, device: torch.device) -> None:
    """Set torch's process-wide switches: repeatable kernels, and fast float32 products on a CPU.

    Args:
        settings: `precision` and `deterministic`.
        device: where the method will compute.

    Raises:
        UserError: the device does not have the precision.
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


def prepare_backbone(method: Method, settings: TrainerSettings) -> None:
    """Make a backbone as fast or as small as the settings say.

    Frozen weights are held in the precision of the step as well. The backbone keeps less for the
    backward pass if the settings say so.

    Args:
        method: its backbone is changed.
        settings: `precision` and `activation_checkpointing`.
    """
    hold_frozen(method, settings.precision)
    method.backbone.recompute = settings.activation_checkpointing


def free_memory(device: torch.device) -> float:
    """Free memory in bytes; infinite if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def fetch(scalar: Tensor) -> Callable[[], float]:
    """Start copying a scalar to the CPU.

    Returns:
        A function that waits for the copy, but not for later work of the device, and returns the
        number.
    """
    if scalar.device.type != "cuda":
        return scalar.item
    on_cpu = torch.empty((), dtype=scalar.dtype, pin_memory=True)
    on_cpu.copy_(scalar, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(scalar.device))

    def number() -> float:
        copied.synchronize()
        return on_cpu.item()

    return number


def device_name(device: torch.device) -> str:
    """The name of a CUDA device, and the kind of any other."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def float32_products() -> str:
    """What torch's switch for CPU products says. "bf16" means oneDNN, checked to be exact: see
    prefer_onednn().
    """
    return getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "ieee")


def prefer_onednn() -> bool:
    """Let oneDNN compute float32 matrix products if it does so in full precision.

    torch sends them to its BLAS unless reduced precision is allowed. Allowing it selects oneDNN.
    On processors without bfloat16 matrix units oneDNN still computes in float32, and on AMD
    processors it is twice as fast. If a product comes out in reduced precision, the switch is set
    back.

    Returns:
        Whether oneDNN is used.
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


@cache
def _products_are_exact() -> bool:
    """Whether products are exact, small and large, single and in a batch. Tried once a process.

    torch 2.11 reduces the precision of products in a batch, and of single ones that are large.
    """
    generator = torch.Generator().manual_seed(0)
    for rows, width in PROBE_SHAPES:
        left, right = torch.randn(2, 2, rows, width, generator=generator)
        exact = left.double() @ right.double().mT
        single = torch.stack(
            [torch.nn.functional.linear(a, b) for a, b in zip(left, right, strict=True)]
        )
        for product in (single, torch.bmm(left, right.mT)):
            if (product - exact).abs().max() > FLOAT32_TOLERANCE * exact.abs().max():
                return False
    return True


def _onednn_has_effect() -> bool:
    """torch listens to the switch on processors with AVX-512 (or Arm's bfloat16) only."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and supported()


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
