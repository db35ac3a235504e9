"""Floating-point operations of one image, counted in two ways and without computing them.

torch             as torch.utils.flop_counter has it: every matrix product and convolution,
                  attention's included, a
                  multiply-add being two operations. Training is a forward and a backward pass.
                  Nothing elementwise counts (softmax, norms, the choice of experts).
paper_convention  what papers on prompt tuning print, by calflops: one forward pass, in training
                  too, in which linear
                  and convolution layers count 2 a multiply-add, LayerNorm 5 an element and an
                  activation 1. Products that are written with @ are not seen, attention's own two
                  among them. One pass through a ViT-B/16 at 224 pixels is 33.72 GFLOPs (33.69 of
                  them in linear and convolution layers).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from smope.backbones.attention import always_in_products
from smope.experts.inject import detach
from smope.methods.base import Method, Phase, TaskSpan

LAYER_NORM, ACTIVATION = 5, 1  # operations an element, as calflops has them

Gflops = dict[str, float]
"""{"torch": ..., "paper_convention": ...} of one image."""


def count_flops(method: Method, task: TaskSpan) -> dict[str, Any]:
    """GFLOPs of one image of `task`, as `Gflops` each.

    train_gflops, infer_gflops: as the method runs; training is a step of its last phase, 0 where it
    takes none (see
                                count_phases for all).
    without_cls_saving:         both, would the last block compute all rows as timm's does.
    cls_saving:                 how much less it is as the method runs.
    beyond_plain:               what infer_gflops has more than the same ViT with a classifier and
                                nothing else.

    The method and all random generators are left as they were. What a step costs once, whatever its
    batch (SMoPE's prototype loss, from the second task on), is no image's and not counted.
    Attention counts as its matrix products, of which SMoPE's experts are one more column, whichever
    kernel computes it.
    """
    with _quietly(method):
        trial, trained = _trial(method, task)
        now = _both(trial, task, trained)
        trial.backbone.whole_last_block = True
        whole = _both(trial, task, trained)
        trial.backbone.whole_last_block = False
        detach(trial.backbone.vit)
        weight = trial.classifier.weight.new_zeros(trial.num_classes, trial.backbone.embed_dim)
        plain = _count(lambda: F.linear(trial.backbone(_image(trial)), weight))
    return {
        **now,
        "without_cls_saving": whole,
        "cls_saving": {name: _minus(whole[name], now[name]) for name in now},
        "beyond_plain": _minus(now["infer_gflops"], plain),
    }


def count_phases(method: Method, task: TaskSpan, phases: Sequence[Phase]) -> list[Gflops]:
    """GFLOPs of one training image of `task` in each of its phases, forward and backward pass.

    They differ: HiDe's identity phase has no backward pass through the backbone, OVOR's second no
    prompts to train.
    """
    with _quietly(method):
        trial = _copy(method)
        trial.begin_task(task)
        found = []
        for phase in phases:
            trial.begin_phase(phase)
            found.append(_count_step(trial, task))
    return found


class ProductsOnly(TorchDispatchMode):
    """Sums in `operations` what PyTorch's counter counts, by its formulas.

    What is counted (products, convolutions, attention kernels) is not computed: it gives zeros and
    takes no time. Everything else is computed, so that code which looks at values runs as ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._shapes: dict[
            str, Any
        ] = {}  # of results that were met before: a ViT's blocks are alike

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        out = (
            kwargs["out"].zero_()
            if isinstance(kwargs.get("out"), Tensor)
            else self._zeros(func, args, kwargs)
        )
        self.operations += formula(*args, **kwargs, out_val=out)
        return out

    def _zeros(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What func(*args, **kwargs) returns, with zeros in it."""
        device = next(value.device for value in args if isinstance(value, Tensor))
        alike = repr(
            (func, tree_map_only(Tensor, lambda t: (t.shape, t.stride(), t.dtype), (args, kwargs)))
        )
        if alike not in self._shapes:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            self._shapes[alike] = func(*args, **kwargs)

        def zeros(meta: Tensor) -> Tensor:
            return torch.empty_strided(
                meta.shape, meta.stride(), dtype=meta.dtype, device=device
            ).zero_()

        return tree_map_only(Tensor, zeros, self._shapes[alike])


class LayersOnly(TorchFunctionMode):
    """Sums in `operations` what calflops counts of a ViT's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {**dict(enumerate(args)), **(kwargs or {})}
        if func is F.linear:
            self.operations += 2 * out.numel() * args[1].shape[-1]
        elif func is F.conv2d:
            bias = given.get(2, given.get("bias"))
            self.operations += out.numel() * (2 * args[1][0].numel() + (bias is not None))
        elif func in (F.layer_norm, torch.layer_norm):
            affine = given.get(2, given.get("weight")) is not None
            self.operations += out.numel() * (LAYER_NORM - (not affine))
        elif func in (F.gelu, F.relu, F.silu):
            self.operations += out.numel() * ACTIVATION
        return out


def _trial(method: Method, task: TaskSpan) -> tuple[Method, bool]:
    """A copy at the last phase of `task`, sharing the frozen backbone's weights; and whether that
    trains anything.
    """
    trial = _copy(method)
    trial.begin_task(task)
    phases = trial.phases(task, 1)
    if phases:
        trial.begin_phase(phases[-1])
    return trial, bool(phases)


def _copy(method: Method) -> Method:
    frozen = [
        parameter for parameter in method.backbone.parameters() if not parameter.requires_grad
    ]
    return copy.deepcopy(method, {id(parameter): parameter for parameter in frozen})


@contextmanager
def _quietly(method: Method) -> Iterator[None]:
    """Draw from copies of the generators, and in one thread: without its products a pass is many
    small pieces.

    timm's own attention goes by products as ours does: not every release of torch counts what its
    kernels do.
    """
    device, threads = method.classifier.weight.device, torch.get_num_threads()
    torch.set_num_threads(1)
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    try:
        with forked, always_in_products(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_num_threads(threads)


def _both(method: Method, task: TaskSpan, trained: bool) -> dict[str, Gflops]:
    train = _count_step(method, task) if trained else {"torch": 0.0, "paper_convention": 0.0}
    method.eval()
    return {"train_gflops": train, "infer_gflops": _count(lambda: method(_image(method)))}


def _count_step(method: Method, task: TaskSpan) -> Gflops:
    """Of one training image in the phase that has begun."""
    image = _image(method)
    label = torch.full((1,), task.classes[0], device=image.device)
    method.train()
    return _count(
        lambda: torch.stack(list(method.losses(image, label, task).values())).sum(), backward=True
    )


def _count(run: Callable[[], Tensor], *, backward: bool = False) -> Gflops:
    """Of run() and, if so asked, of the backward pass of the scalar that it returns."""
    with torch.set_grad_enabled(backward), ProductsOnly() as products:
        with LayersOnly() as layers:
            result = run()
        if backward:
            result.backward()
    return {"torch": products.operations / 1e9, "paper_convention": layers.operations / 1e9}


def _image(method: Method) -> Tensor:
    """A black image, (1, 3, S, S)."""
    size, weight = method.backbone.image_size, method.classifier.weight
    return torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device)


def _minus(more: Gflops, less: Gflops) -> Gflops:
    return {name: more[name] - less[name] for name in more}
