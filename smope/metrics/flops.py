"""Floating-point operations for one image, counted in two ways and without computing them.

torch: As torch.utils.flop_counter counts: every matrix product and convolution, also those of
    attention, with two operations for a multiply-add. Training is a forward and a backward pass.
    Elementwise operations (softmax, norms, the choice of experts) do not count.
paper_convention: What papers on prompt tuning print, by calflops. It is one forward pass, also for
    training. Linear and convolution layers count two operations for a multiply-add, LayerNorm five
    and activations one for an element. Products written with @ do not count; the two of attention
    are among these. One pass through a ViT-B/16 at 224 pixels is 33.72 GFLOPs, 33.69 of them in
    linear and convolution layers.
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

LAYER_NORM_OPERATIONS = 5  # for each element, as in calflops
ACTIVATION_OPERATIONS = 1

Gflops = dict[str, float]
"""The GFLOPs for one image in both ways: {"torch": ..., "paper_convention": ...}."""


def count_flops(method: Method, task: TaskSpan) -> dict[str, Any]:
    """The GFLOPs for one image.

    Attention counts as its matrix products, whichever kernel computes it; SMoPE's experts are one
    more column of them. Costs of a step that do not depend on its batch, such as SMoPE's prototype
    loss, are not counted. The method and all random generators are unchanged afterwards.

    Args:
        method: The method, on any device.
        task: The task that the image belongs to.

    Returns:
        Values of type `Gflops` under these keys:
        train_gflops, infer_gflops: Of the method. Training is a step of its last phase, 0 if it has
            none; `count_phases` counts all phases. An image is classified as after the last task.
        without_cls_saving: Both, if the last block computed all rows as timm's does.
        cls_saving: Both, the difference of the two above.
        beyond_plain: infer_gflops minus those of the same ViT with a classifier alone.
    """
    with _quietly(method):
        trial, trained = _trial(method, task)
        now = _both(trial, task, trained)
        trial.backbone.whole_last_block = True
        with_all_rows = _both(trial, task, trained)
        trial.backbone.whole_last_block = False
        detach(trial.backbone.vit)
        weight = trial.classifier.weight.new_zeros(trial.num_classes, trial.backbone.embed_dim)
        plain = _count(lambda: F.linear(trial.backbone(_image(trial)), weight))
    return {
        **now,
        "without_cls_saving": with_all_rows,
        "cls_saving": {name: _minus(with_all_rows[name], now[name]) for name in now},
        "beyond_plain": _minus(now["infer_gflops"], plain),
    }


def count_phases(method: Method, task: TaskSpan, phases: Sequence[Phase]) -> list[Gflops]:
    """The GFLOPs for one training image in each phase of a task, forward and backward pass.

    Phases differ: HiDe's identity phase has no backward pass through the backbone, and OVOR's
    second phase trains no prompts.

    Args:
        method: The method, on any device.
        task: The task.
        phases: Its phases, in their order.
    """
    with _quietly(method):
        trial = light_copy(method)
        trial.begin_task(task)
        counts = []
        for phase in phases:
            trial.begin_phase(phase)
            counts.append(_count_step(trial, task))
    return counts


def count_pass(
    method: Method, run: Callable[[Method, Tensor], Tensor], tasks: Sequence[int]
) -> list[float]:
    """The GFLOPs, by PyTorch's counter, of a pass of one image without gradients.

    Args:
        method: The method, on any device; it stays as it is.
        run: The pass, of a copy of the method and an image.
        tasks: After how many tasks the pass is.

    Returns:
        A number for each of them.
    """
    with _quietly(method):
        trial, counts = light_copy(method).eval(), []
        for number in tasks:
            trial.assume_learned(number)
            counts.append(_count(lambda: run(trial, _image(trial)))["torch"])
    return counts


class ProductsOnly(TorchDispatchMode):
    """Sums in `operations` what PyTorch's flop counter counts, with its formulas.

    Counted operations (products, convolutions, attention kernels) are not computed: they return
    zeros and take no time. All others are computed, so that code which reads values still runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        # Results by operation and shapes, because the blocks of a ViT are all alike.
        self._shapes: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        if isinstance(kwargs.get("out"), Tensor):
            out = kwargs["out"].zero_()
        else:
            out = self._zeros(func, args, kwargs)
        self.operations += formula(*args, **kwargs, out_val=out)
        return out

    def _zeros(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of func(*args, **kwargs), with zeros in place of its values."""
        device = next(value.device for value in args if isinstance(value, Tensor))
        signature = repr(
            (func, tree_map_only(Tensor, lambda t: (t.shape, t.stride(), t.dtype), (args, kwargs)))
        )
        if signature not in self._shapes:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            self._shapes[signature] = func(*args, **kwargs)

        def zeros(meta: Tensor) -> Tensor:
            return torch.empty_strided(
                meta.shape, meta.stride(), dtype=meta.dtype, device=device
            ).zero_()

        return tree_map_only(Tensor, zeros, self._shapes[signature])


class LayersOnly(TorchFunctionMode):
    """Sums in `operations` what calflops counts in the layers of a ViT."""

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
            self.operations += out.numel() * (LAYER_NORM_OPERATIONS - (not affine))
        elif func in (F.gelu, F.relu, F.silu):
            self.operations += out.numel() * ACTIVATION_OPERATIONS
        return out


def _trial(method: Method, task: TaskSpan) -> tuple[Method, bool]:
    """A copy of the method in the last phase of `task`, and whether it has any phase."""
    trial = light_copy(method)
    trial.begin_task(task)
    phases = trial.phases(task, 1)
    if phases:
        trial.begin_phase(phases[-1])
    return trial, bool(phases)


def light_copy(method: Method) -> Method:
    """A deep copy that shares the frozen weights of the backbone."""
    frozen = [
        parameter for parameter in method.backbone.parameters() if not parameter.requires_grad
    ]
    return copy.deepcopy(method, {id(parameter): parameter for parameter in frozen})


@contextmanager
def _quietly(method: Method) -> Iterator[None]:
    """Leave the random generators alone, and compute in one thread and with attention by products.

    Without its products, a pass consists of many small operations, for which threads cost time.
    timm's own attention uses products too, because not every release of torch counts its kernels.
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
    method.eval().assume_learned()
    return {"train_gflops": train, "infer_gflops": _count(lambda: method(_image(method)))}


def _count_step(method: Method, task: TaskSpan) -> Gflops:
    """Forward and backward pass for one training image in the present phase."""
    image = _image(method)
    label = torch.full((1,), task.classes[0], device=image.device)
    method.train()
    return _count(
        lambda: torch.stack(list(method.losses(image, label, task).values())).sum(), backward=True
    )


def _count(run: Callable[[], Tensor], *, backward: bool = False) -> Gflops:
    """The GFLOPs of run() and, with `backward`, of the backward pass of the scalar it returns."""
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
