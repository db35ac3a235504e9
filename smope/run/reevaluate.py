"""A run's last row of accuracies evaluated again and held to what the run recorded: for `smope
eval` and `smope audit`.

On the set-up of the run (device, threads, torch, instructions) every accuracy has to come out
equal. On another one images between two classes may fall to either side: MOVED of a task's images,
and at least one, may.
"""

from __future__ import annotations

from dataclasses import dataclass

from smope.run.resume import process
from smope.training.checkpoint import Checkpoint
from smope.training.history import History
from smope.training.trainer import Trainer

MOVED = 0.005
WHOLE = 1e-6  # an accuracy times its number of images is a whole number, to this


@dataclass(frozen=True)
class Again:
    """fresh, recorded: accuracy on each task learned so far, as fractions; images: of each of these
    tasks;
    same_set_up: whether this process computes as the run's did.
    """

    fresh: list[float]
    recorded: list[float]
    images: list[int]
    same_set_up: bool

    @property
    def off(self) -> list[int]:
        """Numbers of the tasks, from 0, whose accuracy is further from what was recorded than it
        may be.
        """
        return [
            task
            for task, (now, then, images) in enumerate(
                zip(self.fresh, self.recorded, self.images, strict=True)
            )
            if abs(now - then) * images > self._allowed(images) + WHOLE
        ]

    def _allowed(self, images: int) -> int:
        return 0 if self.same_set_up else max(1, int(MOVED * images))

    @property
    def rule(self) -> str:
        """How near an accuracy has to be, in words."""
        other = f"within {100 * MOVED:g} % or one image, on another set-up"
        return "exactly, on the set-up of the run" if self.same_set_up else other


def evaluate_again(trainer: Trainer, checkpoint: Checkpoint) -> Again:
    """Evaluate a trainer that `checkpoint`, of a finished task, was restored into on every task
    learned until then.
    """
    done = checkpoint.tasks_done
    seen = trainer.spans[done - 1].stop
    fresh = [trainer.accuracy(index, seen) for index in range(done)]
    recorded = History.read(checkpoint.history, checkpoint.path).accuracy_matrix[-1]
    images = [len(task.test) for task in trainer.stream.tasks[:done]]
    return Again(
        fresh, recorded, images, checkpoint.context.get("process") == process(trainer.device)
    )
