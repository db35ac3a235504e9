"""What is audited: a run rebuilt from its directory, in the state after its last finished task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smope.config.config import Config
from smope.config.identity import flatten, may_move
from smope.errors import UserError
from smope.methods.base import Method
from smope.run.prepare import prepare
from smope.run.resume import process
from smope.storage.run_directory import RunDirectory, tasks_done
from smope.storage.versions import installed_versions
from smope.streams.pixels.transforms import collate, resample
from smope.training.checkpoint import Checkpoint, last_checkpoint, restore
from smope.training.trainer import Trainer

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages

AUDIT_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check: `text` says what was compared, `numbers` holds what was measured
    and allowed.

    passed: None where the check cannot be made of this run.
    """

    check: str
    passed: bool | None
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A run in its final state. record: run.json; checkpoint: the state's file; sample: positions
    of the test images that are looked at one by one, of each task; strict: a single shared image is
    too many.
    """

    trainer: Trainer
    record: dict[str, Any]
    checkpoint: Checkpoint
    sample: tuple[tuple[int, ...], ...]
    strict: bool = False

    @property
    def method(self) -> Method:
        return self.trainer.method

    @property
    def tasks_done(self) -> int:
        return self.checkpoint.tasks_done

    @property
    def seen_classes(self) -> int:
        """How many classes the state was trained on."""
        return self.trainer.spans[self.tasks_done - 1].stop

    def tests(self) -> list[TaskImages]:
        """The images that each task learned so far is evaluated on."""
        return [task.test for task in self.trainer.stream.tasks[: self.tasks_done]]

    def sampled(self) -> Tensor:
        """The sample as (n, 3, S, S) float32 in [0, 1], task after task."""
        parts = [
            images.unresampled[index]
            for images, chosen in zip(self.tests(), self.sample, strict=True)
            for index in chosen
        ]
        shown = [resample(collate([part]), self.method.backbone.image_size)[0] for part in parts]
        return torch.stack(shown).to(self.trainer.device)


def choose_sample(sizes: Sequence[int], wanted: int) -> tuple[tuple[int, ...], ...]:
    """Positions in tasks of `sizes` images, evenly spaced, about `wanted` in all and at least one
    a task; 0: all.
    """
    share = max(1, wanted // len(sizes)) if wanted else max(sizes)
    chosen = []
    for size in sizes:
        count = min(size, share)
        chosen.append(tuple(index * size // count for index in range(count)))
    return tuple(chosen)


def open_subject(
    directory: RunDirectory, config: Config, *, images: int, strict: bool
) -> tuple[Subject | None, Verdict]:
    """The run, and whether its parts fit together; None where they do not, so that nothing else can
    be looked at.

    UserError where there is no run yet that could be audited.
    """
    record, unreadable = directory.read_record(), list[str]()
    checkpoint = last_checkpoint(
        directory, lambda _, error: unreadable.append(str(error)), boundary=True
    )
    if checkpoint is None or not record:
        what = "no finished task's checkpoint that can be read" if record else "no run.json"
        raise UserError(
            f"RUN={directory.path}: holds {what}; train on with: smope train "
            f"resume={directory.path}"
        )
    _, trainer = prepare(config)
    problems = [*unreadable, *_disagreements(record, config, checkpoint)]
    try:
        restore(trainer.method, trainer.stream, checkpoint)
    except UserError as error:
        return None, Verdict("state", False, "; ".join([str(error), *problems]))
    sizes = [len(task.test) for task in trainer.stream.tasks[: checkpoint.tasks_done]]
    subject = Subject(trainer, record, checkpoint, choose_sample(sizes, images), strict)
    text = f"{checkpoint.path.name}, config.yaml and run.json belong together, and to this backbone and these images"
    if checkpoint.tasks_done < len(trainer.spans):
        text += f"; {checkpoint.tasks_done} of {len(trainer.spans)} tasks are learned (run.json: {record['status']})"
    return subject, Verdict("state", not problems, "; ".join(problems) or text)


def _disagreements(record: dict[str, Any], config: Config, checkpoint: Checkpoint) -> Iterator[str]:
    """What run.json, config.yaml and the checkpoint say differently."""
    told = tasks_done(record)
    if told != checkpoint.tasks_done:
        yield f"run.json has results of {told} tasks, the last checkpoint that can be read of {checkpoint.tasks_done}"
    saved = flatten(config.as_dict())
    for what, values in (
        ("run.json", record["config"]),
        ("the checkpoint", checkpoint.context.get("config", {})),
    ):
        odd = [
            key
            for key, value in flatten(values).items()
            if saved.get(key) != value and not _is_place(key, saved)
        ]
        if odd:
            yield f"config.yaml and {what} differ in {', '.join(odd)}"
    for key, theirs in (
        ("backbone", checkpoint.backbone_sha256),
        ("stream", checkpoint.stream_identity),
    ):
        ours = record[key]["sha256" if key == "backbone" else "identity"]
        if ours != theirs:
            yield f"run.json names another {key} ({ours[:12]}) than the checkpoint ({theirs[:12]})"


def _is_place(key: str, settings: Mapping[str, Any]) -> bool:
    return may_move(key, settings) or key in ("run_dir", "resume")


def document(verdicts: Sequence[Verdict], subject: Subject | None, strict: bool) -> dict[str, Any]:
    """What audit.json holds."""
    return {
        "format_version": AUDIT_FORMAT_VERSION,
        "passed": all(verdict.passed is not False for verdict in verdicts),
        "strict": strict,
        "tasks_done": subject.tasks_done if subject else None,
        "tasks": len(subject.trainer.spans) if subject else None,
        "images_compared": sum(map(len, subject.sample)) if subject else 0,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "process": process(subject.trainer.device) if subject else None,
        "versions": installed_versions(),
    }
