"""Evaluates the last row of a run's accuracy matrix again, for `smope eval` and `smope audit`.

With the device, threads, torch and processor instructions of the run, every accuracy must come out
equal. With others, an image between two classes may fall to either side, so LARGEST_MOVED_SHARE of
a task's images may change, and at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

from smope.run.resume import process
from smope.training.checkpoint import Checkpoint
from smope.training.history import History
from smope.training.trainer import Trainer

LARGEST_MOVED_SHARE = 0.005
# An accuracy times its number of images is a whole number up to this.
IMAGE_COUNT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reevaluation:
    """Accuracies evaluated again, beside those that the run recorded.

    Attributes:
        fresh: accuracy on each task learned so far, evaluated now, as fractions.
        recorded: the same from the run.
        images: test images of each of these tasks.
        same_setup: whether this process computes as the run's did.
    """

    fresh: list[float]
    recorded: list[float]
    images: list[int]
    same_setup: bool

    @property
    def differing_tasks(self) -> list[int]:
        """Numbers of the tasks, from 0, whose accuracy differs by more than is allowed."""
        rows = enumerate(zip(self.fresh, self.recorded, self.images, strict=True))
        return [
            task
            for task, (fresh, recorded, images) in rows
            if abs(fresh - recorded) * images > self._allowed(images) + IMAGE_COUNT_TOLERANCE
        ]

    def _allowed(self, images: int) -> int:
        """How many of so many images may be classified differently."""
        return 0 if self.same_setup else max(1, int(LARGEST_MOVED_SHARE * images))

    @property
    def rule(self) -> str:
        """What is allowed, in words."""
        if self.same_setup:
            return "exactly, on the set-up of the run"
        return f"within {100 * LARGEST_MOVED_SHARE:g} % or one image, on another set-up"


def evaluate_again(trainer: Trainer, checkpoint: Checkpoint) -> Reevaluation:
    """Evaluate on every task learned until a checkpoint.

    Args:
        trainer: the checkpoint was restored into its method.
        checkpoint: one at the end of a task.

    Returns:
        The accuracies of now and of the run.
    """
    done = checkpoint.tasks_done
    seen_classes = trainer.spans[done - 1].stop
    return Reevaluation(
        fresh=[trainer.accuracy(index, seen_classes) for index in range(done)],
        recorded=History.read(checkpoint.history, checkpoint.path).accuracy_matrix[-1],
        images=[len(task.test) for task in trainer.stream.tasks[:done]],
        same_setup=checkpoint.context.get("process") == process(trainer.device),
    )
