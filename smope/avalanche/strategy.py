"""An Avalanche strategy that trains any method of ours.

Letters: B batch, N num_classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.optim import Optimizer

from smope.avalanche.experiences import (
    OwnImages,
    TaskLabels,
    avalanche_batches,
    check_classes,
    classes_of,
)
from smope.avalanche.outputs import outputs_of
from smope.errors import UserError
from smope.loops.arguments import trainer_settings
from smope.loops.learner import Learner
from smope.methods.base import Method, Phase
from smope.metrics.scores import all_scores
from smope.seeding import stable_seed
from smope.streams.task_images import TaskImages
from smope.training.auto import AUTO, resolve
from smope.training.device import prefer_onednn, prepare_backbone, resolve_device
from smope.training.phase import make_optimizer
from smope.training.precision import autocast, full_precision
from smope.training.randomness import seed_generators
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings

TEST_STREAM = "test"


class MethodStrategy(SupervisedTemplate):
    """Trains a method on any benchmark of Avalanche's that gives classes, task after task.

        learner = smope.SMoPE(backbone="sup21k", num_classes=100, seed=0)
        strategy = smope.avalanche.MethodStrategy(learner, train_mb_size=128, train_epochs=20)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        strategy.scores()

    An experience is a task; its classes may be new, or come again in other domains. Images are
    (3, S, S) with pixels in [0, 1], of the backbone's size. The class ids of the benchmark are the
    columns of `mb_output` (B, N); classes not seen yet have minus infinity there, and images of
    these an evaluation loss of infinity. On a stream of ours (`Stream.benchmark`) without plugins,
    the accuracies are those of `smope train` with the same settings and seed.

    The loop. `train_epochs` is the number that phases are made of: SMoPE's first task has its
    warm-up before it. begin_task of the method comes before the plugins' before_training_exp, and
    what it learns at the end of a task, alignment included, before their after_training_exp. A
    plugin that stops the training ends the task. Each phase has a new optimizer, over what the
    method trains and nothing else; Avalanche's own would take in the frozen backbone, and carry
    Adam's moments from task to task. Learning rates follow `settings`, not a scheduler plugin.
    Batches from a replay plugin hold earlier classes; then all classes so far compete in the loss.

    Avalanche's WandBLogger and its save_checkpoint fail with today's wandb and torch: use another
    logger, and keep `model.state_dict()`.

    Avalanche's metrics stand beside ours, and these differ:
        Top1_Acc_Stream weighs images equally; final_average_accuracy of scores() weighs tasks
            equally (its twin is sample_weighted_accuracy). It is over all experiences that
            strategy.eval is given, those not learned yet included.
        Forgetting is the accuracy after learning a task minus the last; `forgetting` of scores()
            takes the best earlier one (Chaudhry et al. 2018). StreamForgetting is its mean over the
            experiences that are evaluated.
        BWT is minus Avalanche's Forgetting, as `backward_transfer` is.
        Top1_Acc_Epoch and Loss of training are over augmented batches, while the method still
            learns; of training logits, those of other tasks' classes are not trained.

    Args:
        method: of smope, such as smope.SMoPE(...), or any Method, which becomes a Learner.
        settings: as the keys of the group `trainer`: rates, schedule, alignment, precision. None:
            the defaults, with as many frozen steps as half an epoch has. Keys about files have no
            effect.
        train_mb_size: replaces settings.batch_size.
        train_epochs: replaces settings.epochs.
        eval_mb_size: replaces settings.eval_batch_size.
        device: where it computes; None: settings.device.
        optimizer: makes an optimizer of parameter groups, each with its rate; None: AdamW, as
            `smope train`.
        template: further arguments of SupervisedTemplate: plugins, evaluator, eval_every,
            peval_mode.

    Attributes:
        model: the Learner.

    Raises:
        UserError: the method or the settings cannot be trained here.
    """

    def __init__(
        self,
        method: Learner | Method,
        *,
        settings: TrainerSettings | None = None,
        train_mb_size: int | None = None,
        train_epochs: int | None = None,
        eval_mb_size: int | None = None,
        device: str | torch.device | None = None,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
        **template: Any,
    ) -> None:
        learner = method if isinstance(method, Learner) else Learner(method)
        sizes = {
            "batch_size": train_mb_size,
            "epochs": train_epochs,
            "eval_batch_size": eval_mb_size,
        }
        follow = {"frozen_steps": AUTO} if settings is None else {}
        given = {name: value for name, value in sizes.items() if value is not None}
        settings = trainer_settings({**vars(settings or TrainerSettings()), **follow, **given})
        where = resolve_device(str(device or settings.device), "device")
        _refuse(learner, settings)
        if where.type == "cpu":
            prefer_onednn()
        dtype = full_precision(settings.precision)
        learner.to(where, dtype)
        prepare_backbone(learner.method, settings)
        super().__init__(
            model=learner,
            optimizer=None,  # pyright: ignore[reportArgumentType] (made with each phase)
            train_mb_size=settings.batch_size,
            train_epochs=settings.epochs,
            eval_mb_size=settings.eval_batch_size,
            device=where,
            **template,
        )
        self.model: Learner = learner
        self.settings = settings
        self._make_optimizer = optimizer or _adamw(settings)
        self._own_images = OwnImages(settings, learner.seed, where, dtype)
        self._task_labels = TaskLabels()
        self._learned: list[int] = []  # the number of each experience, in the order of learning
        self._dtype = dtype
        self._rates: Callable[[], None] | None = None
        self._competing: Literal["task", "seen"] = "task"
        self._training_loss = torch.zeros(())
        self._right: list[Tensor] = []
        self._rows: dict[int, dict[int, float]] = {}
        self._test_images: dict[int, int] = {}

    @property
    def accuracy_matrix(self) -> list[list[float]]:
        """A row for each task learned, with the accuracy on the test images of each task so far as
        a fraction. UserError unless `eval` was given these after every task. An evaluation
        within a task (eval_every) does not count.
        """
        rows = [self._rows.get(task, {}) for task in range(self._tasks_done)]
        for task, row in enumerate(rows):
            if not set(self._learned[: task + 1]) <= row.keys():
                raise UserError(
                    f"accuracy_matrix: the test stream was not evaluated after task {task + 1}; "
                    f"call strategy.eval(benchmark.test_stream) after each strategy.train"
                )
        return [[row[j] for j in self._learned[: task + 1]] for task, row in enumerate(rows)]

    def scores(self) -> dict[str, float | None]:
        """The scores of `smope train`, by their names in run.json, as fractions."""
        matrix = self.accuracy_matrix
        return all_scores(matrix, [self._test_images[number] for number in self._learned])

    @property
    def _tasks_done(self) -> int:
        return len(self._learned)

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Images of ours draw their augmentation themselves, so they stay what they are."""
        dataset = self._experience.dataset
        self.adapted_dataset = dataset if isinstance(dataset, TaskImages) else dataset.train()

    def make_train_dataloader(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, **kwargs: Any
    ) -> None:
        images = self.adapted_dataset
        if isinstance(images, TaskImages):
            self.dataloader = self._own_images.shuffled(images, self._tasks_done)
        else:
            super().make_train_dataloader(**kwargs)
        self._own_dataloader = self.dataloader

    def check_model_and_optimizer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, **kwargs: Any
    ) -> None:
        """Begin the task. Called before plugins see that an experience begins."""
        experience = self._experience
        self._task_labels.check(experience)
        check_classes(experience, self.model.num_classes)
        seed_generators(stable_seed(self.model.seed, "task", self._tasks_done))
        self._own_images.epoch = 0
        self._begin_task(experience)
        self.make_optimizer()

    def _begin_task(self, experience: Any) -> None:
        learner, classes = self.model, classes_of(experience)
        if not learner.method.prepares:
            learner.begin_task(classes)
            return
        _, plain, _ = self._passes(experience.dataset)
        with autocast(self.settings.precision, self.device):
            learner.begin_task(classes, plain)
        self._own_images.epoch = 0

    def make_optimizer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, **kwargs: Any
    ) -> None:
        """A new optimizer over what the method trains; None where it takes no steps."""
        rate = self.settings.learning_rate
        groups = self.model.parameter_groups(rate) if self.model.trains else []
        self.optimizer: Any = self._make_optimizer(groups) if groups else None

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        steps = len(self.dataloader)  # pyright: ignore[reportArgumentType]
        self._competing = self._competing_classes()
        for phase in self.model.phases(self.train_epochs, self.settings.dense_epochs):
            self.make_optimizer()
            self._rates = self._schedule(phase, steps)
            for _ in self.model.epochs():
                self._before_training_epoch(**kwargs)
                if self._stop_training:
                    break
                self._set_epoch()
                self.training_epoch(**kwargs)
                self._after_training_epoch(**kwargs)
            if self._stop_training:
                break
        self._stop_training = False
        self._rates = None
        self._end_task(experience)

    def _set_epoch(self) -> None:
        """Another augmentation of our images where a plugin loads them by a loader of its own."""
        if isinstance(self.adapted_dataset, TaskImages) and self._has_replaced_loader:
            self.adapted_dataset.set_epoch(self._own_images.epoch)
            self._own_images.epoch += 1

    @property
    def _has_replaced_loader(self) -> bool:
        return self.dataloader is not self._own_dataloader

    def _schedule(self, phase: Phase, steps: int) -> Callable[[], None]:
        """A function that sets the rates of the next step."""
        settings = self.settings
        if steps == 0:
            raise UserError(
                f"train_mb_size={settings.batch_size} is larger than the number of training images "
                f"of task {self._tasks_done + 1}, so that no whole batch is left; lower it"
            )
        frozen_steps = {"batch_size": 1, "frozen_steps": settings.frozen_steps}
        settings = replace(settings, **resolve(frozen_steps, steps))
        rate = make_schedule(settings, phase.schedule_epochs, steps)
        bases = [group["lr"] for group in self.optimizer.param_groups]
        done = phase.start * steps

        def set_rates() -> None:
            nonlocal done
            for group, base in zip(self.optimizer.param_groups, bases, strict=True):
                group["lr"] = rate(base, done, done // steps)
            done += 1

        return set_rates

    def _before_training_iteration(self, **kwargs: Any) -> None:
        if self._rates is not None:
            self._rates()
        super()._before_training_iteration(**kwargs)

    def _end_task(self, experience: Any) -> None:
        shuffled, plain, described = self._passes(experience.dataset)
        learner = self.model
        batches = learner.task_batches(shuffled, plain)
        statistics = learner.task_batches(shuffled, described)
        with autocast(self.settings.precision, self.device):
            learner.finish_task(batches, statistics.of_every_class, self.settings)
        self._learned.append(experience.current_experience)

    def _passes(self, dataset: Any) -> tuple[Any, Any, Any]:
        """Training images for the method's own end of a task, shuffled and plain, and those that
        class statistics describe.
        """
        size, eval_size = self.settings.batch_size, self.settings.eval_batch_size
        augmented = self.settings.statistics_images == "train"
        if isinstance(dataset, TaskImages):
            own, plain = self._own_images, dataset.eval()
            return (
                own.shuffled(dataset, self._tasks_done),
                own.in_order(plain),
                own.in_order(dataset if augmented else plain),
            )
        train, plain = dataset.train(), dataset.eval()
        described = train if augmented else plain
        return (
            avalanche_batches(train, size, shuffle=True),
            avalanche_batches(plain, eval_size, shuffle=False),
            avalanche_batches(described, eval_size, shuffle=False),
        )

    def forward(self) -> Tensor:
        """The logits (B, N) of the current batch; in training, its loss is computed as well."""
        images = self.mb_x.to(self._dtype)
        with autocast(self.settings.precision, self.device):
            if not self.is_training:
                return self._evaluated(images)
            with outputs_of(self.model.method.classifier) as outputs:
                losses = self.model.losses(images, self.mb_y, self._competing)
            self._training_loss = torch.stack(list(losses.values())).sum()
            for logits in outputs:
                if logits.shape == (len(images), self.model.num_classes):
                    return self.model.columns(logits)
            return self.model.evaluated(images)  # a phase that trains another classifier

    def _competing_classes(self) -> Literal["task", "seen"]:
        """Which classes compete in the loss: all so far, if batches hold images of earlier ones."""
        task = set(classes_of(self._experience))
        if set(self.model.classes_seen) <= task:
            return "task"
        data: Any = self.adapted_dataset
        others = self._has_replaced_loader or not set(map(int, data.targets)) <= task
        return "seen" if others else "task"

    def _evaluated(self, images: Tensor) -> Tensor:
        if self.model.classes_seen:
            return self.model.evaluated(images)
        # Before the first task no class can be predicted: a column of its own wins.
        logits = images.new_full((len(images), self.model.num_classes + 1), -torch.inf)
        logits[:, -1] = 0
        return logits

    def criterion(self) -> Tensor:
        """The loss of the method in training, and the cross-entropy of all classes so far in
        evaluation.
        """
        if self.is_training:
            return self._training_loss
        assert self.mb_output is not None
        return F.cross_entropy(self.mb_output, self.mb_y)

    def model_adaptation(self, model: Any = None) -> Learner:
        """The model itself: a learner has all its parameters from the start."""
        return self.model

    def _before_eval_exp(self, **kwargs: Any) -> None:
        check_classes(self._experience, self.model.num_classes)
        self._right = []
        super()._before_eval_exp(**kwargs)

    def _after_eval_iteration(self, **kwargs: Any) -> None:
        assert self.mb_output is not None
        self._right.append(self.mb_output.argmax(-1) == self.mb_y)
        super()._after_eval_iteration(**kwargs)

    def _after_eval_exp(self, **kwargs: Any) -> None:
        experience = self._experience
        stream = getattr(experience, "origin_stream", None)
        is_of_matrix = self._tasks_done and not self.model.is_learning
        if getattr(stream, "name", "") == TEST_STREAM and self._right and is_of_matrix:
            right, number = torch.cat(self._right), experience.current_experience
            row = self._rows.setdefault(self._tasks_done - 1, {})
            row[number] = int(right.sum()) / len(right)
            self._test_images[number] = len(right)
        super()._after_eval_exp(**kwargs)

    @property
    def _experience(self) -> Any:
        assert self.experience is not None
        return self.experience


# Avalanche wraps constructors so that positional arguments warn; `method` comes first on purpose.
MethodStrategy.__init__ = MethodStrategy.__init__.__wrapped__  # pyright: ignore


def _adamw(settings: TrainerSettings) -> Callable[[list[dict[str, Any]]], Optimizer]:
    return lambda groups: make_optimizer(groups, settings.weight_decay)


def _refuse(learner: Learner, settings: TrainerSettings) -> None:
    """UserError for a method or settings that cannot be trained by this loop."""
    if learner.classes_seen:
        raise UserError(
            f"method: this {type(learner).__name__} has begun to learn already, and a strategy "
            f"counts tasks from its first; make a new one, or train it in a loop of your own"
        )
    if learner.method.revisits:
        raise UserError(
            f"method: {type(learner.method).__name__} trains on the images of all tasks so far, "
            f"and an experience holds those of one; use avalanche.training.JointTraining"
        )
    if settings.batch_size == AUTO:
        raise UserError("settings: batch_size=auto follows from a stream; give train_mb_size")
    for name, value in (("gradient_accumulation_steps", 1), ("compile", False)):
        if getattr(settings, name) != value:
            raise UserError(
                f"settings: {name}={getattr(settings, name)} has no effect in Avalanche's loop; "
                f"write {name}={value}"
            )
    if settings.precision == "float16":
        raise UserError(
            "settings: precision=float16 needs scaled gradients, which Avalanche's loop does not "
            "have; use bfloat16 or float32"
        )
