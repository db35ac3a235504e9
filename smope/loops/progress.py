"""How far a learner is: its tasks, and the phase of the current one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from smope.loops import refusals
from smope.loops.class_ids import ClassIds
from smope.methods.base import Phase, TaskSpan


@dataclass
class Progress:
    """The tasks of a learner.

    Attributes:
        ids: the class ids of all tasks so far.
        spans: the tasks so far, the current one too.
        learning: whether the last of them has begun and not ended.
        half_ended: whether an end_task has stopped with an error.
        phase: of the current task; None where it takes no steps.
        chose_phase: whether the loop takes the phases of the task one by one.
    """

    ids: ClassIds
    spans: list[TaskSpan] = field(default_factory=list)
    learning: bool = False
    half_ended: bool = False
    phase: Phase | None = None
    chose_phase: bool = False

    def next_span(self, ids: Sequence[int]) -> TaskSpan:
        """The task of these class ids, if it began now."""
        return self.ids.span(len(self.spans), ids)

    def begin(self, span: TaskSpan, ids: Sequence[int]) -> None:
        """Begin a task.

        Args:
            span: as next_span() gives it.
            ids: its class ids, as ids.checked() gives them.
        """
        self.ids.add(ids)
        self.spans.append(span)
        self.learning, self.chose_phase = True, False

    def end(self) -> None:
        """The current task has ended."""
        self.learning, self.half_ended, self.phase = False, False, None

    def current(self, name: str) -> TaskSpan:
        """The current task; UserError where there is none, for the call of this name."""
        if not self.learning:
            raise refusals.no_task(name)
        if self.half_ended:
            raise refusals.half_ended(name)
        return self.spans[-1]

    def refuse_without_classes(self) -> None:
        """UserError before the first task."""
        if not self.spans:
            raise refusals.no_classes()

    def record(self) -> dict[str, Any]:
        """It as plain values, which of_record() reads."""
        return {
            "tasks": [[self.ids.of_labels[label] for label in s.classes] for s in self.spans],
            "learning": self.learning,
            "phase": self.phase and astuple(self.phase),
            "chose_phase": self.chose_phase,
        }

    @classmethod
    def of_record(cls, record: dict[str, Any], num_classes: int) -> Progress:
        """What record() gave.

        Args:
            record: plain values.
            num_classes: N.
        """
        progress = cls(ClassIds(num_classes))
        for ids in record["tasks"]:
            progress.begin(progress.next_span(ids), ids)
        progress.learning, progress.chose_phase = record["learning"], record["chose_phase"]
        if progress.learning and record["phase"]:
            progress.phase = Phase(*record["phase"])
        return progress
