"""What evaluation saw after each task, kept for the analysis: logits, chosen experts, keys, values.

analysis/images.safetensors, written once, about all test images in the order of tasks:
    labels (N,) uint16
    tasks (N,) uint16: which task evaluates the image
    source_index (N,) uint32
    examples (n, s, s, 3) uint8: a few of the images, small
    example_of (n,) uint32: which images these are

analysis/task-TTT.safetensors, after TTT tasks, about the first M of these images, which are those
of the tasks seen so far, or all:
    logits (M, C) float16: over the C classes seen so far, minus the image's largest, so that
        differences are kept however large logits are
    top (M,) float32: the largest
    predicted (M,) uint16: decided before logits were rounded
    With trainer.record=top, there is in the place of `logits`, with k at most 10:
        top_logits (M, k) float16, top_classes (M, k) uint16: the largest, in order
        label_logit (M,) float16: of the true class
        log_sum (M,) float32: log of the sum of exp(logit) over the C classes
        squared_probabilities (M,) float32: sum of the squared softmax over the C classes
        predicted_in_task (M,) uint16: the best among the classes of the image's own task
        best_old, best_new (M,) float16: the largest of the earlier and of the newest task's
            classes, where there are both
        metadata `classes`: C
    experts.B (M, H, K) uint8 or uint16: choices in the B-th prompted block; left out where every
        expert is used, or tokens choose for themselves
    keys.B, values.B (H, E, D) float32 and counts.B (H, E) int64: where the method has experts

analysis/mistakes.safetensors: see training/mistakes.py

With ViT-B/16, SMoPE and CIFAR-100 in 10 tasks, `trainer.record=seen` writes 37 MB over the run
(logits 7.9, experts 19.8, keys and values 9.2) and computes nothing more. `all` also evaluates
later tasks: 45,000 forward passes on top of the 55,000 of every run, and 56 MB. No random number is
drawn, so nothing that is trained or scored changes. Numbers of classes above 65,535 are uint32.
`trainer.record=auto` is `seen` unless logits would take more than 100 MB over the run, and then
`top`: 62 bytes for each image after each task, however many classes there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from safetensors.numpy import save
from torch import Tensor

from smope.distributed import collectives
from smope.methods._shared.routed_method import experts_of, routings_of
from smope.methods.base import Method, TaskSpan
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream, Task
from smope.training.mistakes import mistakes_file
from smope.training.settings import Record
from smope.training.top_logits import LARGEST_FLOAT16, resolved, summarised

SNAPSHOT_FORMAT_VERSION = 1
TOP_LOGITS_FORMAT_VERSION = 2
EXAMPLES_PER_TASK = 4
EXAMPLE_SIDE_PIXELS = 48
LARGEST_FLOAT32 = torch.finfo(torch.float32).max


class Recorder:
    """Collects the batches of one evaluation after another.

    Args:
        record: trainer.record.
        stream: the tasks.

    Attributes:
        record: what is recorded; never `auto`.
        open: whether an evaluation has begun and is not written yet.
    """

    def __init__(self, record: Record, stream: Stream) -> None:
        self.record: Record = resolved(record, stream)
        self.stream = stream
        self.open = False
        self._batches: list[dict[str, Tensor]] = []
        self._new_from = 0
        self._own_classes: Sequence[int] = ()

    def begin(self, span: TaskSpan) -> None:
        """Start an evaluation after a task; batches of one that was interrupted are dropped."""
        self.open = self.record != "nothing"
        self._batches = []
        self._new_from = span.start

    def begin_task(self, index: int) -> None:
        """The batches that come next are test images of the task with this number."""
        self._own_classes = self.stream.tasks[index].classes

    def chosen_experts(self, method: Method) -> dict[str, Tensor]:
        """What a method has just chosen for this process's share of a batch, as experts.B of the
        whole batch; empty if nothing is recorded.
        """
        chosen: dict[str, Tensor] = {}
        for block, routing in enumerate(routings_of(method) if self.open else ()):
            if routing.by_images:  # what each token chooses would be N times as much
                small = torch.uint8 if routing.scores.shape[-1] <= 256 else torch.int32
                chosen[f"experts.{block}"] = collectives.gathered(routing.expert_ids.to(small))
        return chosen

    def add(self, logits: Tensor, labels: Tensor, experts: Mapping[str, Tensor]) -> None:
        """Add one batch of test images, the whole of it even where several processes have a share
        each.

        Args:
            logits: (B, C) over the classes seen so far.
            labels: (B,) true classes.
            experts: what chosen_experts() gave.
        """
        if not self.open:
            return
        finite = logits.float().clamp(-LARGEST_FLOAT32, LARGEST_FLOAT32)
        if self.record == "top":
            batch = summarised(finite, labels, self._own_classes, self._new_from)
        else:
            top = finite.amax(-1)
            relative = (finite - top[:, None]).clamp(min=-LARGEST_FLOAT16).half()
            batch = {"logits": relative, "top": top}
        batch |= {"predicted": logits.argmax(-1).to(torch.int32), **experts}
        self._batches.append({key: value.cpu() for key, value in batch.items()})

    def later_tasks(self, span: TaskSpan) -> range:
        """Later tasks, which are evaluated for the record alone."""
        return range(span.index + 1, len(self.stream.tasks) if self.record == "all" else 0)

    def write(self, directory: RunDirectory | None, method: Method, span: TaskSpan) -> None:
        """Write a finished evaluation. A resumed run writes the same again.

        Args:
            directory: the run; None writes nothing.
            method: its experts are part of the record.
            span: the task that was learned last.
        """
        batches, self._batches = self._batches, []
        if not self.open or directory is None:
            return
        self.open = False
        directory.analysis.mkdir(exist_ok=True)
        images = directory.analysis / "images.safetensors"
        if not images.exists():
            _write(images, _describe_images(self.stream))
        arrays = {
            key: _as_array(torch.cat([batch[key] for batch in batches])) for key in batches[0]
        }
        top = self.record == "top"
        _write(
            directory.analysis / f"task-{span.index + 1:03d}.safetensors",
            arrays | _expert_arrays(method),
            {"classes": str(span.stop)} if top else None,
            TOP_LOGITS_FORMAT_VERSION if top else SNAPSHOT_FORMAT_VERSION,
        )
        mistakes, about = mistakes_file(self.stream, arrays, span.index + 1)
        _write(directory.analysis / "mistakes.safetensors", mistakes, about)


def _as_array(tensor: Tensor) -> numpy.ndarray:
    array = tensor.numpy()
    return _numbers(array) if array.dtype == numpy.int32 else array


def _numbers(values: Any) -> numpy.ndarray:
    """Numbers from 0 as uint16, or uint32 where one does not fit."""
    array = numpy.asarray(values)
    return array.astype(numpy.uint16 if array.max(initial=0) < 1 << 16 else numpy.uint32)


def _expert_arrays(method: Method) -> dict[str, numpy.ndarray]:
    """Keys, values and usage counts of each prompted block, as attention uses them."""
    arrays: dict[str, numpy.ndarray] = {}
    for block, bank in enumerate(experts_of(method)):
        with torch.no_grad():
            keys, values = (rows.detach().float().cpu().numpy() for rows in bank())
        arrays |= {
            f"keys.{block}": keys,
            f"values.{block}": values,
            f"counts.{block}": bank.counts.cpu().numpy(),
        }
    return arrays


def _describe_images(stream: Stream) -> dict[str, numpy.ndarray]:
    """What images.safetensors holds."""
    tests = [task.test for task in stream.tasks]
    start = numpy.cumsum([0, *(len(test) for test in tests)])
    examples = [(task, index) for task in stream.tasks for index in _examples_of(task)]
    return {
        "labels": _numbers([label for test in tests for label in test.targets]),
        "tasks": numpy.repeat(
            numpy.arange(len(tests), dtype=numpy.uint16), [len(test) for test in tests]
        ),
        "source_index": numpy.array(
            [index for test in tests for index in test.source_index], numpy.uint32
        ),
        "examples": numpy.stack([_thumbnail(task.test[index][0]) for task, index in examples]),
        "example_of": numpy.array(
            [start[task.index] + index for task, index in examples], numpy.uint32
        ),
    }


def _examples_of(task: Task) -> list[int]:
    """The first test image of each of a few classes, which are spread over the task's classes."""
    first: dict[int, int] = {}
    for index, label in enumerate(task.test.targets):
        first.setdefault(label, index)
    labels = sorted(first)
    count = min(EXAMPLES_PER_TASK, len(labels))
    positions = numpy.linspace(0, len(labels) - 1, count).round().astype(int)
    return [first[labels[position]] for position in positions]


def _thumbnail(image: Tensor) -> numpy.ndarray:
    """image (3, S, S) in [0, 1] -> (s, s, 3) uint8, s at most EXAMPLE_SIDE_PIXELS."""
    side = min(image.shape[-1], EXAMPLE_SIDE_PIXELS)
    small = F.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return (255 * small.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _write(
    path: Path,
    arrays: dict[str, Any],
    about: Mapping[str, str] | None = None,
    version: int = SNAPSHOT_FORMAT_VERSION,
) -> None:
    contiguous = {key: numpy.ascontiguousarray(array) for key, array in arrays.items()}
    metadata = {"format_version": str(version), **(about or {})}
    write_atomically(path, save(contiguous, metadata))
