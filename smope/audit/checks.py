"""The checks of an audit, one function each. None of them changes the run.

Tolerances, and why:
    FLOAT64_TOLERANCE  between logits of the same image in different batches, computed in float64:
                       largest difference over largest logit. Rounding changes them by 1e-15 a
                       layer. A method that looks at other images changes them by 1e-4 and more. In
                       float32 the two are harder to tell apart, since a rounded score may choose
                       another expert.
    FLOAT32_TOLERANCE  the same on a device without float64.
    REPEAT_TOLERANCE   between two evaluations on an accelerator, whose kernels may add in another
                       order. On a CPU it is 0.
    SCORE_TOLERANCE    between a score and the same score computed from the matrix: the last digits
                       that JSON keeps.
    run/reevaluate.py has those of accuracies evaluated again. streams/checking/findings.py has
    MAX_OVERLAP_FRACTION, the share of test images that may be among the training images: 1 %.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from smope.audit.restored_run import RestoredRun, Verdict
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.methods.base import Method
from smope.metrics.scores import SCORES
from smope.run.reevaluate import IMAGE_COUNT_TOLERANCE, evaluate_again
from smope.streams.checking.findings import MAX_OVERLAP_FRACTION
from smope.streams.checking.inspection import pixel_hash
from smope.streams.pixels.transforms import Evaluation
from smope.training.history import History

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages

FLOAT64_TOLERANCE, FLOAT32_TOLERANCE = 1e-9, 1e-3
REPEAT_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-12
# Other scores are missing in runs of older versions.
SCORES_OF_EVERY_VERSION = (
    "final_average_accuracy",
    "cumulative_average_accuracy",
    "forgetting",
    "sample_weighted_accuracy",
)
RAISED_LOGIT = 1e6  # added to the logits of classes that were not seen


def run_checks(run: RestoredRun) -> Iterator[Verdict]:
    """Every check's verdict, in turn."""
    for check in CHECKS:
        yield check(run)


@torch.no_grad()
def logits(method: Method, images: Tensor, size: int) -> Tensor:
    """Classify images in batches.

    Args:
        method: in evaluation mode.
        images: (n, 3, S, S) in [0, 1].
        size: images of a batch.

    Returns:
        Logits (n, num_classes).
    """
    dtype = method.classifier.weight.dtype
    batches = images.split(size)
    return torch.cat([method.classify(method.features(batch.to(dtype))) for batch in batches])


def _in_float64(run: RestoredRun) -> tuple[Method, float]:
    """A copy of the method in evaluation mode, in float64 if the device has it, and the
    tolerance.
    """
    exact = run.trainer.device.type != "mps"
    method = copy.deepcopy(run.method).eval()
    return (method.double(), FLOAT64_TOLERANCE) if exact else (method, FLOAT32_TOLERANCE)


def _difference(first: Tensor, second: Tensor) -> float:
    """Largest difference over the largest magnitude; infinite if a value is not finite."""
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return float("inf")
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))


def batch_size(run: RestoredRun) -> Verdict:
    """An image alone gets the logits that it gets among others."""
    method, allowed = _in_float64(run)
    images, size = run.sampled(), run.trainer.settings.eval_batch_size
    difference = _difference(logits(method, images, size), logits(method, images, 1))
    text = f"logits of {len(images)} images alone and in batches of {min(size, len(images))}"
    dependence = run.method.needs_one_process()
    if dependence is not None:
        text = f"with {dependence.setting}, which couples the images of a training batch, {text}"
    return _compared("batch size", text, difference, allowed)


def image_order(run: RestoredRun) -> Verdict:
    """Sorted by task or shuffled over all tasks, an image gets the same logits."""
    method, allowed = _in_float64(run)
    images, size = run.sampled(), min(8, run.trainer.settings.eval_batch_size)
    order = list(range(len(images)))
    random.Random(0).shuffle(order)
    difference = _difference(
        logits(method, images, size)[order], logits(method, images[order], size)
    )
    return _compared(
        "image order",
        f"logits of {len(images)} images sorted by task and shuffled",
        difference,
        allowed,
    )


def repeated_evaluation(run: RestoredRun) -> Verdict:
    """A second evaluation gives the same, and evaluating changes nothing in the method."""
    method, images = copy.deepcopy(run.method).eval(), run.sampled()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    size = run.trainer.settings.eval_batch_size
    difference = _difference(logits(method, images, size), logits(method, images, size))
    after = method.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    if changed:
        text = f"evaluating changed {', '.join(changed[:3])} ({len(changed)} in all)"
        return Verdict("repeated evaluation", False, text, {"changed": changed})
    allowed = 0.0 if run.trainer.device.type == "cpu" else REPEAT_TOLERANCE
    return _compared(
        "repeated evaluation",
        f"logits of {len(images)} images evaluated twice",
        difference,
        allowed,
    )


