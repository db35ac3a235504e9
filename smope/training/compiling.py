"""Running the backbone through torch.compile: whether, how, and what happens where that fails."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from typing import Any, NamedTuple

import torch
from torch import nn

from smope.errors import UserError
from smope.methods._shared.routed_method import RoutedMethod
from smope.methods.base import Method
from smope.training.settings import TrainerSettings

COMPILER = "inductor"
# Measured on an H100 in bfloat16 with 128 images or more (benchmarks/results/gpu.md): a compiled
# step of SMoPE takes 10 ms less with ViT-B, and 24 ms less with ViT-Ti. Its graphs are compiled in
# three minutes at most, which are paid back after 18,000 steps.
AUTO_BATCH = 128
AUTO_STEPS = 20_000

_log = logging.getLogger(__name__)


class Decision(NamedTuple):
    """What `trainer.compile` comes to.

    Attributes:
        compiled: whether the backbone is compiled.
        graphs: whether its kernels are launched as CUDA graphs.
        note: a line for the user; None where the setting says it already.
    """

    compiled: bool
    graphs: bool = False
    note: str | None = None


def decide(method: Method, settings: TrainerSettings, device: torch.device, steps: int) -> Decision:
    """Whether to compile, and how.

    Args:
        method: what is trained.
        settings: `compile`, `precision` and `batch_size`.
        device: where the method computes.
        steps: training steps of the whole run.

    Returns:
        The decision.

    Raises:
        UserError: the setting needs another device, or a compiler that is not installed.
    """
    if settings.compile == "auto":
        return _decide_alone(method, settings, device, steps)
    graphs = settings.compile == "graphs"
    if graphs and device.type != "cuda":
        raise UserError(
            f"trainer.compile=graphs needs a CUDA device, this is {device.type}; write "
            f"trainer.compile=true or false"
        )
    if settings.compile and (missing := _missing_compiler(device)):
        written = "graphs" if graphs else "true"
        raise UserError(f"trainer.compile={written} needs {missing}, or set it to false")
    return Decision(bool(settings.compile), graphs)


def _decide_alone(
    method: Method, settings: TrainerSettings, device: torch.device, steps: int
) -> Decision:
    """Compile only where that was measured to be faster, in runs that pay it back."""
    reasons = (
        (device.type != "cuda", f"no gain is measured on {device.type}"),
        (settings.precision != "bfloat16", "a gain is measured in bfloat16 alone"),
        (not isinstance(method, RoutedMethod), "a gain is measured for methods with experts alone"),
        (settings.batch_size < AUTO_BATCH, f"a gain is measured from {AUTO_BATCH} images a batch"),
        (steps < AUTO_STEPS, f"{steps:,} steps do not pay it back, {AUTO_STEPS:,} do"),
        (_missing_compiler(device) is not None, "no compiler is installed"),
    )
    reason = next((text for applies, text in reasons if applies), None)
    if reason is not None:
        return Decision(False, note=f"trainer.compile=auto: not compiled, {reason}")
    return Decision(True, note=f"trainer.compile=auto: compiled, since {steps:,} steps pay it back")


def _missing_compiler(device: torch.device) -> str | None:
    """What has to be installed first, and how; None if nothing."""
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        return "a C++ compiler, and none is installed; install g++"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton on a CUDA device; pip install triton"
    return None


def compile_as_set(
    method: Method, settings: TrainerSettings, device: torch.device, steps: int
) -> str | None:
    """Compile a method's backbone as decide() says; the arguments are its own.

    Returns:
        A line for the user; None where there is nothing to say.
    """
    decision = decide(method, settings, device, steps)
    if decision.compiled:
        compile_backbone(method.backbone, decision.graphs)
    return decision.note


def compile_backbone(
    backbone: nn.Module, graphs: bool = False, compiler: str | None = None
) -> None:
    """Run the backbone through torch.compile from now on.

    If compiling its forward pass fails, the log says so once and the backbone runs as it is. The
    backward pass is compiled later, in a training step: see RunningPhase.

    Args:
        backbone: changed in place.
        graphs: launch kernels as CUDA graphs. A graph writes into the same memory each time, so
            features are copied from there.
        compiler: a backend of torch.compile; None for COMPILER.
    """
    compiler = compiler or COMPILER
    mode = "reduce-overhead" if graphs and compiler == "inductor" else None
    compiled: Any = torch.compile(backbone._call_impl, backend=compiler, mode=mode)

    def call(*inputs: Any, **options: Any) -> Any:
        if mode:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            features = compiled(*inputs, **options)
        except _compiler_errors() as error:
            stop_compiling(backbone, error)
            return backbone(*inputs, **options)
        return features.clone() if mode else features

    # What Module.compile sets, and what Module.__call__ calls.
    backbone._compiled_call_impl = call


def is_compiled(backbone: nn.Module) -> bool:
    """Whether the backbone runs through torch.compile."""
    return backbone._compiled_call_impl is not None


def stop_compiling(backbone: nn.Module, error: BaseException) -> None:
    """Run the backbone as it is from now on, and say why in the log.

    Args:
        backbone: changed in place.
        error: of the compiler.
    """
    backbone._compiled_call_impl = None
    cause = getattr(error, "inner_exception", error)
    reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
    _log.warning("trainer.compile: compiling failed (%s); the run is not compiled", reason)


def _compiler_errors() -> tuple[type[BaseException], ...]:
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)
