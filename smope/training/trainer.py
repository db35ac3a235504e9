"""The one training loop, for every method, phase and stream."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from smope.errors import UserError
from smope.methods.base import Method, Phase, TaskSpan
from smope.report.progress import Progress
from smope.report.trackers import Tracker
from smope.runs import RunDirectory
from smope.seeding import stable_seed
from smope.streams.base import Stream, Task, TaskImages
from smope.training.alignment import align_classifier
from smope.training.checkpoint import save_checkpoint
from smope.training.history import History
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Takes `method` through the tasks of `stream`.

    Every random number after construction comes from a seed made of `seed` and of what it is for (task, epoch, image),
    so that a run continued from a checkpoint draws what an uninterrupted one would.
    """

    def __init__(
        self,
        method: Method,
        stream: Stream,
        settings: TrainerSettings,
        *,
        seed: int,
        device: torch.device,
        directory: RunDirectory | None = None,
        progress: Progress | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.dtype = torch.float64 if settings.precision == "float64" else torch.float32
        self.method = method.to(device, self.dtype)
        self.stream = stream
        self.settings = settings
        self.seed = seed
        self.device = device
        self.history = History([len(task.test) for task in stream.tasks])
        self.directory = directory
        self.progress = progress or Progress(None, quiet=True)
        self.tracker = tracker or Tracker()
        self.epoch = 0  # of the current task, over all its phases and passes: augmentation and order depend on it
        self.spans = [TaskSpan(task.index, task.classes[0], task.classes[-1] + 1) for task in stream.tasks]
        self._check()

    def _check(self) -> None:
        """What would fail in the middle of a run fails before it starts."""
        for span, task in zip(self.spans, self.stream.tasks, strict=True):
            phases = self._phases(span)
            steps = len(task.train) // self.settings.batch_size
            if phases and steps == 0:
                raise UserError(
                    f"trainer.batch_size={self.settings.batch_size} is larger than the {len(task.train)} training "
                    f"images of task {span.index + 1}, so that no whole batch is left; lower it"
                )
            for phase in phases:
                make_schedule(self.settings, phase.epochs, steps)

    def _phases(self, span: TaskSpan) -> list[Phase]:
        dense = self.settings.epochs // 2 if self.settings.dense_epochs is None else self.settings.dense_epochs
        return self.method.phases(span, self.settings.epochs, dense)

    def steps(self, span: TaskSpan) -> int:
        """Training steps of one task, over all its phases."""
        per_epoch = len(self.stream.tasks[span.index].train) // self.settings.batch_size
        return sum(phase.epochs for phase in self._phases(span)) * per_epoch

    def fit(self, on_task_end: Callable[[], object] = lambda: None) -> History:
        """Train on every task that the history does not hold yet; `on_task_end` is called after each checkpoint."""
        first = len(self.history.accuracy_matrix)
        with self.progress.bar(len(self.spans), "tasks", done=first) as bar:
            for span, task in zip(self.spans[first:], self.stream.tasks[first:], strict=True):
                self._take(span, task)
                on_task_end()
                bar.update()
        return self.history

    def _take(self, span: TaskSpan, task: Task) -> None:
        """One task: learn it, evaluate all tasks so far, write the checkpoint."""
        started = time.perf_counter()
        self._learn(span, task)
        row = self._evaluate(span)
        self.history.accuracy_matrix.append(row)
        self.history.seconds_per_task.append(time.perf_counter() - started)
        self._report(span, row)
        if self.directory is not None:
            save_checkpoint(self.directory, self.method, self.stream, span.index + 1, self.history.as_dict())

    def _learn(self, span: TaskSpan, task: Task) -> None:
        method, self.epoch = self.method, 0
        # For methods that draw from torch's own generator: a task starts from the same state in a resumed run.
        torch.manual_seed(stable_seed(self.seed, "task", span.index))
        with self._timed("train"):
            method.begin_task(span)
            for phase in self._phases(span):
                self._train_phase(span, task, phase)
            method.eval()
            with torch.no_grad(), self._autocast():
                method.end_task(span, lambda kind: self._batches(task, kind))
        if method.align:
            with self._timed("align"):
                self._record_statistics(span, task)
                if span.index > 0:
                    method.train()
                    align_classifier(method, span, self.settings, stable_seed(self.seed, "alignment", span.index))

    def _train_phase(self, span: TaskSpan, task: Task, phase: Phase) -> None:
        method, settings = self.method, self.settings
        method.begin_phase(phase)
        method.train()
        groups = method.parameter_groups(settings.learning_rate)
        bases = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        scaler = torch.amp.GradScaler(
            self.device.type, enabled=settings.precision == "float16" and self.device.type == "cuda"
        )
        steps = len(task.train) // settings.batch_size
        schedule = make_schedule(settings, phase.epochs, steps)
        with self.progress.bar(phase.epochs * steps, f"task {span.index + 1}/{len(self.spans)} {phase.name}") as bar:
            for epoch in range(phase.epochs):
                started, sums = time.perf_counter(), {}
                for index, (images, labels) in enumerate(self._loader(span, task.train, shuffle=True)):
                    step = epoch * steps + index
                    for group, base in zip(optimizer.param_groups, bases, strict=True):
                        group["lr"] = schedule(base, step, epoch)
                    with self._autocast():
                        losses = method.losses(images, labels, span)
                        total = torch.stack(list(losses.values())).sum()
                    optimizer.zero_grad()
                    scaler.scale(total).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    for name, value in {"loss": total, **losses}.items():
                        sums[name] = sums.get(name, 0.0) + value.detach()
                    bar.update()
                means = {name: float(value) / steps for name, value in sums.items()}
                self._end_epoch(
                    span, phase, epoch, steps, means, schedule(bases[-1], (epoch + 1) * steps - 1, epoch), started
                )
                bar.note(f"epoch {epoch + 1}/{phase.epochs}, loss {means['loss']:.3f}")

    def _end_epoch(
        self, span: TaskSpan, phase: Phase, epoch: int, steps: int, means: dict[str, float], rate: float, started: float
    ) -> None:
        images = steps * self.settings.batch_size
        self.history.images_trained += images
        self.history.steps += steps
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss became {means['loss']} in epoch {epoch + 1} of task {span.index + 1} ({phase.name}); "
                f"lower trainer.learning_rate={self.settings.learning_rate} or use trainer.precision=float32"
            )
        row = {
            "task": span.index, "phase": phase.name, "epoch": epoch, "step": self.history.steps, **means,
            "learning_rate": rate, "images_per_second": images / (time.perf_counter() - started),
        }  # fmt: skip
        if self.directory is not None:
            self.directory.append_metrics(row)
        self.tracker.log(row, step=self.history.steps)
        self.progress.detail(
            f"task {span.index + 1}/{len(self.spans)} {phase.name} epoch {epoch + 1}/{phase.epochs}: "
            f"loss {means['loss']:.4f}, {row['images_per_second']:.0f} images a second"
        )

    def _record_statistics(self, span: TaskSpan, task: Task) -> None:
        """Mean and variance of each class's features over its training images, in evaluation mode."""
        method = self.method.eval()
        images = task.train if self.settings.statistics_images == "train" else task.train_plain
        pairs = [(self._features(batch), labels) for batch, labels in self._loader(span, images)]
        features, labels = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        for label in range(span.start, span.stop):
            method.statistics.record(label, features[labels == label], seed=self.seed)

    def _evaluate(self, span: TaskSpan) -> list[float]:
        """Accuracy on the test images of every task seen so far, all seen classes competing."""
        with (
            self._timed("eval"),
            self.progress.bar(span.index + 1, f"task {span.index + 1}/{len(self.spans)} test") as bar,
        ):
            row = []
            for index in range(span.index + 1):
                row.append(self.accuracy(index, span.stop))
                bar.update()
        return row

    def accuracy(self, index: int, seen_classes: int) -> float:
        """Fraction of task `index`'s test images that are classified right among the first `seen_classes` classes."""
        images = self.stream.tasks[index].test
        self.method.eval()
        correct = 0
        for batch, labels in self._loader(self.spans[index], images):
            with torch.no_grad():  # classified in full precision: rounded logits have ties
                logits = self.method.classify(self._features(batch))[:, :seen_classes]
            correct += int((logits.argmax(-1) == labels).sum())
        return correct / len(images)

    def _features(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.method.features(images).to(self.dtype)

    def _batches(self, task: Task, kind: Literal["train", "plain"]) -> Iterator[tuple[Tensor, Tensor]]:
        span = self.spans[task.index]
        if kind == "train":
            return self._loader(span, task.train, shuffle=True)
        return self._loader(span, task.train_plain)

    def _loader(self, span: TaskSpan, images: TaskImages, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device. Shuffled: the training loader (order from seed, task and epoch; incomplete last batch
        dropped); otherwise every image once, in order. Each call is an epoch of its own for augmentation."""
        images.set_epoch(self.epoch)
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", span.index, self.epoch))
        if images is not self.stream.tasks[span.index].test:
            self.epoch += 1
        loader = DataLoader(
            images,
            batch_size=self.settings.batch_size if shuffle else self.settings.eval_batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            generator=generator,
            num_workers=self.settings.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch, labels in _own_errors(loader):
            yield batch.to(self.device, self.dtype, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.settings.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    @contextmanager
    def _timed(self, what: Literal["train", "align", "eval"]) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            self.history.seconds[what] += time.perf_counter() - started

    def _report(self, span: TaskSpan, row: list[float]) -> None:
        mean = sum(row) / len(row)
        self.progress.line(
            f"task {span.index + 1}/{len(self.spans)}: accuracy {100 * mean:.1f} % "
            f"({' '.join(f'{100 * value:.1f}' for value in row)}), {self.history.seconds_per_task[-1]:.1f} s"
        )
        self.tracker.log({"task": span.index, "average_accuracy": mean}, step=self.history.steps)


def _own_errors(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader; a UserError from a worker process is said in one line, as without workers."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from error