def _compared(check: str, text: str, difference: float, allowed: float) -> Verdict:
    outcome = "are equal" if difference == 0 else f"differ by {difference:.1e} of the largest"
    return Verdict(
        check,
        difference <= allowed,
        f"{text} {outcome} (allowed: {allowed:g})",
        {"apart": difference, "allowed": allowed},
    )


def evaluation_mode(run: RestoredRun) -> Verdict:
    """No module that evaluation runs is in training mode, whether the method registers it or
    not.
    """
    trainer, training = run.trainer, set[str]()

    def note(module: nn.Module, _inputs: Any) -> None:
        if module.training:
            training.add(type(module).__name__)

    with _few_images(run), _before_each_module(note):
        trainer.accuracy(0, run.seen_classes)
    training |= {type(module).__name__ for module in trainer.method.modules() if module.training}
    if training:
        text = f"in training mode while evaluated: {', '.join(sorted(training))}"
        return Verdict("evaluation mode", False, text)
    count = len(list(trainer.method.modules()))
    return Verdict(
        "evaluation mode", True, f"all {count} modules are in evaluation mode while evaluated"
    )


@contextmanager
def _before_each_module(hook: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Call `hook` before the forward pass of every module in the block."""
    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _few_images(run: RestoredRun) -> Iterator[TaskImages]:
    """Reduce the test images of the first task to the sample, to try the trainer's own
    evaluation.
    """
    stream = run.trainer.stream
    first, *others = stream.tasks
    images = first.test.choose(run.sample[0])
    run.trainer.stream = replace(stream, tasks=(replace(first, test=images), *others))
    try:
        yield images
    finally:
        run.trainer.stream = stream


def evaluation_transforms(run: RestoredRun) -> Verdict:
    """Test images are resized and cropped as the configuration says, and the same in every
    epoch.
    """
    side = run.method.backbone.image_size
    transform = Evaluation(side, run.record["config"]["stream"]["eval_crop"])
    wrong = 0
    for images, positions in zip(run.tests(), run.sample, strict=True):
        for index in positions:
            windows = []
            for epoch in (0, 1, 2):
                images.set_epoch(epoch)
                windows.append(images.unresampled[index][1])
            height, width = images.pixels(index).shape[:2]
            expected = transform.window(height, width, random.Random(0))
            wrong += any(window != expected for window in windows)
        images.set_epoch(0)
    count = sum(map(len, run.sample))
    if wrong:
        text = (
            f"{wrong} of {count} test images are not shown as stream.eval_crop says, or "
            f"differently from time to time"
        )
    else:
        text = f"{count} test images are shown whole or centred, the same in every epoch"
    return Verdict("evaluation transforms", wrong == 0, text, {"odd": wrong, "images": count})


def overlap(run: RestoredRun) -> Verdict:
    """Few test images are, pixel for pixel, among the training images."""
    stream = run.trainer.stream
    trained: set[str] = set()
    for task in stream.tasks:
        trained.update(_pixel_hashes(task.train))
    shared = total = 0
    for task in stream.tasks:
        shared += sum(image in trained for image in _pixel_hashes(task.test))
        total += len(task.test)
    allowed = 0 if run.strict else int(MAX_OVERLAP_FRACTION * total)
    text = (
        f"{shared:,} of {total:,} {stream.evaluated_on} images ({100 * shared / total:.3g} %) are "
        f"among the training images, pixel for pixel (allowed: {allowed:,})"
    )
    numbers = {"shared": shared, "images": total}
    return Verdict("train and test overlap", shared <= allowed, text, numbers)


def _pixel_hashes(images: TaskImages) -> Iterator[str]:
    return (pixel_hash(images.pixels(index)) for index in range(len(images)))


def unseen_classes(run: RestoredRun) -> Verdict:
    """Raising the logits of all later classes does not change the accuracy as after the first
    task.
    """
    trainer, method = run.trainer, run.method
    seen = trainer.spans[0].stop
    later = method.num_classes - seen
    if later == 0:
        return Verdict("unseen classes", None, "after the first task no class is unseen")
    classify, calls = method.classify, 0

    def raised(features: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        logits = classify(features).clone()
        logits[:, seen:] += RAISED_LOGIT
        return logits

    with _few_images(run) as images:
        plain = trainer.accuracy(0, seen)
        method.classify = raised
        try:
            raised_accuracy = trainer.accuracy(0, seen)
        finally:
            del method.classify
        count = len(images)
    assert calls, "the trainer evaluates by Method.classify"
    same = raised_accuracy == plain
    text = (
        f"with the {later} later classes favoured, accuracy on {count} images of task 1 as after "
        f"task 1 is {100 * raised_accuracy:.2f} %, {'as' if same else 'and'} without "
        f"{100 * plain:.2f} %"
    )
    return Verdict("unseen classes", same, text, {"plain": plain, "tempted": raised_accuracy})


def frozen_weights(run: RestoredRun) -> Verdict:
    """The backbone's file is the one of the run, and training did not change its tensors."""
    check, identity = "frozen weights", run.method.backbone.identity
    ours, theirs = identity.sha256, run.record["backbone"]["sha256"]
    if ours != theirs:
        text = f"{identity.source} has sha256 {ours[:12]}, run.json says {theirs[:12]}"
        return Verdict(check, False, text, {"file": ours, "run.json": theirs})
    now = frozen_sha256(run.method)
    recorded = run.record.get("frozen_weights") or {}
    numbers = {"file": ours, "tensors": now, **recorded}
    text = f"the file has sha256 {ours[:12]} as in run.json, "
    if not recorded.get("trained"):
        text += "which lacks a hash of the tensors after training"
        finished = run.record["status"] == "finished"
        return Verdict(check, False if finished else None, text, numbers)
    loaded, trained = recorded["loaded"], recorded["trained"]
    if now == loaded == trained:
        text += "and training left its tensors as they are in it"
        return Verdict(check, True, text, numbers)
    text += f"but its tensors hash to {now[:12]}, in the run to {loaded[:12]}, then {trained[:12]}"
    return Verdict(check, False, text, numbers)


def last_row(run: RestoredRun) -> Verdict:
    """run.json and the checkpoint have the same matrix, and evaluating now gives its last row."""
    saved = History.read(run.checkpoint.history, run.checkpoint.path).full_matrix()
    matrix = run.record["accuracy_matrix"]
    differing = [
        index + 1 for index, row in enumerate(saved) if index >= len(matrix) or matrix[index] != row
    ]
    again = evaluate_again(run.trainer, run.checkpoint)
    numbers = {"fresh": again.fresh, "recorded": again.recorded}
    if differing or len(matrix) != len(saved):
        rows = ", ".join(map(str, differing)) or f"{len(matrix)} rows"
        text = f"run.json and the checkpoint differ in the matrix after task {rows}"
        return Verdict("last row", False, text, numbers)
    changes = [
        f"task {index + 1} {100 * again.fresh[index]:.2f} % instead of "
        f"{100 * again.recorded[index]:.2f} %"
        for index in again.differing_tasks
    ]
    text = f"the last state evaluated again gives the matrix's last row {again.rule}"
    if changes:
        text = f"evaluated again: {', '.join(changes)}"
    return Verdict("last row", not changes, text, numbers)


def scores(run: RestoredRun) -> Verdict:
    """Every accuracy is a number of images, and every score follows from the accuracies."""
    record, done = run.record, run.tasks_done
    matrix = [row[:done] for row in record["accuracy_matrix"][:done]]
    sizes = [task["test"] for task in record["tasks"]][:done]
    cells = [(after, task) for after in range(len(matrix)) for task in range(after + 1)]
    wrong = [
        f"accuracy [{after + 1}, {task + 1}] {matrix[after][task]}"
        for after, task in cells
        if not _is_image_share(matrix[after][task], sizes[task])
    ]
    if not wrong:
        expected = {
            key: score.function(matrix, sizes)
            for key, score in SCORES.items()
            if key in record or key in SCORES_OF_EVERY_VERSION
        }
        wrong = [
            f"{key} {record.get(key)} instead of {value}"
            for key, value in expected.items()
            if not _close(record.get(key), value)
        ]
    text = "accuracies are whole numbers of images, and all scores follow from them"
    return Verdict("scores", not wrong, f"in run.json {'; '.join(wrong)}" if wrong else text)


def _is_image_share(value: float | None, images: int) -> bool:
    """Whether an accuracy is a whole number of right images out of `images`."""
    if value is None or not 0 <= value <= 1:
        return False
    right = value * images
    return abs(right - round(right)) <= IMAGE_COUNT_TOLERANCE


def _close(value: float | None, expected: float) -> bool:
    return value is not None and abs(value - expected) <= SCORE_TOLERANCE


CHECKS: tuple[Callable[[RestoredRun], Verdict], ...] = (
    batch_size,
    image_order,
    repeated_evaluation,
    evaluation_mode,
    evaluation_transforms,
    overlap,
    unseen_classes,
    frozen_weights,
    last_row,
    scores,
)
