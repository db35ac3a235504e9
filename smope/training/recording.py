"""What evaluation saw, kept for the analysis: logits, chosen experts, keys and values, after each
task.

analysis/images.safetensors    once: of every task's test images, in the order of tasks
    labels (N,) uint16, tasks (N,) uint16 (which task evaluates the image), source_index (N,)
    uint32; examples (n, s, s, 3) uint8, a few of the images, small, and example_of (n,) uint32,
    which ones
analysis/task-TTT.safetensors  after TTT tasks, for the first M of these images: those of the tasks
                               seen so far, or all
    logits (M, C) float16 over the C classes seen so far, less the largest of the image, which is in
    top (M,) float32: what they differ by is kept however large they are; predicted (M,) uint16,
    decided before they were rounded; experts.B (M, H, K) uint8 or uint16, keys.B and values.B (H,
    E, D) float32, counts.B (H, E) int64 of the B-th prompted block, where the method has experts;
    no choices where every expert is used

With ViT-B/16, SMoPE and CIFAR-100 in 10 tasks, `trainer.record=seen` writes 37 MB over the run
(logits 7.9, experts 19.8, keys and values 9.2) and computes nothing more; `all` also evaluates the
tasks to come, 45,000 forward passes more than the 55,000 of every run, and writes 56 MB. Nothing
that is trained or scored changes: no random number is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from safetensors.numpy import save
from torch import Tensor

from smope.distributed import collectives
from smope.methods.base import Method, TaskSpan
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream, Task
from smope.training.settings import Record

FORMAT_VERSION = 1
EXAMPLES = 4  # pictures a task
EXAMPLE_SIDE = 48  # pixels
LARGEST_HALF, LARGEST = 65504.0, torch.finfo(torch.float32).max


class Recorder:
    """Collects batches of one evaluation after another; `open` only between `begin` and `write`."""

    def __init__(self, record: Record, stream: Stream) -> None:
        self.record = record
        self.stream = stream
        self.open = False
        self._batches: list[dict[str, Tensor]] = []

    def begin(self) -> None:
        """An evaluation starts: forget what one that was broken off has left."""
        self.open = self.record != "nothing"
        self._batches = []

    def add(self, logits: Tensor, method: Method) -> None:
        """One batch of test images was classified; logits (B, C) over the classes seen so far, of
        the whole batch where several processes have a share of it each.
        """
        if not self.open:
            return
        kept = logits.float().clamp(-LARGEST, LARGEST)
        top = kept.amax(-1)
        batch = {
            "logits": (kept - top[:, None]).clamp(min=-LARGEST_HALF).half(),
            "top": top,
            "predicted": logits.argmax(-1).to(torch.int32),
        }
        for block, routing in enumerate(method.routings):
            num_experts = routing.scores.shape[-1]
            if routing.expert_ids.shape[-1] < num_experts:
                small = torch.uint8 if num_experts <= 256 else torch.int32
                batch[f"experts.{block}"] = collectives.gathered(routing.expert_ids.to(small))
        self._batches.append({key: value.cpu() for key, value in batch.items()})

    def tasks_to_come(self, span: TaskSpan) -> range:
        """Tasks that are evaluated for the record alone."""
        return range(span.index + 1, len(self.stream.tasks) if self.record == "all" else 0)

    def write(self, directory: RunDirectory | None, method: Method, span: TaskSpan) -> None:
        """The evaluation after task `span` is whole. A resumed run writes the same again."""
        batches, self._batches = self._batches, []
        if not self.open or directory is None:
            return
        self.open = False
        directory.analysis.mkdir(exist_ok=True)
        images = directory.analysis / "images.safetensors"
        if not images.exists():
            _write(images, _describe_images(self.stream))
        arrays = {
            key: _small(key, torch.cat([batch[key] for batch in batches])) for key in batches[0]
        }
        _write(
            directory.analysis / f"task-{span.index + 1:03d}.safetensors",
            arrays | _experts_of(method),
        )


def _small(key: str, tensor: Tensor) -> numpy.ndarray:
    array = tensor.numpy()
    return array.astype(numpy.uint16) if array.dtype == numpy.int32 else array


def _experts_of(method: Method) -> dict[str, numpy.ndarray]:
    """Keys, values and usage counts of each prompted block, as attention uses them."""
    arrays: dict[str, numpy.ndarray] = {}
    for block, bank in enumerate(method.experts):
        with torch.no_grad():
            keys, values = (rows.detach().float().cpu().numpy() for rows in bank())
        arrays |= {
            f"keys.{block}": keys,
            f"values.{block}": values,
            f"counts.{block}": bank.counts.cpu().numpy(),
        }
    return arrays


def _describe_images(stream: Stream) -> dict[str, numpy.ndarray]:
    """What is known of the test images without a model, and a few of them."""
    tests = [task.test for task in stream.tasks]
    start = numpy.cumsum([0, *(len(test) for test in tests)])
    chosen = [(task, index) for task in stream.tasks for index in _examples_of(task)]
    return {
        "labels": numpy.array([label for test in tests for label in test.targets], numpy.uint16),
        "tasks": numpy.repeat(
            numpy.arange(len(tests), dtype=numpy.uint16), [len(test) for test in tests]
        ),
        "source_index": numpy.array(
            [index for test in tests for index in test.source_index], numpy.uint32
        ),
        "examples": numpy.stack([_thumbnail(task.test[index][0]) for task, index in chosen]),
        "example_of": numpy.array(
            [start[task.index] + index for task, index in chosen], numpy.uint32
        ),
    }


def _examples_of(task: Task) -> list[int]:
    """The first test image of each of a few classes, as far apart as the task's classes allow."""
    first: dict[int, int] = {}
    for index, label in enumerate(task.test.targets):
        first.setdefault(label, index)
    labels = sorted(first)
    places = numpy.linspace(0, len(labels) - 1, min(EXAMPLES, len(labels))).round().astype(int)
    return [first[labels[place]] for place in places]


def _thumbnail(image: Tensor) -> numpy.ndarray:
    """image (3, S, S) in [0, 1] -> (s, s, 3) uint8, s at most EXAMPLE_SIDE."""
    side = min(image.shape[-1], EXAMPLE_SIDE)
    small = F.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return (255 * small.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _write(path: Path, arrays: dict[str, Any]) -> None:
    contiguous = {key: numpy.ascontiguousarray(array) for key, array in arrays.items()}
    write_atomically(path, save(contiguous, {"format_version": str(FORMAT_VERSION)}))
