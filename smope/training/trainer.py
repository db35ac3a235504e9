"""The one training loop, for every method, phase and stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from smope.console.progress import Bar
from smope.distributed import collectives
from smope.errors import Interrupted, UserError
from smope.methods._shared.routed_method import RoutedMethod
from smope.methods.base import Method, Phase, TaskSpan
from smope.metrics.cost import peak_memory
from smope.seeding import stable_seed
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream, Task
from smope.trackers.base import Tracker
from smope.training.checkpoint import Checkpoint, restore
from smope.training.checkpointing import CheckpointWriter, restore_within
from smope.training.compiling import compile_as_set
from smope.training.device import prepare_backbone
from smope.training.device_images import DeviceImages
from smope.training.evaluation import measure_accuracy, passed_batches
from smope.training.expert_counts import ExpertCounts
from smope.training.feature_cache import FeatureCache
from smope.training.feature_store import FeatureStore
from smope.training.frozen_features import FrozenFeatures, compute_ahead
from smope.training.history import History
from smope.training.interruption import Interruption
from smope.training.loading import TaskLoader
from smope.training.outputs import Outputs, task_title
from smope.training.phase import RunningPhase
from smope.training.precision import autocast, full_precision
from smope.training.preflight import check_batch_split, check_schedule, check_stream
from smope.training.randomness import seed_generators
from smope.training.recording import Recorder
from smope.training.reference import has_reference, nearest_class_mean
from smope.training.settings import Record, TrainerSettings
from smope.training.spans import task_spans
from smope.training.step_log import StepLog
from smope.training.stopwatch import Stopwatch, timed_batches
from smope.training.task_end import record_and_align

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages


class Trainer:
    """Takes a method through the tasks of a stream.

    Every random number after construction comes from a seed made of `seed` and of what the number
    is for (task, epoch, image). Where a method draws from a global generator, that generator is
    seeded for each task and saved in checkpoints. A run continued from a checkpoint therefore draws
    what an uninterrupted run would.

    Where several processes work together (distributed/collectives.py), each has a trainer, and all
    do the same with their shares of the same batches. Only the first one has outputs.

    Args:
        method: what is trained; it is moved to the device and to full precision.
        stream: the tasks.
        settings: the `trainer` group of the configuration.
        seed: the run's seed.
        device: where the method computes.
        directory: takes metrics.csv, checkpoints and the record for the analysis.
        tracker: hears of every epoch and task.

    Attributes:
        spans: the classes of each task.
        history: what the run has measured so far.
        outputs: where numbers go while the run trains.
        interruption: may stop the training between two steps.
        context: plain JSON that checkpoints keep.
        features: of test images, where they cannot change any more.
        frozen: features of the frozen backbone, of images that are always the same.
        compile_note: what `trainer.compile=auto` comes to, for the user.

    Raises:
        UserError: method, stream and settings do not fit together.
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
        tracker: Tracker | None = None,
    ) -> None:
        self.dtype = full_precision(settings.precision)
        self.method = method.to(device, self.dtype)
        if isinstance(method, RoutedMethod):
            method.dense_epochs = settings.warm_up_epochs
        prepare_backbone(method, settings)
        self.stream = stream
        self.settings = settings
        self.seed = seed
        self.device = device
        self.spans = task_spans(stream)
        self.history = History([len(task.test) for task in stream.tasks])
        self.outputs = Outputs(directory, tracker=tracker or Tracker())
        self.interruption = Interruption()
        self.context: dict[str, Any] = {}
        self.features = FeatureCache(device, FeatureStore())
        needed_again = has_reference(method, settings.reference)
        self.frozen = FrozenFeatures(method, self.features.store, needed_again)
        self.loader = TaskLoader(
            settings,
            seed=seed,
            device=device,
            dtype=self.dtype,
            interruption=self.interruption,
            frozen=self.frozen,
            on_device=DeviceImages(settings.images_on_device, stream, device),
        )
        self.checkpoints = CheckpointWriter(method, stream, settings, device)
        self._recorder = Recorder(settings.record, stream)
        self._expert_counts = ExpertCounts()
        self._stopwatch = Stopwatch(device)
        self._resumed: Checkpoint | None = None
        check_stream(method, self.spans, f"stream {stream.name}")
        check_batch_split(method, stream, settings)
        for span, task in zip(self.spans, stream.tasks, strict=True):
            check_schedule(task, self.phases(span), settings)
        steps = sum(map(self.steps, self.spans))
        self.compile_note = compile_as_set(method, settings, device, steps)

    @property
    def record(self) -> Record:
        """What evaluation records for the analysis; never `auto`."""
        return self._recorder.record

    def phases(self, span: TaskSpan) -> list[Phase]:
        """The phases of one task."""
        return self.method.phases(span, self.settings.epochs)

    def epoch_steps(self, span: TaskSpan) -> int:
        """Training steps of one epoch of a task."""
        return len(self.stream.tasks[span.index].train) // self.settings.batch_size

    def steps_of_phases(self, span: TaskSpan) -> list[tuple[Phase, int]]:
        """The phases of one task, each with its training steps."""
        steps = self.epoch_steps(span)
        return [(phase, phase.epochs * steps) for phase in self.phases(span)]

    def steps(self, span: TaskSpan) -> int:
        """Training steps of one task, over all its phases."""
        return sum(steps for _, steps in self.steps_of_phases(span))

    def test_passes(self, span: TaskSpan) -> int:
        """Test images that pass through the network in the evaluation after a task: those whose
        features are not known from the task before, in a run without a break.
        """
        first, last = 0, self.evaluated_tasks(span)
        if span.index > 0 and self.method.features_are_final(self.spans[span.index - 1]):
            first = self.evaluated_tasks(self.spans[span.index - 1])
        return sum(len(task.test) for task in self.stream.tasks[first:last])

    def evaluated_tasks(self, span: TaskSpan) -> int:
        """How many tasks are evaluated after a task, those for the record included."""
        return span.index + 1 + len(self._recorder.later_tasks(span))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint, so that `fit` continues where it was written.

        UserError where it belongs to other weights or images.
        """
        restore(self.method, self.stream, checkpoint)
        self.history = History.read(checkpoint.history, checkpoint.path)
        self.checkpoints.position = (checkpoint.tasks_done, checkpoint.steps)
        self._resumed = checkpoint if checkpoint.within else None

    def fit(self, on_task_end: Callable[[], object] = lambda: None) -> History:
        """Train on every task that the history does not hold yet.

        `on_task_end` is called after the checkpoint of each task. Returns the history.
        """
        first = len(self.history.accuracy_matrix)
        self.features.store.directory = self.outputs.directory and self.outputs.directory.path
        with self.outputs.progress.bar(len(self.spans), "tasks", done=first) as bar:
            for span in self.spans[first:]:
                self.learn_task(span)
                with self.frozen.used():
                    self._evaluate(span)
                self._save()
                on_task_end()
                bar.update()
        return self.history

    def learn_task(self, span: TaskSpan) -> None:
        """All that a method learns of one task, without the evaluation after it."""
        self._stopwatch.restart()
        with self.frozen.used():
            self._learn(span)
            self._end_task(span)

    def _learn(self, span: TaskSpan) -> None:
        """All phases of a task, or those that a resumed run has left of it."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            # Whatever was drawn before, a task starts from the same state of the generators.
            seed_generators(stable_seed(self.seed, "task", span.index))
            self.loader.epoch = 0
            self.method.begin_task(span)
            if self.method.prepares:
                self._prepare(span)
            collectives.copy_from_first(self.method.trained_state().values())
            steps_done = 0
        else:
            steps_done = resumed.steps
            self.loader.epoch = steps_done // self.epoch_steps(span)
        compute_ahead(self.method, self._trained_tasks(span), self.phases(span), self.loader)
        first_step = 0
        for phase, steps in self.steps_of_phases(span):
            if steps_done <= first_step + steps:
                self._train_phase(span, phase, first_step, resumed)
                resumed = None
            first_step += steps

    def _prepare(self, span: TaskSpan) -> None:
        """The method's look at the images of a task before its first phase."""
        method = self.method.eval()
        with torch.no_grad(), autocast(self.settings.precision, self.device):
            method.prepare_task(span, lambda kind: self._batches(span, kind))
        self.loader.epoch = 0  # a resumed run counts its epochs from the first step

    def _train_phase(
        self, span: TaskSpan, phase: Phase, first_step: int, resumed: Checkpoint | None
    ) -> None:
        """One phase, which begins `first_step` steps into the task; from `resumed` if given."""
        self.method.begin_phase(phase)
        running = RunningPhase(
            self.method,
            span,
            phase,
            self.settings,
            self.device,
            first=first_step,
            steps=self.epoch_steps(span),
        )
        if resumed is not None:
            restore_within(running, resumed, self.device)
        self.method.train()
        log = StepLog(self.outputs.tracker)
        title = f"{self._title(span)} {phase.name}"
        with self.outputs.progress.bar(running.total, title, done=running.done) as bar:
            try:
                while running.done < running.total:
                    self._train_epoch(running, bar, log)
            except (Interrupted, UserError):
                # Raised between two steps, or by a step that changed nothing.
                self._save(running)
                raise
            finally:
                log.flush()
        self._save(running)

    def _train_epoch(self, running: RunningPhase, bar: Bar, log: StepLog) -> None:
        """One epoch, or what is left of it."""
        started, first = time.perf_counter(), running.done % running.steps
        self.method.begin_epoch(running.done // running.steps)
        batches = self.loader.shuffled(
            self.training_images(running.span), running.span.index, first, running.steps
        )
        for images, labels in timed_batches(batches, self.history):
            with self.interruption.held():
                losses = running.step(images, labels)
                step_of_epoch = (running.done - 1) % running.steps + 1
                log.add(self.history.steps + step_of_epoch, losses, running.rates)
                if step_of_epoch == running.steps:
                    log.flush()  # before the epoch: steps of a tracker must not go back
                    trained = (running.steps - first) * self.settings.batch_size
                    speed = trained / (time.perf_counter() - started)
                    self._end_epoch(running, speed, bar)
            bar.update()
            if self.checkpoints.is_due(running.position):
                self._save(running)

    def training_images(self, span: TaskSpan) -> TaskImages:
        """What the steps of a task draw from: its images, or for a method that revisits also those
        of all earlier tasks.
        """
        first, *others = [task.train for task in self._trained_tasks(span)]
        return first.join(others) if others else first

    def _trained_tasks(self, span: TaskSpan) -> Sequence[Task]:
        first = 0 if self.method.revisits else span.index
        return self.stream.tasks[first : span.index + 1]

    def _end_epoch(self, running: RunningPhase, images_per_second: float, bar: Bar) -> None:
        """Count the epoch and report its losses."""
        epoch, means = running.done // running.steps - 1, running.end_epoch()
        self.history.images_trained += running.steps * self.settings.batch_size
        self.history.steps += running.steps
        row = {
            "task": running.span.index,
            "phase": running.phase.name,
            "epoch": epoch,
            "step": self.history.steps,
            **means,
            "learning_rate": running.learning_rate,
            "images_per_second": images_per_second,
        }
        title = f"{self._title(running.span)} {running.phase.name}"
        self.outputs.end_epoch(title, running.phase, row, bar)

    def _end_task(self, span: TaskSpan) -> None:
        """After the last phase: the method's own work, class statistics, and alignment."""
        method, task = self.method.eval(), self.stream.tasks[span.index]
        with torch.no_grad(), autocast(self.settings.precision, self.device):
            method.end_task(span, lambda kind: self._batches(span, kind))
        self.outputs.remark(self._title(span), method.remarks())
        self._stopwatch.add_to(self.history, "train")
        augmented = self.settings.statistics_images == "train"
        images = task.train if augmented else task.train_plain
        record_and_align(
            method, span, lambda: self.loader.in_order(images), self.settings, self.seed
        )
        self._stopwatch.add_to(self.history, "align")
        # Processes on different machines may have rounded differently.
        collectives.copy_from_first(method.trained_state().values())

    def _batches(
        self, span: TaskSpan, kind: Literal["train", "plain"]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a task for Method.end_task; see methods.base.Batches."""
        task = self.stream.tasks[span.index]
        if kind == "train":
            return self.loader.shuffled(task.train, span.index)
        return self.loader.in_order(task.train_plain)

    def _evaluate(self, span: TaskSpan) -> None:
        """Evaluate all tasks so far: one more row of the accuracy matrix."""
        title, row = self._title(span), []
        self._recorder.begin(span)
        self._expert_counts.begin()
        with (
            self.outputs.progress.bar(span.index + 1, f"{title} test") as bar,
            self.features.used(self.method.features_are_final(span)),
        ):
            for index in range(span.index + 1):
                row.append(self.accuracy(index, span.stop))
                self._expert_counts.end_task()
                bar.update()
            use = self._expert_counts.summary()
            for index in self._recorder.later_tasks(span):
                self.accuracy(index, span.stop)
        self.history.images_evaluated += self.test_passes(span)
        self._recorder.write(self.outputs.directory, self.method, span)
        self._stopwatch.add_to(self.history, "eval")
        self.history.end_task(row, use)
        peaks = peak_memory(self.device)
        largest = collectives.largest(list(peaks.values()))
        self.history.note_memory(dict(zip(peaks, largest, strict=True)))
        self.outputs.end_task(title, self.history)

    def accuracy(self, task_index: int, seen_classes: int) -> float:
        """Accuracy on the test images of task `task_index` among the first `seen_classes` classes,
        as a fraction.
        """
        images = self.stream.tasks[task_index].test
        self._recorder.begin_task(task_index)
        fresh = passed_batches(
            self.method.eval(), images, self.loader, self.settings.precision, self._recorder
        )
        return measure_accuracy(
            self.method,
            self.features.batches(task_index, fresh),
            seen_classes=seen_classes,
            recorder=self._recorder,
            expert_counts=self._expert_counts,
        )

    def reference_matrix(self) -> list[list[float]] | None:
        """The accuracy matrix of `trainer.reference`, measured now, with the tasks of this run.

        None where there is no reference, and where it would be the method itself or the backbone
        has changed.
        """
        if not has_reference(self.method, self.settings.reference):
            return None
        with self.outputs.progress.bar(len(self.spans), "reference") as bar:
            return nearest_class_mean(
                self.method,
                self.stream,
                self.spans,
                self.loader,
                self.settings.precision,
                cache=self.features,
                on_task=bar.update,
            )

    def _save(self, running: RunningPhase | None = None) -> None:
        """Write a checkpoint, within a task if a phase is `running`; none where the last one was
        written at the same place.
        """
        position = (len(self.history.accuracy_matrix), running.position if running else 0)
        if self.outputs.directory is None or position == self.checkpoints.position:
            return
        if running is not None:
            self._stopwatch.add_to(self.history, "train")
        with self.interruption.held():
            self.checkpoints.write(self.outputs.directory, self.history, self.context, running)

    def _title(self, span: TaskSpan) -> str:
        return task_title(span, len(self.spans))
