"""The contract between a method and the one training loop (training/trainer.py).

Shapes: B batch, S image side, C feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.backbones.wrapping import is_wrapped
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.class_statistics import (
    ClassStatistics,
    class_noise,
    drawn,
    mean_cosines,
)

Batches = Callable[[Literal["train", "plain"]], Iterator[tuple[Tensor, Tensor]]]
"""Batches of the current task's training images and labels, on the method's device.

"train" is the training loader: shuffled, augmented, an incomplete last batch dropped. "plain" gives
every image once, in order, through the evaluation transform. Each of several processes gets its
share of every batch: see smope/distributed/collectives.py.
"""


@dataclass(frozen=True)
class TaskSpan:
    """A task's number, and its classes among those seen so far.

    Labels are numbered as classes first appear: 0..start-1 were seen in earlier tasks,
    start..stop-1 are new. Where domains change, all classes come again and none is new: start =
    stop.

    Attributes:
        index: number of the task, from 0.
        start: labels seen before.
        stop: labels seen with this task.
        classes: labels of this task's training images, ascending. Default: the new ones, as in a
            class-incremental stream.
    """

    index: int
    start: int
    stop: int
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            object.__setattr__(self, "classes", tuple(range(self.start, self.stop)))

    @property
    def repeats(self) -> bool:
        """Whether classes of earlier tasks come again."""
        return any(label < self.start for label in self.classes)


@dataclass(frozen=True)
class Reference:
    """Where a method is from, and its cost as published; `smope methods` shows it beside our
    counts.

    Attributes:
        source: paper, and code where it was used.
        note: what a reader of the comparison has to know, such as what a published number counted.
        published_parameters: millions of trained parameters, classifier included, with ViT-B/16 and
            200 classes.
        published_gflops: of one training and one test image, in the convention of that paper.
    """

    source: str
    note: str = ""
    published_parameters: float | None = None
    published_gflops: tuple[float, float] | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own optimizer.

    Attributes:
        name: for people, metrics.csv and Method.begin_phase.
        epochs: of this phase.
        start: epochs of the schedule that earlier phases have used.
        of: epochs of the whole schedule; None: the phase has a schedule of its own.
    """

    name: str
    epochs: int
    start: int = 0
    of: int | None = None

    @property
    def schedule_epochs(self) -> int:
        """Epochs of the schedule that the phase follows."""
        return self.of or self.epochs


class BatchDependence(NamedTuple):
    """Why the loss of an image depends on the other images of its batch.

    Attributes:
        setting: the setting that makes it so, as key=value.
        instead: a setting that does not.
    """

    setting: str
    instead: str


class Recollection(NamedTuple):
    """What a method makes of what it remembers of its classes.

    Attributes:
        logits: (n, num_classes).
        labels: (n,).
        origin: what was classified, for people.
    """

    logits: Tensor
    labels: Tensor
    origin: str


class AlignableClassifier(Protocol):
    """A classifier that the trainer can retrain on class statistics: a method, or a part of one."""

    @property
    def statistics(self) -> ClassStatistics: ...

    @property
    def classifier(self) -> nn.Module: ...

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor: ...

    def classify(self, features: Tensor) -> Tensor: ...


