"""A run rebuilt from its directory, in the state after its last finished task."""

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
from smope.storage.commands import resume_command
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
    """The outcome of one check.

    Attributes:
        check: its name.
        passed: None if the check is not possible for this run.
        text: what was compared, in words.
        numbers: what was measured and what was allowed.
    """

    check: str
    passed: bool | None
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RestoredRun:
    """A run in its final state.

    Attributes:
        trainer: its method has the state of `checkpoint`.
        record: run.json.
        checkpoint: the last one at the end of a task.
        sample: for each task, positions of the test images that are compared one by one.
        strict: do not allow a single image in both training and test.
    """

    trainer: Trainer
    record: dict[str, Any]
    checkpoint: Checkpoint
    sample: tuple[tuple[int, ...], ...]
    strict: bool = False

    @property
    def method(self) -> Method:
        """The method in its final state."""
        return self.trainer.method

    @property
    def tasks_done(self) -> int:
        """How many tasks are learned."""
        return self.checkpoint.tasks_done

    @property
    def seen_classes(self) -> int:
        """How many classes were seen in these tasks."""
        return self.trainer.spans[self.tasks_done - 1].stop

    def tests(self) -> list[TaskImages]:
        """The test images of each task learned so far."""
        return [task.test for task in self.trainer.stream.tasks[: self.tasks_done]]

    def sampled(self) -> Tensor:
        """The sampled images, (n, 3, S, S) float32 in [0, 1], task after task."""
        parts = [
            images.unresampled[index]
            for images, positions in zip(self.tests(), self.sample, strict=True)
            for index in positions
        ]
        size = self.method.backbone.image_size
        resized = [resample(collate([part]), size)[0] for part in parts]
        return torch.stack(resized).to(self.trainer.device)


def choose_sample(sizes: Sequence[int], wanted: int) -> tuple[tuple[int, ...], ...]:
    """Choose evenly spaced images of each task.

    Args:
        sizes: test images of each task.
        wanted: about so many in all, at least one of each task; 0: all.

    Returns:
        For each task, positions among its test images.
    """
    share = max(1, wanted // len(sizes)) if wanted else max(sizes)
    sample = []
    for size in sizes:
        count = min(size, share)
        sample.append(tuple(index * size // count for index in range(count)))
    return tuple(sample)


def restore_run(
    directory: RunDirectory, config: Config, *, images: int, strict: bool
) -> tuple[RestoredRun | None, Verdict]:
    """Rebuild a run and check that its parts fit together.

    Args:
        directory: the run.
        config: its configuration.
        images: about so many test images are compared one by one; 0: all.
        strict: see RestoredRun.

    Returns:
        The run, or None if its state does not fit and nothing else can be checked; and the verdict.

    Raises:
        UserError: there is no finished task to audit.
    """
    record, unreadable = directory.read_record(), list[str]()
    checkpoint = last_checkpoint(
        directory, lambda _, error: unreadable.append(str(error)), boundary=True
    )
    if checkpoint is None or not record:
        lacking = "no finished task's checkpoint that can be read" if record else "no run.json"
        raise UserError(
            f"RUN={directory.path}: holds {lacking}; continue with: "
            f"{resume_command(directory.path)}"
        )
    _, trainer = prepare(config)
    problems = [*unreadable, *_disagreements(record, config, checkpoint)]
    try:
        restore(trainer.method, trainer.stream, checkpoint)
    except UserError as error:
        return None, Verdict("state", False, "; ".join([str(error), *problems]))
    sizes = [len(task.test) for task in trainer.stream.tasks[: checkpoint.tasks_done]]
    run = RestoredRun(trainer, record, checkpoint, choose_sample(sizes, images), strict)
    text = (
        f"{checkpoint.path.name}, config.yaml and run.json belong together, and to this backbone "
        f"and these images"
    )
    done, tasks = checkpoint.tasks_done, len(trainer.spans)
    if done < tasks:
        text += f"; {done} of {tasks} tasks are learned (run.json: {record['status']})"
    return run, Verdict("state", not problems, "; ".join(problems) or text)


def _disagreements(record: dict[str, Any], config: Config, checkpoint: Checkpoint) -> Iterator[str]:
    """Where run.json, config.yaml and the checkpoint disagree, one sentence each."""
    recorded = tasks_done(record)
    if recorded != checkpoint.tasks_done:
        yield (
            f"run.json has results of {recorded} tasks, the last checkpoint that can be read of "
            f"{checkpoint.tasks_done}"
        )
    saved = flatten(config.as_dict())
    configurations = {
        "run.json": record["config"],
        "the checkpoint": checkpoint.context.get("config", {}),
    }
    for file, values in configurations.items():
        differing = [
            key
            for key, value in flatten(values).items()
            if saved.get(key) != value and not _may_differ(key, saved)
        ]
        if differing:
            yield f"config.yaml and {file} differ in {', '.join(differing)}"
    identities = {
        "backbone": (record["backbone"]["sha256"], checkpoint.backbone_sha256),
        "stream": (record["stream"]["identity"], checkpoint.stream_identity),
    }
    for key, (ours, theirs) in identities.items():
        if ours != theirs:
            yield f"run.json names another {key} ({ours[:12]}) than the checkpoint ({theirs[:12]})"


def _may_differ(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a key may change between the parts of a run: where things are, for instance."""
    return may_move(key, settings) or key in ("run_dir", "resume")


def document(verdicts: Sequence[Verdict], run: RestoredRun | None, strict: bool) -> dict[str, Any]:
    """The content of audit.json.

    Args:
        verdicts: of all checks.
        run: None if it could not be restored.
        strict: see RestoredRun.

    Returns:
        Plain values.
    """
    return {
        "format_version": AUDIT_FORMAT_VERSION,
        "passed": all(verdict.passed is not False for verdict in verdicts),
        "strict": strict,
        "tasks_done": run.tasks_done if run else None,
        "tasks": len(run.trainer.spans) if run else None,
        "images_compared": sum(map(len, run.sample)) if run else 0,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "process": process(run.trainer.device) if run else None,
        "versions": installed_versions(),
    }
