"""Teaching a trained model more classes, from a learnable artefact and the new images alone.

The new images are the next task of the stream that the model was trained on. The one training loop
learns them, from the state that the artefact holds, and computes what it would have computed in a
run that had these images from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smope.console.progress import Progress
from smope.errors import UserError
from smope.methods.base import Method, TaskSpan
from smope.run.artefact import Artefact, restore_all
from smope.run.memory_advice import memory_advised
from smope.run.record_check import refusing_nonsense
from smope.seeding import stable_seed
from smope.serving.growth import learning_record, with_room
from smope.serving.lessons import Lesson
from smope.serving.lineage import entry
from smope.serving.rebuild import new_method
from smope.streams.layouts.names import warning_of
from smope.streams.next_task import NewImages, evaluation_images, next_task
from smope.training.auto import AUTO, resolve
from smope.training.device import prepare_process
from smope.training.outputs import Outputs
from smope.training.precision import evaluated, full_precision
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer
from smope.version import __version__

SAMPLES = 100  # of each class, where there are no validation images


@dataclass(frozen=True)
class Accuracies:
    """Accuracies before or after a lesson, as fractions; None where there was nothing to classify.

    Attributes:
        measured_on: the images or samples, for people; "" where there were none.
        old: of the classes that the model knew before.
        new: of the others.
    """

    measured_on: str
    old: float | None
    new: float | None


class Pupil:
    """A model that is about to learn: a method with room for the new classes, and its trainer.

    Args:
        artefact: the model; it stays as it is.
        lesson: what it will learn.
        device: where it learns.
        weights: where the backbone's weights are now; None for where the run read them.
        quiet: whether to print nothing meanwhile.

    Attributes:
        trainer: its last task is the lesson.
        notes: settings that differ from the run's, and other remarks, for people.

    Raises:
        UserError: the artefact is not learnable, or its method cannot learn the lesson.
    """

    def __init__(
        self,
        artefact: Artefact,
        lesson: Lesson,
        device: torch.device,
        weights: str | None = None,
        quiet: bool = True,
    ) -> None:
        record = learning_record(artefact, str(device))
        self._parent, self._lesson = artefact, lesson
        self._grown = grown = with_room(artefact, lesson.new)
        prepare_process(record.settings, device)
        dtype = full_precision(artefact.precision)
        seed = stable_seed(artefact.seed, "initialisation", artefact.tasks_done)
        method = new_method(grown, device, dtype, weights, seed=seed)
        _refuse_revisiting(method)
        restore_all(method, artefact)
        self._training = record.training(method.backbone.image_size, artefact.eval_crop)
        labels = [grown.class_names.index(name) for name in lesson.class_names]
        new = NewImages(lesson.images, labels, lesson.content_hash)
        stream = next_task(new, record.tasks, grown.class_names, self._training, seed=artefact.seed)
        settings, self.notes = _fitted(record.settings, method, artefact, len(lesson.images))
        self.trainer = Trainer(method, stream, settings, seed=artefact.seed, device=device)
        self.trainer.outputs = Outputs(progress=Progress(None, quiet=quiet))
        if spelling := warning_of(grown.class_names, "classes", lesson.new):
            self.notes.append(spelling)
        if self.steps and len(lesson.class_names) == 1:
            self.notes.append(
                "a class by itself has no other to be told from while it is trained: teach several "
                "at a time, or use a method such as ridge"
            )

    @property
    def span(self) -> TaskSpan:
        """The lesson as a task."""
        return self.trainer.spans[-1]

    @property
    def steps(self) -> int:
        """Training steps of the lesson; 0 for a method that takes none."""
        return self.trainer.steps(self.span)

    def learn(self) -> Artefact:
        """Learn the lesson, and return the artefact of what is known then."""
        trainer, span = self.trainer, self.span
        # statistics of a file may be of no images at all
        with (
            refusing_nonsense(torch.linalg.LinAlgError),  # pyright: ignore[reportPrivateImportUsage]
            memory_advised(trainer),
            trainer.interruption.watching(),
        ):
            before = self._accuracies(span.start)
            trainer.learn_task(span)
        after = self._accuracies(span.stop)
        task = {"classes": list(span.classes), "images": len(self._lesson.images)}
        assert self._grown.learning is not None
        learning = {**self._grown.learning, "tasks": [*self._grown.learning["tasks"], task]}
        learned = entry(
            "learn",
            self._parent,
            classes=self._lesson.counts,
            more_images=list(self._lesson.known),
            images_sha256=self._lesson.content_hash,
            accuracy={
                "measured_on": after.measured_on,
                "old_before": before.old,
                "old_after": after.old,
                "new": after.new,
            },
        )
        state = trainer.method.trained_state()
        return replace(
            self._grown,
            tasks_done=span.index + 1,
            state={key: value.detach().cpu().clone() for key, value in state.items()},
            learning=learning,
            lineage=[*self._parent.lineage, learned],
            smope_version=__version__,
            file=None,
        )

    def _accuracies(self, seen: int) -> Accuracies:
        """Of the method as it is, the first `seen` classes competing."""
        answers = self._validated() if self._lesson.validation else self._recollected()
        if answers is None:
            return Accuracies("", None, None)
        logits, labels, measured_on = answers
        old, known = labels < self.span.start, labels < seen
        right = logits[:, :seen].argmax(-1) == labels
        return Accuracies(measured_on, _share(right[old]), _share(right[known & ~old]))

    def _validated(self) -> tuple[Tensor, Tensor, str]:
        """Logits and labels of the validation images."""
        trainer, validation = self.trainer, self._lesson.validation
        assert validation is not None
        images = evaluation_images(validation, self._training)
        method, logits, all_labels = trainer.method.eval(), [], []
        for batch, labels in trainer.loader.of_test(images):
            logits.append(evaluated(method, batch, trainer.settings.precision))
            all_labels.append(labels)
        return torch.cat(logits), torch.cat(all_labels), f"{len(images)} validation images"

    def _recollected(self) -> tuple[Tensor, Tensor, str] | None:
        """Logits and labels of what the method remembers of its classes."""
        recollection = self.trainer.method.eval().recollect(SAMPLES)
        if recollection is None:
            return None
        origin = recollection.origin
        if self.span.index and not self.trainer.method.features_are_final(
            self.trainer.spans[self.span.index - 1]
        ):
            origin += ", which do not show how training changes features"
        return recollection.logits, recollection.labels, origin


def _share(right: Tensor) -> float | None:
    return right.double().mean().item() if len(right) else None


def _refuse_revisiting(method: Method) -> None:
    if method.revisits:
        raise UserError(
            f"model: {type(method).__name__} trains on the images of all tasks again, and a model "
            "holds none; train a run with all images"
        )


def _fitted(
    settings: TrainerSettings, method: Method, artefact: Artefact, images: int
) -> tuple[TrainerSettings, list[str]]:
    """The run's settings, with a smaller batch and fewer frozen steps where a lesson is too short
    for them; and what has changed, for people.
    """
    span = TaskSpan(artefact.tasks_done, 0, 1)
    phases = method.phases(span, settings.epochs)
    if not phases:
        return settings, []
    values: dict[str, Any] = {
        "batch_size": settings.batch_size if images >= settings.batch_size else AUTO,
        "frozen_steps": settings.frozen_steps,
    }
    steps = settings.iter_step or images // resolve(values, images).get(
        "batch_size", settings.batch_size
    )
    shortest = steps * min(phase.schedule_epochs for phase in phases)
    if settings.schedule == "warm_frozen_cosine" and settings.frozen_steps >= shortest:
        values["frozen_steps"] = AUTO
    resolved = resolve(values, images)
    notes = [
        f"for {images} images trainer.{name}={value} instead of {getattr(settings, name)}"
        for name, value in resolved.items()
    ]
    return replace(settings, **resolved), notes
