"""The contract between a method and the one training loop (training/trainer.py).

Shapes: B batch, S image side, C feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.experts.bank import ExpertBank
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.class_statistics import ClassStatistics
from smope.routers.base import Routing

Batches = Callable[[Literal["train", "plain"]], Iterator[tuple[Tensor, Tensor]]]
"""Batches of the current task's training images and labels, on the method's device: "train" is the
training loader as it is (shuffled, augmented, incomplete last batch dropped), "plain" every image
once, in order, through the evaluation transform. Of several processes each is given its share of
every batch: see smope/distributed/collectives.py.
"""


@dataclass(frozen=True)
class TaskSpan:
    """The task at hand: its number, and its classes among those seen so far.

    Labels are numbered as classes first appear: 0..start-1 were seen in earlier tasks,
    start..stop-1 are new.
    classes: the labels of this task's training images, ascending; left out, just the new ones, as
    in a class-incremental stream. Where domains change, all classes come again and none is new:
    start = stop.
    """

    index: int
    start: int
    stop: int
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            object.__setattr__(self, "classes", tuple(range(self.start, self.stop)))


@dataclass(frozen=True)
class Card:
    """Where a method is from and what its paper says that it costs; `smope methods` shows it beside
    our own counts.

    published_parameters: millions of trained parameters, classifier included, with ViT-B/16 and 200
        classes.
    published_gflops:     of one training and one test image, in the convention of that paper.
    note:                 what a reader of the comparison has to know, such as what the published
                          number counted.
    """

    source: str
    note: str = ""
    published_parameters: float | None = None
    published_gflops: tuple[float, float] | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own.

    Its schedule is its own as well, or, with `of`, epochs `start` and after of a schedule over `of`
    epochs.
    """

    name: str
    epochs: int
    start: int = 0
    of: int | None = None

    @property
    def schedule_epochs(self) -> int:
        return self.of or self.epochs


class Coupling(NamedTuple):
    """A setting, as key=value, by which what an image adds to the loss depends on the other images
    of its batch, and one by which it does not.
    """

    setting: str
    instead: str


class Aligned(Protocol):
    """A classifier that the trainer retrains on remembered class statistics: a method, or a part
    of one.
    """

    @property
    def statistics(self) -> ClassStatistics: ...

    @property
    def classifier(self) -> nn.Module: ...

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor: ...

    def classify(self, features: Tensor) -> Tensor: ...


class Method(nn.Module):
    """A backbone, frozen unless a subclass unfreezes it, a linear classifier over all classes, and
    what else it adds.

    The trainer calls, for each task: begin_task; for each of phases(): begin_phase, then losses()
    on every batch; end_task; and, for each of recorded(), it records class statistics, and retrains
    the classifier on them where it is one of aligned(). What a method remembers is a Parameter or a
    buffer, so that trained_state() is all of it.

    learning_only: names of the tensors and modules in it that only learning reads, which what is
    kept to classify with (inference_state) does without. Any module inside a method may say so of
    its own; a subclass adds to its bases'.

    revisits: train on the images of all tasks so far, not of the current one alone. A task then has
    as many steps as without, and each epoch draws its images anew from all those seen.

    Several processes, each with a share of every batch, compute what one does if losses are means
    over images plus terms that no image has part in, and end_task learns from
    smope.distributed.collectives's gathered() rows or summed() counts. What is otherwise says so in
    needs_whole_batch or needs_one_process. Random numbers drawn for each image would be others.
    """

    card: ClassVar[Card]
    learning_only: ClassVar[tuple[str, ...]] = ("statistics",)
    revisits: ClassVar[bool] = False

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

    @property
    def experts(self) -> list[ExpertBank]:
        """The experts of each prompted block, where a method has any."""
        return []

    @property
    def routings(self) -> list[Routing]:
        """The decisions of the last forward pass, one a prompted block, without gradient; none
        without experts.
        """
        return []

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> features (B, C).

        Without prompts a frozen backbone builds no graph.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            return self.backbone(images)

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        """features() of images that are known to belong to `task`: what class statistics describe."""
        return self.features(images)

    def classify(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> logits (B, num_classes); only classes seen so far mean
        anything.
        """
        return self.classify(self.features(images))

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        """UserError, before anything is trained, for a stream that the method cannot learn."""

    def needs_one_process(self) -> Coupling | None:
        """What keeps a batch from being divided among processes."""
        return None

    def needs_whole_batch(self) -> Coupling | None:
        """What keeps a batch from being taken in parts, one after the other."""
        return self.needs_one_process()

    def begin_task(self, task: TaskSpan) -> None:
        """Called before the first phase of a task."""

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        """The phases of this task, in order."""
        return [Phase("train", epochs)]

    def begin_phase(self, phase: Phase) -> None:
        """Called before the first step of a phase."""

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        """Named scalar losses of one batch; their sum is minimised. labels (B,), all of them in
        task.classes, or below task.stop for a method that revisits earlier tasks.
        """
        return {"cross_entropy": task_cross_entropy(self(images), labels, task.classes)}

    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        """Called in evaluation mode, without gradients, after the last phase of a task, and under
        the autocast of trainer.precision: what sums over images does so in float64, which autocast
        leaves alone.
        """

    def aligned(self) -> Sequence[Aligned]:
        """What has its classifier aligned on its class statistics, after each task from the second
        on.
        """
        return [self] if self.align else []

    def recorded(self) -> Sequence[Aligned]:
        """What has its class statistics recorded after each task: what is aligned, and what else
        needs them.
        """
        return self.aligned()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups, each with its base rate."""
        return [{"params": list(self.classifier.parameters()), "lr": learning_rate}]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        """The trained parameters that are not the classifier's: prompts, or the weights of an
        unfrozen backbone.
        """
        return () if self.backbone.frozen else self.backbone.vit.parameters()

    def trained_state(self) -> dict[str, Tensor]:
        """Everything learned or remembered, by name; a frozen backbone is not part of it, an
        unfrozen one is.
        """
        left_out = "backbone." if self.backbone.frozen else ()
        return {
            key: value for key, value in self.state_dict().items() if not key.startswith(left_out)
        }

    def inference_state(self) -> dict[str, Tensor]:
        """What of trained_state() evaluation reads: all that is not `learning_only`, here or in a
        module inside.
        """
        left_out = learning_only(self)
        return {
            key: value
            for key, value in self.trained_state().items()
            if not f"{key}.".startswith(left_out)
        }

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore trained_state(); every name must be there and no other."""
        own = self.trained_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise ValueError(
                f"state does not fit {type(self).__name__}: {', '.join(odd[:3])} on one side only "
                f"({len(odd)} in all)"
            )
        self.load_state_dict(state, strict=False)


def learning_only(method: nn.Module) -> tuple[str, ...]:
    """Full names, each with a dot behind it, of the tensors and modules that only learning reads;
    see Method.
    """
    return tuple(
        f"{prefix}.{name}.".removeprefix(".")
        for prefix, module in method.named_modules(
            remove_duplicate=False
        )  # experts are known by two names
        for base in type(module).__mro__
        for name in vars(base).get("learning_only", ())
    )
