"""One phase of training as it goes: a step at a time, and all of it that a resumed run has to get
back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import Method, Phase, TaskSpan
from smope.training.device import fetch
from smope.training.precision import AUTOCAST, autocast
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings


def make_optimizer(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """What phases and alignment train with. Fused: one kernel that passes over the parameters once,
    about five times as fast for 2,500 experts a head.
    """
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def _added(sums: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums with values added to them, by name, in one kernel; a name that is new begins with its
    value.
    """
    both = [name for name in values if name in sums]
    pairs = [sums[name] for name in both], [values[name] for name in both]
    added = torch._foreach_add(*pairs) if both else ()  # pyright: ignore[reportPrivateImportUsage]
    return {**sums, **values, **dict(zip(both, added, strict=True))}


class RunningPhase:
    """Optimizer, schedule and gradient scaler of one phase, and the epoch's losses so far.

    first: steps of the task before this phase; steps: those of an epoch; done: those of this phase
    taken so far.
    """

    def __init__(
        self,
        method: Method,
        span: TaskSpan,
        phase: Phase,
        settings: TrainerSettings,
        device: torch.device,
        *,
        first: int,
        steps: int,
    ) -> None:
        self.method = method
        self.span = span
        self.phase = phase
        self.settings = settings
        self.device = device
        self.first = first
        self.steps = steps
        self.done = 0
        groups = method.parameter_groups(settings.learning_rate)
        self._bases: list[float] = [group["lr"] for group in groups]
        self._trained: list[nn.Parameter] = [
            parameter for group in groups for parameter in group["params"]
        ]
        self._optimizer = make_optimizer(groups, settings.weight_decay)
        half = settings.precision == "float16" and device.type == "cuda"
        self._scaler = torch.amp.GradScaler(device.type, enabled=half)
        self._schedule = make_schedule(settings, phase.schedule_epochs, steps)
        self._sums: dict[str, Tensor] = {}

    @property
    def total(self) -> int:
        """Steps of the whole phase."""
        return self.phase.epochs * self.steps

    @property
    def position(self) -> int:
        """Steps of the task taken so far."""
        return self.first + self.done

    @property
    def learning_rate(self) -> float:
        """The classifier's rate in the last step."""
        return self._optimizer.param_groups[-1]["lr"]

    @property
    def rates(self) -> list[float]:
        """Every optimizer group's rate in the last step."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on one batch, or on this process's share of it; returns the losses of the whole
        batch and their sum, `loss`, without gradient. UserError, with nothing changed, where the
        sum is not finite.
        """
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            step = self.phase.start * self.steps + self.done
            group["lr"] = self._schedule(base, step, step // self.steps)
        self._optimizer.zero_grad()
        own, fetched = self._backward(images, labels)
        losses = collectives.sum_gradients(self._trained, own)
        # The step is not taken before its loss is known; an accelerator knows it while it still is
        # at the gradients.
        loss = fetched() if collectives.world() == 1 else losses["loss"].item()
        if not math.isfinite(loss):
            raise UserError(self._not_finite(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._sums = _added(self._sums, losses)
        self.done += 1
        return losses

    def _backward(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Callable[[], float]]:
        """Gradients and losses of these images, part by part, each weighted by its part of the
        whole batch; and what gives their sum, `loss`, as a number, which is on its way before the
        last gradients are found.
        """
        whole = len(labels) if collectives.world() == 1 else self.settings.batch_size
        parts = self.settings.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        loss: Callable[[], float] = float
        for some, theirs in zip(
            images.tensor_split(parts), labels.tensor_split(parts), strict=True
        ):
            with autocast(self.settings.precision, self.device):
                losses = self.method.losses(some, theirs, self.span)
                total = torch.stack(list(losses.values())).sum()
            weight = len(theirs) / whole
            if weight != 1:
                total, losses = (
                    weight * total,
                    {name: weight * value for name, value in losses.items()},
                )
            sums = _added(
                sums, {name: value.detach() for name, value in {"loss": total, **losses}.items()}
            )
            loss = fetch(sums["loss"])
            self._scaler.scale(total).backward()
        return sums, loss

    def end_epoch(self) -> dict[str, float]:
        """The mean of each loss over the epoch's steps."""
        means = {name: float(value) / self.steps for name, value in self._sums.items()}
        self._sums = {}
        return means

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `load` wants back, beside the method's own state: tensors, and plain JSON values."""
        kept = self._optimizer.state_dict()["state"]
        optimizer = {
            f"optimizer.{index}.{name}": value
            for index in kept
            for name, value in kept[index].items()
        }
        sums = {f"sums.{name}": value for name, value in self._sums.items()}
        return {**optimizer, **sums}, self._scaler.state_dict()

    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any], position: int) -> None:
        """Go on at `position` as if this phase had been taken there without a break."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "optimizer":
                index, _, name = name.partition(".")
                state.setdefault(int(index), {})[name] = value
            elif kind == "sums":
                self._sums[name] = value.to(self.device)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        if scaler:
            self._scaler.load_state_dict(scaler)
        self.done = position - self.first

    def _not_finite(self, loss: float) -> str:
        epoch, batch = divmod(self.done, self.steps)
        task, precision = self.span.index + 1, self.settings.precision
        other = " or use trainer.precision=float32" if precision in AUTOCAST else ""
        return (
            f"the loss became {loss} in step {self.position + 1} of task {task} "
            f"({self.phase.name}, "
            f"epoch {epoch + 1}, batch {batch + 1} of {self.steps}); "
            f"lower trainer.learning_rate={self.settings.learning_rate}{other}"
        )
