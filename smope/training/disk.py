"""What a run writes, counted in bytes before it starts."""

from __future__ import annotations

from smope.methods._shared.ridge_sums import Sums
from smope.methods._shared.routed_method import experts_of, routings_of
from smope.methods.base import Method
from smope.metrics.cost import stored_bytes
from smope.training.checkpoint import CHECKPOINTS_KEPT
from smope.training.feature_store import BYTES_IN_MEMORY
from smope.training.frozen_work import count_frozen_work
from smope.training.precision import AUTOCAST_DTYPES
from smope.training.recording import EXAMPLE_SIDE_PIXELS, EXAMPLES_PER_TASK
from smope.training.top_logits import TOP
from smope.training.trainer import Trainer

IMAGE_BYTES = 8  # label, task and number of a test image


def disk_bytes(trainer: Trainer) -> dict[str, int]:
    """The most bytes of a run directory, by what they hold.

    Args:
        trainer: of the run.

    Returns:
        checkpoints: those that are kept, and the model beside them; optimizer state comes on top
        while a task is learned. analysis: what trainer.record keeps. features: of images,
        on disk only while the run lasts and only beyond the bound in memory.
    """
    state = stored_bytes(trainer.method) + growth_bytes(trainer)
    return {
        "checkpoints": (CHECKPOINTS_KEPT + 1) * state,
        "analysis": analysis_bytes(trainer),
        "features": feature_bytes(trainer),
    }


def growth_bytes(trainer: Trainer) -> int:
    """Bytes by which the method's state grows until it has learned all tasks."""
    images = sum(len(task.train) for task in trainer.stream.tasks)
    sums = (module for module in trainer.method.modules() if isinstance(module, Sums))
    return sum(module.bytes_after(images) for module in sums)


def feature_bytes(trainer: Trainer) -> int:
    """Bytes of the file of features that do not fit into memory: those of test images where they
    are final, and those of the frozen backbone that are needed again.
    """
    method, spans = trainer.method, trainer.spans
    half = AUTOCAST_DTYPES.get(trainer.settings.precision, trainer.dtype)
    numbers = count_frozen_work(trainer).images * half.itemsize
    if method.features_are_final(spans[-1]):
        numbers += sum(len(task.test) for task in trainer.stream.tasks) * trainer.dtype.itemsize
    return max(numbers * method.backbone.embed_dim - BYTES_IN_MEMORY, 0)


def analysis_bytes(trainer: Trainer) -> int:
    """Bytes of analysis/, without heads of files and the pictures of mistakes."""
    record, tasks = trainer.record, trainer.stream.tasks
    if record == "nothing":
        return 0
    side = min(trainer.method.backbone.image_size, EXAMPLE_SIDE_PIXELS)
    total = IMAGE_BYTES * sum(len(task.test) for task in tasks)
    total += sum(min(EXAMPLES_PER_TASK, len(task.classes)) for task in tasks) * (3 * side**2 + 4)
    images_of = [sum(len(task.test) for task in tasks[: count + 1]) for count in range(len(tasks))]
    choices, experts = _expert_bytes(trainer.method)
    for span in trainer.spans:
        images = images_of[-1 if record == "all" else span.index]
        if record == "top":
            best = min(TOP, span.stop)
            logits = 4 * best + (20 if 0 < span.start < span.stop else 16)
        else:
            logits = 2 * span.stop + 4
        total += images * (logits + 2 + choices) + experts
    return total


def _expert_bytes(method: Method) -> tuple[int, int]:
    """Bytes of an image's choices of experts, and of all keys, values and counts; the method has
    classified an image.
    """
    choices = experts = 0
    for bank, routing in zip(experts_of(method), routings_of(method), strict=True):
        heads, number, width = bank.keys.shape
        experts += heads * number * (2 * 4 * width + 8)
        if routing.by_images:
            choices += heads * routing.num_chosen * (1 if number <= 256 else 2)
    return choices, experts
