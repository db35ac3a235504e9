"""One phase of training: its steps, and the state that a resumed run needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import Method, Phase, TaskSpan
from smope.training.compiling import is_compiled, stop_compiling
from smope.training.device import fetch
from smope.training.precision import AUTOCAST_DTYPES, autocast
from smope.training.randomness import generator_states, restore_generators
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings


def make_optimizer(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer of phases and alignment: AdamW.

    Fused, it passes over the parameters once, about five times as fast for 2,500 experts a head.

    Args:
        groups: parameters with their rates.
        weight_decay: for groups that do not set their own.

    Returns:
        The optimizer.
    """
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def _added(sums: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add values to sums of the same names, in one kernel; a new name starts with its value."""
    both = [name for name in values if name in sums]
    pairs = [sums[name] for name in both], [values[name] for name in both]
    added = torch._foreach_add(*pairs) if both else ()  # pyright: ignore[reportPrivateImportUsage]
    return {**sums, **values, **dict(zip(both, added, strict=True))}


class RunningPhase:
    """Optimizer, schedule and gradient scaler of one phase, and the epoch's losses so far.

    Args:
        method: what is trained.
        span: the task.
        phase: the phase.
        settings: rates, schedule and precision.
        device: where the method computes.
        first: training steps of the task before this phase.
        steps: training steps of an epoch.

    Attributes:
        done: training steps of this phase taken so far.
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
        """Train on one batch.

        Args:
            images: (B, 3, S, S), or this process's share of the batch.
            labels: (B,).

        Returns:
            The losses of the whole batch and their sum, `loss`, without gradient.

        Raises:
            UserError: the sum is not finite; nothing was changed.
        """
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            step = self.phase.start * self.steps + self.done
            group["lr"] = self._schedule(base, step, step // self.steps)
        self._optimizer.zero_grad()
        own_losses, fetched = self._gradients(images, labels)
        losses = collectives.sum_gradients(self._trained, own_losses)
        # The step is taken only once its loss is known. An accelerator knows it long before the
        # last gradient.
        loss = fetched() if collectives.world() == 1 else losses["loss"].item()
        if not math.isfinite(loss):
            raise UserError(self._not_finite(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.method.end_step()
        self._sums = _added(self._sums, losses)
        self.done += 1
        return losses

    def _gradients(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Callable[[], float]]:
        """As _backward(). If compiling the backbone fails on the way, in either pass, the step
        begins again without it: gradients, random numbers and what routers collect are those of a
        step that was never compiled.
        """
        backbone = self.method.backbone
        if not is_compiled(backbone):
            return self._backward(images, labels)
        generators = generator_states(self.device)
        try:
            outcome = self._backward(images, labels)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the compiler of the backward pass has errors of any class
            if is_compiled(backbone):
                stop_compiling(backbone, error)
        else:
            if is_compiled(backbone):
                return outcome
        restore_generators(*generators, self.device)
        self.method.abandon_step()
        self._optimizer.zero_grad()
        return self._backward(images, labels)

    def _backward(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Callable[[], float]]:
        """Gradients and losses of these images, part by part, each weighted by its share of the
        whole batch; and a function that returns the sum of the losses as a number.
        """
        batch_size = len(labels) if collectives.world() == 1 else self.settings.batch_size
        parts = self.settings.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        loss: Callable[[], float] = float
        split = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
        for part_images, part_labels in split:
            with autocast(self.settings.precision, self.device):
                losses = self.method.losses(part_images, part_labels, self.span)
                total = torch.stack(list(losses.values())).sum()
            weight = len(part_labels) / batch_size
            if weight != 1:
                total = weight * total
                losses = {name: weight * value for name, value in losses.items()}
            detached = {name: value.detach() for name, value in {"loss": total, **losses}.items()}
            sums = _added(sums, detached)
            loss = fetch(sums["loss"])
            self._scaler.scale(total).backward()
        return sums, loss

    def end_epoch(self) -> dict[str, float]:
        """The mean of each loss over the epoch's steps."""
        means = {name: float(value) / self.steps for name, value in self._sums.items()}
        self._sums = {}
        return means

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What load() needs beside the method's own state: tensors, and plain JSON values."""
        moments = self._optimizer.state_dict()["state"]
        optimizer = {
            f"optimizer.{index}.{name}": value
            for index in moments
            for name, value in moments[index].items()
        }
        sums = {f"sums.{name}": value for name, value in self._sums.items()}
        return {**optimizer, **sums}, self._scaler.state_dict()

    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any], position: int) -> None:
        """Continue at `position` as if this phase had run there without a break.

        Args:
            tensors: of state().
            scaler: the other part of state().
            position: training steps of the task taken so far.
        """
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
        other = " or use trainer.precision=float32" if precision in AUTOCAST_DTYPES else ""
        return (
            f"the loss became {loss} in step {self.position + 1} of task {task} "
            f"({self.phase.name}, epoch {epoch + 1}, batch {batch + 1} of {self.steps}); "
            f"lower trainer.learning_rate={self.settings.learning_rate}{other}"
        )
