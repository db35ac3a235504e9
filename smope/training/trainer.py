"""The one training loop, for every method, phase and stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from smope.console.progress import Bar, Progress
from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import Aligned, Method, Phase, TaskSpan
from smope.metrics.cost import peak_memory
from smope.seeding import stable_seed
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream, Task
from smope.trackers.base import Tracker
from smope.training.alignment import align_classifier
from smope.training.batch_split import check_dividing
from smope.training.checkpoint import Checkpoint, Within, restore, save_checkpoint
from smope.training.device import prepare_backbone
from smope.training.history import History
from smope.training.interruption import Interrupted, Interruption
from smope.training.loading import choose_workers, in_order, load, shuffled
from smope.training.phase import RunningPhase
from smope.training.precision import autocast, evaluated, full_precision
from smope.training.randomness import generator_states, restore_generators, seed_generators
from smope.training.recording import Recorder
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings
from smope.training.step_log import StepLog

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages


class Trainer:
    """Takes `method` through the tasks of `stream`, and writes checkpoints into `directory`.

    Every random number after construction comes from a seed made of `seed` and of what it is for
    (task, epoch, image), or, where a method draws from a global generator, from one that is seeded
    for each task and saved in checkpoints: a run continued from a checkpoint draws what an
    uninterrupted one would.

    Where several processes work together (collectives.py), each has a trainer, and all do the same
    with their shares of the same batches; `directory` and `tracker` belong to the first one alone.

    interruption: may stop the training between two steps. context: plain JSON that checkpoints
    keep.
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
        self.dtype = full_precision(settings.precision)
        self.method = method.to(device, self.dtype)
        prepare_backbone(method, settings, device)
        self.stream = stream
        self.settings = settings
        self.seed = seed
        self.device = device
        self.history = History([len(task.test) for task in stream.tasks])
        self.directory = directory
        self.progress = progress or Progress(None, quiet=True)
        self.tracker = tracker or Tracker()
        self.recorder = Recorder(settings.record, stream)
        self.interruption = Interruption()
        self.context: dict[str, Any] = {}
        # of the current task, over all its phases and passes: augmentation and order depend on it
        self.epoch = 0
        self.spans = _spans(stream)
        self._resumed: Checkpoint | None = None
        self._place = (0, 0)  # of the last checkpoint: tasks done, steps of the next
        self._saved_at = self._since = time.perf_counter()
        self._check()

    def _check(self) -> None:
        """What would fail in the middle of a run fails before it starts."""
        self.method.check_stream(self.spans)
        check_dividing(self.method, self.stream, self.settings)
        centroids = self.method.statistics.mean.shape[1]
        if centroids > 1 and any(span.classes[0] < span.start for span in self.spans):
            raise UserError(
                f"method.centroids must be 1 for stream {self.stream.name}, where classes come "
                f"again in later tasks, "
                f"got {centroids}; leave it at its default"
            )
        for span, task in zip(self.spans, self.stream.tasks, strict=True):
            phases = self._phases(span)
            steps = self._steps(task)
            if phases and steps == 0:
                raise UserError(
                    f"trainer.batch_size={self.settings.batch_size} is larger than the "
                    f"{len(task.train)} training "
                    f"images of task {span.index + 1}, so that no whole batch is left; lower it"
                )
            for phase in phases:
                make_schedule(self.settings, phase.schedule_epochs, steps)

    def _phases(self, span: TaskSpan) -> list[Phase]:
        dense = (
            self.settings.epochs // 2
            if self.settings.dense_epochs is None
            else self.settings.dense_epochs
        )
        return self.method.phases(span, self.settings.epochs, dense)

    def steps(self, span: TaskSpan) -> int:
        """Training steps of one task, over all its phases."""
        return sum(steps for _, steps in self.steps_of_phases(span))

    def steps_of_phases(self, span: TaskSpan) -> list[tuple[Phase, int]]:
        """The phases of one task, each with its training steps."""
        steps = self._steps(self.stream.tasks[span.index])
        return [(phase, phase.epochs * steps) for phase in self._phases(span)]

    def _steps(self, task: Task) -> int:
        """Training steps of an epoch."""
        return len(task.train) // self.settings.batch_size

    def resume(self, checkpoint: Checkpoint) -> None:
        """Have `fit` go on where `checkpoint` was written.

        UserError where it belongs to other weights or images.
        """
        restore(self.method, self.stream, checkpoint)
        self.history = History.read(checkpoint.history, checkpoint.path)
        self._place = (checkpoint.tasks_done, checkpoint.within.steps if checkpoint.within else 0)
        self._resumed = checkpoint if checkpoint.within else None

    @property
    def at_boundary(self) -> bool:
        """Whether the method is as the last of its tasks left it: some are done, and of the next
        one nothing is.
        """
        tasks, steps = self._place
        return tasks > 0 and steps == 0

    def fit(self, on_task_end: Callable[[], object] = lambda: None) -> History:
        """Train on every task that the history does not hold yet; `on_task_end` is called after
        each checkpoint.
        """
        first = len(self.history.accuracy_matrix)
        with self.progress.bar(len(self.spans), "tasks", done=first) as bar:
            for span, task in zip(self.spans[first:], self.stream.tasks[first:], strict=True):
                self._take(span, task)
                on_task_end()
                bar.update()
        return self.history

    def _take(self, span: TaskSpan, task: Task) -> None:
        """One task: learn it, evaluate all tasks so far, write the checkpoint."""
        self._since = time.perf_counter()
        self._train(span, task)
        self._finish(span, task)
        self.history.end_task(self._evaluate(span))
        peaks = peak_memory(self.device)
        self.history.note_memory(
            dict(zip(peaks, collectives.largest(list(peaks.values())), strict=True))
        )
        self._report(span)
        self._save()

    def _train(self, span: TaskSpan, task: Task) -> None:
        """All phases of a task, or those that a resumed run has left of it."""
        resumed, self._resumed = self._resumed, None
        done = resumed.within.steps if resumed and resumed.within else 0
        self.epoch = done // self._steps(task) if done else 0
        if resumed is None:
            # Here and in no other place: whatever was drawn before, a task starts from the same
            # state.
            seed_generators(stable_seed(self.seed, "task", span.index))
            self.method.begin_task(span)
            collectives.copy_from_first(self.method.trained_state().values())
        first = 0
        for phase in self._phases(span):
            last = first + phase.epochs * self._steps(task)
            if done <= last:
                self._train_phase(span, task, phase, first, resumed)
                resumed = None
            first = last

    def _train_phase(
        self, span: TaskSpan, task: Task, phase: Phase, first: int, resumed: Checkpoint | None
    ) -> None:
        """One phase, `first` steps into the task; with `resumed`, from where that was written."""
        self.method.begin_phase(phase)
        running = RunningPhase(
            self.method,
            span,
            phase,
            self.settings,
            self.device,
            first=first,
            steps=self._steps(task),
        )
        if resumed is not None:
            self._go_back(running, resumed)
        self.method.train()
        log = StepLog(self.tracker)
        title = f"task {span.index + 1}/{len(self.spans)} {phase.name}"
        with self.progress.bar(running.total, title, done=running.done) as bar:
            try:
                while running.done < running.total:
                    self._train_epoch(task, running, bar, log)
            except (
                Interrupted,
                UserError,
            ):  # raised between two steps, or by one that changed nothing
                self._save(running)
                raise
            finally:
                log.flush()
        self._save(running)

    def _train_epoch(self, task: Task, running: RunningPhase, bar: Bar, log: StepLog) -> None:
        """One epoch, or what is left of it."""
        started, first = time.perf_counter(), running.done % running.steps
        loader = self._loader(
            running.span, self._material(task), shuffle=True, first=first, last=running.steps
        )
        for images, labels in self._watched(loader):
            with self.interruption.held():
                losses = running.step(images, labels)
                log.add(
                    self.history.steps + (running.done - 1) % running.steps + 1,
                    losses,
                    running.rates,
                )
                if running.done % running.steps == 0:
                    log.flush()  # a tracker's steps never go back
                    images_seen = (running.steps - first) * self.settings.batch_size
                    speed = images_seen / (time.perf_counter() - started)
                    self._end_epoch(running, speed, bar)
            bar.update()
            if self._due(running.position):
                self._save(running)

    def _material(self, task: Task) -> TaskImages:
        """What a task's steps draw from: its own training images or, for a method that revisits,
        all so far.
        """
        if not self.method.revisits:
            return task.train
        first, *others = [seen.train for seen in self.stream.tasks[: task.index + 1]]
        return first.join(others)

    def _end_epoch(self, running: RunningPhase, speed: float, bar: Bar) -> None:
        phase, epoch, means = running.phase, running.done // running.steps - 1, running.end_epoch()
        self.history.images_trained += running.steps * self.settings.batch_size
        self.history.steps += running.steps
        row = {
            "task": running.span.index, "phase": phase.name, "epoch": epoch, "step": self.history.steps, **means,
            "learning_rate": running.learning_rate, "images_per_second": speed,
        }  # fmt: skip
        if self.directory is not None:
            self.directory.append_metrics(row)
        self.tracker.log(row, step=self.history.steps)
        bar.note(f"epoch {epoch + 1}/{phase.epochs}, loss {means['loss']:.3f}")
        self.progress.detail(
            f"task {running.span.index + 1}/{len(self.spans)} {phase.name} epoch "
            f"{epoch + 1}/{phase.epochs}: "
            f"loss {means['loss']:.4f}, {speed:.0f} images a second"
        )

    def _due(self, position: int) -> bool:
        """Whether it is time for a checkpoint, `position` steps into the task."""
        steps, minutes = self.settings.checkpoint_steps, self.settings.checkpoint_minutes
        if steps is not None and position % steps == 0:
            return True
        return minutes is not None and time.perf_counter() - self._saved_at >= 60 * minutes

    def _save(self, running: RunningPhase | None = None) -> None:
        """Write a checkpoint, within a task where one is `running`; none where the last was
        written in this place.
        """
        place = (len(self.history.accuracy_matrix), running.position if running else 0)
        if self.directory is None or place == self._place:
            return
        within = None
        if running is not None:
            self._book("train")
            tensors, scaler = running.state()
            states, others = generator_states(self.device)
            random = {f"random.{name}": state for name, state in states.items()}
            within = Within(
                running.position, tensors | random, {"scaler": scaler, "random": others}
            )
        with self.interruption.held():
            history = self.history.as_dict()
            save_checkpoint(
                self.directory, self.method, self.stream, place[0], history, within, self.context
            )
            self._place, self._saved_at = place, time.perf_counter()

    def _go_back(self, running: RunningPhase, checkpoint: Checkpoint) -> None:
        """Bring a phase that was begun once more to where `checkpoint` was written."""
        within = checkpoint.within
        assert within is not None
        self.method.load_trained_state(checkpoint.state)
        running.load(within.tensors, within.values["scaler"], within.steps)
        states = {key.removeprefix("random."): value for key, value in within.tensors.items()}
        restore_generators(states, within.values["random"], self.device)

    def _finish(self, span: TaskSpan, task: Task) -> None:
        """What follows a task's last phase: the method's own work, and aligning the classifier."""
        method = self.method.eval()
        with torch.no_grad(), autocast(self.settings.precision, self.device):
            method.end_task(span, lambda kind: self._batches(task, kind))
        self._book("train")
        aligned = method.aligned()
        for part in method.recorded():
            self._record_statistics(part, span, task)
            if span.index > 0 and part in aligned:
                method.train()
                align_classifier(
                    part, span, self.settings, stable_seed(self.seed, "alignment", span.index)
                )
            self._book("align")
        # What each process has computed for itself is the same, unless their machines are not.
        collectives.copy_from_first(method.trained_state().values())

    def _record_statistics(self, part: Aligned, span: TaskSpan, task: Task) -> None:
        """Mean and variance of each class's features over its training images, in evaluation mode."""
        self.method.eval()
        images = task.train if self.settings.statistics_images == "train" else task.train_plain
        pairs = []
        for batch, labels in self._loader(span, images):
            with torch.no_grad(), autocast(self.settings.precision, self.device):
                own = part.task_features(batch, span).to(self.dtype)
            pairs.append((collectives.gathered(own), collectives.gathered(labels)))
        features, labels = (
            torch.cat([pair[0] for pair in pairs]),
            torch.cat([pair[1] for pair in pairs]),
        )
        for label in span.classes:
            part.statistics.record(label, features[labels == label], seed=self.seed)

    def _evaluate(self, span: TaskSpan) -> list[float]:
        """Accuracy on the test images of every task seen so far, all seen classes competing."""
        row = []
        self.recorder.begin()
        with self.progress.bar(
            span.index + 1, f"task {span.index + 1}/{len(self.spans)} test"
        ) as bar:
            for index in range(span.index + 1):
                row.append(self.accuracy(index, span.stop))
                self.history.images_evaluated += len(self.stream.tasks[index].test)
                bar.update()
        for index in self.recorder.tasks_to_come(span):
            self.accuracy(index, span.stop)
            self.history.images_evaluated += len(self.stream.tasks[index].test)
        self.recorder.write(self.directory, self.method, span)
        self._book("eval")
        return row

    def accuracy(self, index: int, seen_classes: int) -> float:
        """Fraction of task `index`'s test images that are classified right among the first
        `seen_classes` classes.
        """
        images = self.stream.tasks[index].test
        self.method.eval()
        correct = 0
        for batch, labels in self._loader(self.spans[index], images):
            own = evaluated(self.method, batch, self.settings.precision)[:, :seen_classes]
            logits = collectives.gathered(own)
            self.recorder.add(logits, self.method)
            correct += int((logits.argmax(-1) == collectives.gathered(labels)).sum())
        return correct / len(images)

    def _batches(
        self, task: Task, kind: Literal["train", "plain"]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        span = self.spans[task.index]
        if kind == "train":
            return self._loader(span, task.train, shuffle=True)
        return self._loader(span, task.train_plain)

    def _loader(
        self,
        span: TaskSpan,
        images: TaskImages,
        shuffle: bool = False,
        first: int = 0,
        last: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device, or this process's share of each, from the `first` up to `last`.
        Shuffled: the training loader (order from seed, task and epoch; incomplete last batch
        dropped); otherwise every image once, in order. Each call is an epoch of its own for
        augmentation.
        """
        images.set_epoch(self.epoch)
        if shuffle:
            seed = stable_seed(self.seed, "order", span.index, self.epoch)
            batches = shuffled(len(images), self.settings.batch_size, seed)
        else:
            batches = in_order(len(images), self.settings.eval_batch_size, collectives.world())
        if images is not self.stream.tasks[span.index].test:
            self.epoch += 1
        workers = choose_workers(self.settings.num_workers, images, self.device)
        shares = [collectives.share(batch) for batch in batches[first:last]]
        for batch in load(images, shares, self.device, self.dtype, workers):
            self.interruption.agree()
            yield batch

    def _watched(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, and note how long each was waited for."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.history.seconds["wait"] += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _book(self, what: Literal["train", "align", "eval"]) -> None:
        """Put the time since it was last booked down to `what`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.history.add_seconds(what, now - self._since)
        self.history.note_memory(peak_memory(self.device))
        self._since = now

    def _report(self, span: TaskSpan) -> None:
        row = self.history.accuracy_matrix[-1]
        mean = sum(row) / len(row)
        self.progress.line(
            f"task {span.index + 1}/{len(self.spans)}: accuracy {100 * mean:.1f} % "
            f"({' '.join(f'{100 * value:.1f}' for value in row)}), "
            f"{self.history.seconds_per_task[-1]:.1f} s"
        )
        self.tracker.end_task(
            self.history.accuracy_matrix, self.history.scores(), step=self.history.place
        )


def _spans(stream: Stream) -> list[TaskSpan]:
    spans, seen = [], 0
    for task in stream.tasks:
        stop = max(seen, task.classes[-1] + 1)
        spans.append(TaskSpan(task.index, seen, stop, task.classes))
        seen = stop
    return spans
