"""A method as a plain nn.Module, for a training loop of your own.

    learner = smope.SMoPE(backbone="vit_base_patch16_224.augreg_in21k", num_classes=100)
    for classes, loader in tasks:                       # class ids, and images with class ids
        learner.begin_task(classes)
        for phase in learner.phases(epochs=20):         # none where a method takes no steps
            optimizer = torch.optim.AdamW(learner.parameter_groups(lr=5e-3))
            for _ in learner.epochs():
                for images, labels in loader:
                    optimizer.zero_grad()
                    learner.loss(images, labels).backward()
                    optimizer.step()
        learner.end_task(loader)
    learner.predict(images)

Letters: B batch, S image side, N num_classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smope.loops import refusals
from smope.loops.arguments import alignment_settings, trainer_settings
from smope.loops.class_ids import ClassIds
from smope.loops.inputs import check_pairs, checked_images, finite
from smope.loops.loaders import TaskBatches
from smope.loops.progress import Progress
from smope.loops.saved_state import adopt_state, as_tensor, from_tensor
from smope.loops.steps import ignore_steps, watch_steps
from smope.methods._shared.routed_method import RoutedMethod
from smope.methods.base import Batches, Method, Phase, TaskSpan
from smope.training.precision import autocast, callers_precision, evaluated
from smope.training.preflight import check_stream
from smope.training.settings import TrainerSettings
from smope.training.task_end import record_and_align


class Learner(nn.Module):
    """A method that learns tasks, given as class ids, in anybody's training loop.

    Class ids are whole numbers in 0..N-1, as in `torch.nn.CrossEntropyLoss`; they may come in any
    order, and again in later tasks. Images are (B, 3, S, S) with pixels in [0, 1]: the backbone
    normalises them itself.

    Nothing that is trained appears with a task: all parameters exist from the start, so an
    optimizer that was made once trains them all. But its moments carry over from task to task, and
    go on moving what an earlier task has learned and this one has no gradient for; the numbers of
    `smope train` come from an optimizer that is new in each phase, with parameter_groups().

    `state_dict` holds all of it: backbone, what was learned and remembered, tasks and class ids,
    within a task as well. `method.trained_state()` is the part that was learned.

    Args:
        method: its backbone, prompts and classifier.
        seed: of what alignment and k-means draw; that of `smope train`. None draws one from torch's
            global generator.

    Attributes:
        method: as the trainer of `smope train` trains it; its labels are numbered as classes first
            appear.
    """

    def __init__(self, method: Method, *, seed: int | None = None) -> None:
        super().__init__()
        self.method = method
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._progress = Progress(ClassIds(method.num_classes))
        self.register_load_state_dict_pre_hook(adopt_state)
        self.register_load_state_dict_post_hook(Learner._watch_steps)

    @property
    def num_classes(self) -> int:
        """N."""
        return self.method.num_classes

    @property
    def classes_seen(self) -> tuple[int, ...]:
        """The class ids of all tasks so far, ascending."""
        return tuple(sorted(self._progress.ids.of_labels))

    @property
    def is_learning(self) -> bool:
        """Whether a task has begun and not ended."""
        return self._progress.learning

    @property
    def trains(self) -> bool:
        """Whether the current task takes training steps. Methods in closed form learn in end_task
        alone.
        """
        return self._progress.phase is not None

    def begin_task(
        self, classes: Iterable[int] | Tensor, loader: Iterable[Sequence[Any]] | None = None
    ) -> None:
        """Begin a task, in training mode.

        Args:
            classes: the ids of its classes, new ones and such as have come before.
            loader: its training images in batches (images, class ids, ...), each once and without
                augmentation. MiN and InfLoRA look at them before they train; others need none.

        Raises:
            UserError: the task before has not ended, an id is not in 0..N-1, the method cannot
                learn such a task, or it needs a loader. No task has begun then.
        """
        progress = self._progress
        if progress.learning:
            raise refusals.not_ended(len(progress.spans))
        ids = progress.ids.checked(classes)
        span = progress.next_span(ids)
        check_stream(self.method, [*progress.spans, span], "these tasks")
        if self.method.prepares and loader is None:
            raise refusals.no_loader(self.method)
        before = copy.deepcopy(progress)
        progress.begin(span, ids)
        self.train()
        self.method.begin_task(span)
        if self.method.prepares and loader is not None:
            try:
                self._prepare(span, loader)
            except BaseException:
                self._progress = before
                self.eval()
                raise
        phases = self.method.phases(span, 1)
        self._begin_phase(phases[-1] if phases else None)

    def _prepare(self, span: TaskSpan, loader: Iterable[Sequence[Any]]) -> None:
        """The method's look at the images of a task before its first phase."""
        with callers_precision(self._first.dtype, self._first.device) as precision:
            self.method.eval()
            with torch.no_grad(), autocast(precision, self._first.device):
                self.method.prepare_task(span, self.task_batches(loader, loader))
        self.train()

    def phases(self, epochs: int, dense_epochs: int | None = None) -> Iterator[Phase]:
        """The phases of the current task, each begun when the loop comes to it.

        A loop that does without has one phase, the last one of the method. So SMoPE is trained
        without its warm-up, and OVOR without outliers.

        Args:
            epochs: of the task, as trainer.epochs.
            dense_epochs: of SMoPE's warm-up in the first task; None: half of `epochs`.

        Returns:
            Phases with `name` and `epochs`; none for a task without training steps.
        """
        span = self._progress.current("phases")
        settings = trainer_settings({"epochs": epochs, "dense_epochs": dense_epochs})
        if isinstance(self.method, RoutedMethod):
            self.method.dense_epochs = settings.warm_up_epochs
        self._progress.chose_phase = True
        for phase in self.method.phases(span, epochs):
            self._begin_phase(phase)
            yield phase

    def epochs(self) -> Iterator[int]:
        """The epochs of the current phase, from 0, each begun when the loop comes to it.

        A loop may also count by itself and call begin_epoch().
        """
        self._progress.current("epochs")
        if self._progress.phase is None:
            raise refusals.no_steps("epochs", self.method)
        for epoch in range(self._progress.phase.epochs):
            self.begin_epoch(epoch)
            yield epoch

    def begin_epoch(self, epoch: int) -> None:
        """Tell the method that an epoch begins, counted from 0 in each phase. Some methods change
        with it; without it, they stay in epoch 0.
        """
        self.method.begin_epoch(epoch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimizer of torch, with the rates that the method gives to its parts.

        `parameters()` works as well: all at one rate, and the frozen backbone among them.

        Args:
            lr: rate of the classifier.

        Raises:
            UserError: the method takes no training steps.
        """
        groups = self.method.parameter_groups(lr)
        if not groups:
            raise refusals.no_steps("parameter_groups", self.method)
        return groups

    def loss(
        self, images: Tensor, labels: Tensor, competing: Literal["task", "seen"] = "task"
    ) -> Tensor:
        """The loss of a batch, a scalar with gradient: the sum of losses().

        Args:
            images: (B, 3, S, S) in [0, 1].
            labels: class ids (B,) of the current task.
            competing: "task": its classes. "seen": all classes so far, and labels of these, for
                batches that hold images of earlier tasks as well, as from a replay buffer. Methods
                that revisit earlier images, such as Joint, always do that.

        Raises:
            UserError: no task is current or it takes no steps, images or labels do not fit, or, on
                a CPU, the loss is not finite. On a GPU a wrong label may be refused a batch later.
        """
        return finite(torch.stack(list(self.losses(images, labels, competing).values())).sum())

    def losses(
        self, images: Tensor, labels: Tensor, competing: Literal["task", "seen"] = "task"
    ) -> dict[str, Tensor]:
        """The parts of loss() by name, weighted; arguments and errors as there."""
        span = self._progress.current("loss")
        if not self.trains:
            raise refusals.no_steps("loss", self.method)
        if not self._progress.chose_phase and len(phases := self.method.phases(span, 1)) > 1:
            raise refusals.in_phases(self.method, phases)
        if competing == "seen" or self.method.revisits:
            span = replace(span, classes=tuple(range(span.stop)))
        pixels = self._images(images)
        check_pairs(pixels, labels)
        return self.method.losses(pixels, self._labels(labels, span), span)

    def end_step(self) -> None:
        """Called by itself after each step of an optimizer of torch.optim that has parameters of
        the learner. After a step of anything else, call it.
        """
        self.method.end_step()

    def end_task(
        self,
        loader: Iterable[Sequence[Any]],
        plain_loader: Iterable[Sequence[Any]] | None = None,
        **alignment: Any,
    ) -> None:
        """End the task: learn what the method learns without steps, record class statistics, and
        from the second task on align the classifier. Ends in evaluation mode.

        Args:
            loader: the training images of the task, in batches (images, class ids, ...). SMoPE
                counts on them which experts are used.
            plain_loader: each of them once and without augmentation, for methods in closed form and
                for class statistics. None: `loader`, so for methods in closed form it should not
                augment, and for class statistics it must drop no class.
            alignment: values for `alignment_epochs`, `alignment_samples_per_class`,
                `alignment_learning_rate` and `alignment_batches`, if not those of TrainerSettings.

        Raises:
            UserError: no task is current, or the loader gives other classes or none. The task
                cannot be ended again then, unless a state_dict() from before is loaded.
        """
        settings = alignment_settings(alignment)
        batches = self.task_batches(loader, loader if plain_loader is None else plain_loader)
        self.finish_task(batches, batches.of_every_class, settings)

    def task_batches(
        self, loader: Iterable[Sequence[Any]], plain_loader: Iterable[Sequence[Any]]
    ) -> TaskBatches:
        """Batches of the current task with labels of the method, for finish_task().

        Args:
            loader: as in end_task.
            plain_loader: as there.
        """
        span = self._progress.current("end_task")
        return TaskBatches(
            loader,
            plain_loader,
            self._images,
            lambda class_ids: self._labels(class_ids, span, at_end=True),
            span.classes,
        )

    def finish_task(
        self,
        batches: Batches,
        statistics: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        settings: TrainerSettings,
    ) -> None:
        """end_task() for a loop that has its own batches for each purpose, with labels of the
        method.

        Args:
            batches: see methods.base.Batches.
            statistics: one pass over the images that class statistics describe.
            settings: the keys alignment_*.
        """
        span, method = self._progress.current("finish_task"), self.method
        self._progress.ids.check_late()
        self._progress.half_ended = True
        with callers_precision(self._first.dtype, self._first.device) as precision:
            settings = replace(settings, precision=precision)
            method.eval()
            with torch.no_grad(), autocast(precision, self._first.device):
                method.end_task(span, batches)
            with torch.enable_grad():
                record_and_align(method, span, statistics, settings, self.seed)
        ignore_steps(self)
        self._progress.end()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all classes.

        Args:
            images: (B, 3, S, S) in [0, 1].

        Returns:
            (B, N), a column for each class id; minus infinity for classes not seen yet.

        Raises:
            UserError: there was no task yet, or images do not fit.
        """
        self._progress.refuse_without_classes()
        return self.columns(self.method(self._images(images)))

    def predict(self, images: Tensor) -> Tensor:
        """Classify images among the classes seen so far, as `smope train` evaluates.

        Args:
            images: (B, 3, S, S) in [0, 1].

        Returns:
            Class ids (B,). The mode, training or evaluation, is left as it was.
        """
        return self.evaluated(images).argmax(-1)

    @torch.no_grad()
    def evaluated(self, images: Tensor) -> Tensor:
        """forward() in evaluation mode, without gradient, classified in full precision."""
        self._progress.refuse_without_classes()
        training = self.training
        self.eval()
        try:
            with callers_precision(self._first.dtype, self._first.device) as precision:
                logits = evaluated(self.method, self._images(images), precision)
        finally:
            self.train(training)
        return self.columns(logits)

    def columns(self, logits: Tensor) -> Tensor:
        """Logits of the method (B, N), a column for each of its labels, as forward() gives them."""
        return self._progress.ids.columns(logits)

    def get_extra_state(self) -> Tensor:
        """Tasks, class ids and the phase: what state_dict() holds beside parameters and buffers."""
        return as_tensor({**self._progress.record(), "seed": self.seed})

    def set_extra_state(self, state: Tensor) -> None:
        """What get_extra_state() gave."""
        record = from_tensor(state)
        self.seed = record["seed"]
        self._progress = Progress.of_record(record, self.num_classes)
        ignore_steps(self)
        if self._progress.learning:
            self._begin_phase(self._progress.phase)

    @property
    def _first(self) -> nn.Parameter:
        """A parameter, whose type and device are those of all."""
        return next(self.method.parameters())

    def _begin_phase(self, phase: Phase | None) -> None:
        self._progress.phase = phase
        if phase is None:
            return
        self.train()
        self.method.begin_phase(phase)
        self.begin_epoch(0)
        self._watch_steps()

    def _watch_steps(self, *_arguments: Any) -> None:
        """Again where the parameters are other objects: in a copy, or loaded with assign=True."""
        if self._progress.phase is not None:
            groups = self.method.parameter_groups(1.0)
            watch_steps(self, [parameter for group in groups for parameter in group["params"]])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called for a copy, and for what pickle reads."""
        super().__setstate__(state)
        self._watch_steps()

    def _images(self, images: Tensor) -> Tensor:
        """Checked, on the method's device and in its precision."""
        checked = checked_images(images, self.method.backbone.image_size)
        return checked.to(self._first.device, self._first.dtype, non_blocking=True)

    def _labels(self, class_ids: Tensor, span: TaskSpan, *, at_end: bool = False) -> Tensor:
        labels = self._progress.ids.labels(class_ids, span, at_end=at_end)
        return labels.to(self._first.device, non_blocking=True)
