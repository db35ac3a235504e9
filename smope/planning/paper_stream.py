"""A stream of which only the sizes are known, to plan a run without its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from smope.errors import UserError
from smope.streams.stream import Stream, Task

TEST_IMAGES_OF_A_CLASS = 50  # as in ImageNet-1k


@dataclass(frozen=True)
class PaperStream:
    """Sizes of a class-incremental stream.

    Attributes:
        classes: of all tasks together, divided evenly.
        images: for training, divided evenly.
        tasks: how many.
        test_images: None: TEST_IMAGES_OF_A_CLASS for each class.
    """

    classes: int
    images: int
    tasks: int
    test_images: int | None = None

    def check(self) -> None:
        """UserError if a number is below what one task or one class needs."""
        for name, value, least, why in (
            ("--tasks", self.tasks, 1, "1"),
            ("--classes", self.classes, self.tasks, "one for each of --tasks"),
            ("--images", self.images, self.classes, "one for each of --classes"),
            ("--test-images", self._tested, self.classes, "one for each of --classes"),
        ):
            if value < least:
                raise UserError(f"{name} must be at least {least:,} ({why}), got {value:,}")

    @property
    def _tested(self) -> int:
        if self.test_images is None:
            return TEST_IMAGES_OF_A_CLASS * self.classes
        return self.test_images

    def stream(self) -> Stream:
        """The stream; its images have a number and nothing else."""
        names = tuple(f"class {number}" for number in range(self.classes))
        tasks = []
        for index in range(self.tasks):
            start, stop = self._part(self.classes, index), self._part(self.classes, index + 1)
            train, test = (
                cast(Any, range(self._part(number, index + 1) - self._part(number, index)))
                for number in (self.images, self._tested)
            )
            labels = tuple(range(start, stop))
            tasks.append(
                Task(index, f"task {index + 1}", labels, names[start:stop], train, train, test)
            )
        return Stream("paper", tuple(range(self.classes)), names, tuple(tasks), "", cast(Any, None))

    def _part(self, number: int, index: int) -> int:
        """The first of `number` things that belongs to the task `index`."""
        return number * index // self.tasks