class Method(nn.Module):
    """A backbone, a linear classifier over all classes, and what a subclass adds.

    The backbone is frozen unless a subclass unfreezes it. For each task the trainer calls

        begin_task, and prepare_task for a method that defines it
        for each of phases(): begin_phase
            for each epoch: begin_epoch, then losses() and end_step on every batch
        end_task

    and then records class statistics for each of recorded(), and retrains the classifier of each of
    aligned() on them. What a method remembers is a Parameter or a buffer, so that
    trained_state() is all of it.

    Several processes with a share of every batch each compute what one process does if losses are
    means over images plus terms that do not depend on images, and if end_task learns from
    collectives.gathered() rows or collectives.summed() counts. A method that does otherwise says so
    in needs_whole_batch or needs_one_process. Random numbers drawn for each image would differ.

    Subclasses document their own arguments alone; these are common to all:

    Args:
        backbone: the ViT; a method may wrap its blocks.
        num_classes: classes of the whole stream.
        total_tasks: tasks of the whole stream, for methods with prompts for each task.
        align: retrain the classifier on class statistics after each task from the second on.
        centroids: Gaussians of each class for that.

    Attributes:
        reference: where the method is from.
        learning_only: names of tensors and modules that only learning reads; inference_state()
            leaves them out. Any module inside a method may have such a list, and a subclass adds to
            those of its bases.
        revisits: train on the images of all tasks so far, not only on those of the current task.
            The number of steps stays the same; each epoch draws from all images seen.
        sums_stay: keep sums over the images of all classes out of which none can be taken.
    """

    reference: ClassVar[Reference]
    learning_only: ClassVar[tuple[str, ...]] = ("statistics",)
    revisits: ClassVar[bool] = False
    sums_stay: ClassVar[bool] = False

    def __init__(
        self, backbone: Backbone, num_classes: int, *, align: bool, centroids: int = 1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.align = align
        self.classifier = nn.Linear(backbone.embed_dim, num_classes)
        self.statistics = ClassStatistics(
            num_classes, centroids if align else 0, backbone.embed_dim
        )

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> features (B, C); without gradient if nothing on the way
        is trained.
        """
        if self.features_are_the_backbones:
            return self.frozen_features(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            return self.backbone(images)

    def frozen_features(self, images: Tensor) -> Tensor:
        """Features (B, C) by the frozen backbone with nothing put into it, without gradient.

        Where the trainer knows those of the batch, they are not computed (training/
        frozen_features.py).
        """
        known = self.backbone.known
        features = None if known is None else known.of(images)
        if features is None:
            features = self._bare_pass(images).contiguous()
            if known is not None:
                known.note(images, features)
        return features

    def _bare_pass(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.backbone(images)

    def reads_frozen_features(self, phase: Phase) -> bool:
        """Whether losses() of a phase computes frozen_features() of its images.

        Where the images are the same in each epoch, they are then computed once.
        """
        return self.features_are_the_backbones

    def features_are_final(self, task: TaskSpan) -> bool:
        """Whether features() gives every image the same in evaluation from the end of `task` to the
        end of the run.

        The features of test images are then computed once. As long as features() is the one above,
        the answer follows from the backbone; a method whose own features stop changing says so.
        """
        return self.features_are_the_backbones

    @property
    def features_are_the_backbones(self) -> bool:
        """Whether features() gives those of the frozen backbone, with nothing put into it."""
        own = type(self).features is not Method.features or bool(list(self.prompt_parameters()))
        return self.backbone.frozen and not own and not is_wrapped(self.backbone.vit)

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        """Features of images that are known to belong to a task; class statistics describe these.

        Args:
            images: (B, 3, S, S) in [0, 1].
            task: the task.

        Returns:
            Features (B, C).
        """
        return self.features(images)

    def classify(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> logits (B, num_classes), meaningful for classes seen so
        far.
        """
        return self.classify(self.features(images))

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        """Raise UserError, before anything is trained, for a stream that the method cannot
        learn.
        """

    def needs_one_process(self) -> BatchDependence | None:
        """Why a batch cannot be split among processes; None where it can."""
        return None

    def needs_whole_batch(self) -> BatchDependence | None:
        """Why a batch cannot be taken in parts, one after the other; None where it can."""
        return self.needs_one_process()

    def begin_task(self, task: TaskSpan) -> None:
        """Called before the first phase of a task."""

    @property
    def prepares(self) -> bool:
        """Whether the method looks at a task's images in prepare_task."""
        return type(self).prepare_task is not Method.prepare_task

    def prepare_task(self, task: TaskSpan, batches: Batches) -> None:
        """Called between begin_task and the first phase, in evaluation mode and without gradients,
        if a subclass defines it.

        Args:
            task: the task.
            batches: gives the task's training images; the autocast is as for end_task.
        """

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        """The phases of a task.

        Args:
            task: the task.
            epochs: trainer.epochs.

        Returns:
            The phases in order; empty for a method that learns in end_task alone.
        """
        return [Phase("train", epochs)]

    def begin_phase(self, phase: Phase) -> None:
        """Called before the first step of a phase."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, and where a resumed run continues within one.

        `epoch` is counted from 0 in each phase.
        """

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        """The losses of one batch; their sum is minimised.

        Args:
            images: (B, 3, S, S) in [0, 1].
            labels: (B,), all in task.classes, or below task.stop for a method that revisits.
            task: the task.

        Returns:
            Scalars by name.
        """
        return {"cross_entropy": task_cross_entropy(self(images), labels, task.classes)}

    def abandon_step(self) -> None:
        """Forget what losses() collected since the last end_step: the step begins again."""

    def end_step(self) -> None:
        """Called after each optimizer step, in all processes."""

    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        """Called after the last phase of a task, in evaluation mode and without gradients.

        The autocast of trainer.precision is on. Sums over images are best in float64, which
        autocast does not change.

        Args:
            task: the task.
            batches: gives the task's training images.
        """

    def remarks(self) -> Iterable[str]:
        """Lines for the log about the task just learned, each beginning with a name and a colon.

        The log of a run has the first line of each name. By default they are those of all parts.
        """
        for part in self.modules():
            if part is not self and (remarks := getattr(part, "remarks", None)) is not None:
                yield from remarks()

    def aligned(self) -> Sequence[AlignableClassifier]:
        """The classifiers that are retrained on class statistics after each task from the second
        on.
        """
        return [self] if self.align else []

    def recorded(self) -> Sequence[AlignableClassifier]:
        """Whose class statistics are recorded after each task: what is aligned, unless end_task has
        recorded them, and what needs them otherwise.
        """
        return self.aligned()

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        """Classify samples of what is remembered of each class, the same ones at every call.

        Args:
            count: samples of each Gaussian.

        Returns:
            Their logits; None where nothing is remembered.
        """
        labels, mean, deviation = self.statistics.gaussians()
        if not len(labels):
            return None
        noise = class_noise(labels, count, mean.shape[-1]).to(mean)
        features = drawn(mean, deviation, noise)
        return Recollection(
            self.classify(features.flatten(0, 1)),
            labels.repeat_interleave(count),
            f"{count} samples of each class's statistics",
        )

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """How near images are to what is remembered of each class.

        Args:
            features: (B, C), those of `features`.

        Returns:
            The cosine of feature and mean feature of each class, (B, num_classes), minus infinity
            for classes of which no mean is remembered; None where there is none at all.
        """
        labels, means, _ = self.statistics.gaussians()
        return mean_cosines(features, labels, means, self.num_classes)

    @property
    def shares_sums(self) -> bool:
        """Whether it keeps sums over the images of all classes, out of which `withdraw` can take
        those of a class.
        """
        return False

    def withdraw(self, label: int, features: Tensor | None) -> None:
        """Prepare for the removal of a class's rows: take its images out of what classes share.

        Args:
            label: the class.
            features: (n, C) in float64 of all images that it was learned from, if `shares_sums`;
                None where these are not at hand.

        Raises:
            UserError: they are not the images that the class was learned from.
        """

    def trains(self, task: TaskSpan) -> bool:
        """Whether learning a task changes parameters that other tasks' classes use as well, in
        another way than by sums.
        """
        return True

    @classmethod
    def settings_for_tasks(
        cls, settings: Mapping[str, Any], total_tasks: int, more: int
    ) -> dict[str, Any]:
        """The settings with which a method for more tasks keeps what it learned.

        Args:
            settings: the group `method` of the configuration.
            total_tasks: tasks that it was made for.
            more: further tasks.
        """
        return dict(settings)

    def assume_learned(self, tasks: int | None = None) -> None:
        """Classify at the cost after so many tasks, though nothing was learned: costs are counted
        so. A method whose passes at test grow with tasks overrides it. None: after all tasks.
        """

    def own_passes(self, task: TaskSpan) -> int:
        """How many times the images of a task pass through the network in prepare_task and
        end_task together, for plans. A pass is one of task_features().

        By default it is one in each of the two that a subclass defines.
        """
        return self.prepares + (type(self).end_task is not Method.end_task)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups, each with its base rate; the classifier's is last."""
        return [{"params": list(self.classifier.parameters()), "lr": learning_rate}]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        """The trained parameters other than the classifier's: prompts, or the weights of an
        unfrozen backbone.
        """
        return () if self.backbone.frozen else self.backbone.vit.parameters()

    def trained_state(self) -> dict[str, Tensor]:
        """Everything learned or remembered, by name. An unfrozen backbone is part of it, a frozen
        one is not.
        """
        left_out = "backbone." if self.backbone.frozen else ()
        return {
            key: value for key, value in self.state_dict().items() if not key.startswith(left_out)
        }

    def inference_state(self) -> dict[str, Tensor]:
        """The part of trained_state() that evaluation reads: all that is not `learning_only`."""
        left_out = learning_only(self)
        return {
            key: value
            for key, value in self.trained_state().items()
            if not f"{key}.".startswith(left_out)
        }

    def adopted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A stored state as this version writes it; buffers that grow take their stored sizes.

        A module with such buffers, or with another form in earlier versions, has `adopt_state`.
        """
        state = dict(state)
        for name, module in self.named_modules():
            adopt = getattr(module, "adopt_state", None)
            if adopt is not None:
                adopt(state, f"{name}.")
        return state

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore trained_state(); ValueError if a name is missing or unknown."""
        state = self.adopted(state)
        names = self.trained_state().keys()
        if names != state.keys():
            unmatched = sorted(names ^ state.keys())
            raise ValueError(
                f"state does not fit {type(self).__name__}: {', '.join(unmatched[:3])} on one side "
                f"only ({len(unmatched)} in all)"
            )
        self.load_state_dict(state, strict=False)


def learning_only(method: nn.Module) -> tuple[str, ...]:
    """Full names, each with a dot behind it, of the tensors and modules that only learning
    reads.
    """
    names: list[str] = []
    # Experts are registered under two names, and both count.
    for prefix, module in method.named_modules(remove_duplicate=False):
        for base in type(module).__mro__:
            listed = vars(base).get("learning_only", ())
            names += [f"{prefix}.{name}.".removeprefix(".") for name in listed]
    return tuple(names)
