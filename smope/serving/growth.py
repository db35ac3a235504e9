"""What an artefact says about learning, and the artefact with room for more classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from smope.config.config import checked_group
from smope.errors import UserError
from smope.methods.base import Method
from smope.run.artefact import Artefact
from smope.run.build import check_target, settings_for_tasks
from smope.serving.packing import not_learnable
from smope.streams.next_task import EarlierTask
from smope.streams.pixels.transforms import Training
from smope.training.settings import TrainerSettings


@dataclass(frozen=True)
class LearningRecord:
    """`learning` of an artefact, checked.

    Attributes:
        settings: of training.
        crop_scale: how training images are cropped, as is `flip`; see transforms.Training.
        tasks: those learned so far.
    """

    settings: TrainerSettings
    crop_scale: Sequence[float] | None
    flip: bool
    tasks: tuple[EarlierTask, ...]

    def training(self, image_size: int, eval_crop: float) -> Training:
        """How training images are shown.

        Args:
            image_size: pixels of a side.
            eval_crop: see transforms.Training.
        """
        return Training(image_size, self.crop_scale, self.flip, eval_crop)


def learning_record(artefact: Artefact, device: str) -> LearningRecord:
    """What an artefact says about learning.

    Args:
        artefact: a learnable one.
        device: where training computes.

    Raises:
        UserError: it is not learnable, or what it says makes no sense.
    """
    learning = artefact.learning
    if learning is None:
        raise not_learnable(artefact)
    try:
        elsewhere = {"device": device, "compile": False, "images_on_device": "auto"}
        trainer = {**learning["trainer"], **elsewhere}
        check_target(trainer, TrainerSettings)
        settings = TrainerSettings(**checked_group("trainer", trainer))
        tasks = tuple(_task(task, len(artefact.class_names)) for task in learning["tasks"])
        crop_scale, flip = (learning["augmentation"][key] for key in ("crop_scale", "flip"))
        Training(artefact.image_size or 1, crop_scale, bool(flip), artefact.eval_crop)
        if len(tasks) != artefact.tasks_done:
            raise ValueError(f"{len(tasks)} tasks instead of {artefact.tasks_done}")
    except (KeyError, TypeError, ValueError) as error:  # UserError is a ValueError
        raise UserError(f"model: its record of learning makes no sense ({error})") from error
    return LearningRecord(settings, crop_scale, bool(flip), tasks)


def _task(values: dict[str, Any], num_classes: int) -> EarlierTask:
    classes, images = values["classes"], values["images"]
    if not all(type(label) is int and 0 <= label < num_classes for label in classes):
        raise ValueError("labels of a task")
    if type(images) is not int or images < 0:
        raise ValueError("images of a task")
    return EarlierTask(tuple(sorted(classes)), images)


def with_room(artefact: Artefact, new_names: Sequence[str]) -> Artefact:
    """The artefact of a method for more classes and one more task; its state is not changed.

    Args:
        artefact: the model.
        new_names: of the classes.
    """
    check_target(artefact.method, Method)
    class_names = [*artefact.class_names, *new_names]
    more = max(0, artefact.tasks_done + 1 - artefact.total_tasks)
    return replace(
        artefact,
        class_names=class_names,
        num_classes=max(artefact.num_classes, len(class_names)),
        total_tasks=artefact.total_tasks + more,
        method=settings_for_tasks(artefact.method, artefact.total_tasks, more),
    )
