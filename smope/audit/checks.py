"""The checks of an audit, one function each. None of them changes the run.

Tolerances, and why:
    FLOAT64    logits of the same image in other company, computed in float64: largest difference
               over largest logit.
               Rounding moves them by 1e-15 a layer; a method that looks at other images moves them
               by 1e-4 and more. In float32 the line would be harder to draw, since a rounded score
               may choose another expert.
    FLOAT32    the same on a device without float64.
    REPEAT     two evaluations on an accelerator, whose kernels need not add in the same order; 0 on
               a CPU.
    MOVED, WHOLE (smope/run/reevaluate.py) of the accuracies evaluated again.
    SCORE      a score and the same computed from the matrix: the last digits that JSON keeps.
    MOST_OVERLAP (smope/streams/checking/findings.py) of the test images among the training images:
        1 %.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from smope.audit.restored_run import Subject, Verdict
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.methods.base import Method
from smope.metrics.scores import SCORES
from smope.run.reevaluate import WHOLE, evaluate_again
from smope.streams.checking.findings import MOST_OVERLAP
from smope.streams.checking.inspection import pixel_hash
from smope.streams.pixels.transforms import Evaluation
from smope.streams.stream import TaskImages
from smope.training.history import History

FLOAT64, FLOAT32, REPEAT, SCORE = 1e-9, 1e-3, 1e-5, 1e-12
RAISED = 1e6  # added to the logits of classes still to come


def run_checks(subject: Subject) -> Iterator[Verdict]:
    """Every check's verdict, in turn."""
    for check in (
        *(batch_size, image_order, repeated_evaluation, evaluation_mode, evaluation_transforms),
        *(overlap, unseen_classes, frozen_weights, last_row, scores),
    ):
        yield check(subject)


@torch.no_grad()
def logits(method: Method, images: Tensor, size: int) -> Tensor:
    """images (n, 3, S, S) in batches of `size` -> logits (n, num_classes)."""
    dtype = method.classifier.weight.dtype
    return torch.cat(
        [method.classify(method.features(part.to(dtype))) for part in images.split(size)]
    )


def _in_float64(subject: Subject) -> tuple[Method, float]:
    """A copy of the method, evaluating, in float64 where the device has it, and the tolerance that
    this allows.
    """
    exact = subject.trainer.device.type != "mps"
    method = copy.deepcopy(subject.method).eval()
    return (method.double(), FLOAT64) if exact else (method, FLOAT32)


def _apart(first: Tensor, second: Tensor) -> float:
    """Largest difference over the largest magnitude; infinite where one is not finite."""
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return float("inf")
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))


def batch_size(subject: Subject) -> Verdict:
    """An image alone gets the logits that it gets among others."""
    method, allowed = _in_float64(subject)
    images, size = subject.sampled(), subject.trainer.settings.eval_batch_size
    apart = _apart(logits(method, images, size), logits(method, images, 1))
    text = f"logits of {len(images)} images alone and in batches of {min(size, len(images))}"
    return _compared("batch size", text, apart, allowed)


def image_order(subject: Subject) -> Verdict:
    """Sorted by task or shuffled over all tasks, an image gets the same logits."""
    method, allowed = _in_float64(subject)
    images, size = subject.sampled(), min(8, subject.trainer.settings.eval_batch_size)
    order = list(range(len(images)))
    random.Random(0).shuffle(order)
    apart = _apart(logits(method, images, size)[order], logits(method, images[order], size))
    return _compared(
        "image order", f"logits of {len(images)} images sorted by task and shuffled", apart, allowed
    )


def repeated_evaluation(subject: Subject) -> Verdict:
    """A second evaluation gives the same, and evaluating changes nothing that the method keeps."""
    method, images = copy.deepcopy(subject.method).eval(), subject.sampled()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    size = subject.trainer.settings.eval_batch_size
    apart = _apart(logits(method, images, size), logits(method, images, size))
    after = method.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    if changed:
        text = f"evaluating changed {', '.join(changed[:3])} ({len(changed)} in all)"
        return Verdict("repeated evaluation", False, text, {"changed": changed})
    allowed = 0.0 if subject.trainer.device.type == "cpu" else REPEAT
    return _compared(
        "repeated evaluation", f"logits of {len(images)} images evaluated twice", apart, allowed
    )


def _compared(check: str, text: str, apart: float, allowed: float) -> Verdict:
    differ = "are equal" if apart == 0 else f"differ by {apart:.1e} of the largest"
    return Verdict(
        check,
        apart <= allowed,
        f"{text} {differ} (allowed: {allowed:g})",
        {"apart": apart, "allowed": allowed},
    )


def evaluation_mode(subject: Subject) -> Verdict:
    """No module that evaluation runs through is in training mode, whether it is registered or not."""
    trainer, found = subject.trainer, set[str]()

    def look(module: nn.Module, _inputs: Any) -> None:
        if module.training:
            found.add(type(module).__name__)

    with _few_images(subject), _hooked(look):
        trainer.accuracy(0, subject.seen_classes)
    found |= {type(module).__name__ for module in trainer.method.modules() if module.training}
    if found:
        return Verdict(
            "evaluation mode",
            False,
            f"in training mode while evaluated: {', '.join(sorted(found))}",
        )
    count = len(list(trainer.method.modules()))
    return Verdict(
        "evaluation mode", True, f"all {count} modules are in evaluation mode while evaluated"
    )


@contextmanager
def _hooked(look: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _few_images(subject: Subject) -> Iterator[TaskImages]:
    """The first task's test images reduced to the sample, for a look at the trainer's own
    evaluation.
    """
    images, chosen = subject.trainer.stream.tasks[0].test, subject.sample[0]
    targets, source_index = images.targets, images.source_index
    images.targets, images.source_index = (
        [values[i] for i in chosen] for values in (targets, source_index)
    )
    try:
        yield images
    finally:
        images.targets, images.source_index = targets, source_index


def evaluation_transforms(subject: Subject) -> Verdict:
    """Test images are resized and cut as the configuration says, the same in every epoch: nothing
    is drawn.
    """
    side = subject.method.backbone.image_size
    expected = Evaluation(side, subject.record["config"]["stream"]["eval_crop"])
    odd = 0
    for images, chosen in zip(subject.tests(), subject.sample, strict=True):
        for index in chosen:
            windows = []
            for epoch in (0, 1, 2):
                images.set_epoch(epoch)
                windows.append(images.part(index)[1])
            height, width = images.pixels(index).shape[:2]
            odd += any(
                window != expected.window(height, width, random.Random(0)) for window in windows
            )
        images.set_epoch(0)
    count = sum(map(len, subject.sample))
    if odd:
        text = f"{odd} of {count} test images are not shown as stream.eval_crop says, or differently from time to time"
    else:
        text = f"{count} test images are shown whole or centred, the same in every epoch"
    return Verdict("evaluation transforms", odd == 0, text, {"odd": odd, "images": count})


def overlap(subject: Subject) -> Verdict:
    """How many images that are evaluated on are, pixel for pixel, among those trained on."""
    stream = subject.trainer.stream
    trained = {
        hashed
        for task in stream.tasks
        for hashed in map(pixel_hash, map(task.train.pixels, range(len(task.train))))
    }
    tests = [
        pixel_hash(task.test.pixels(index))
        for task in stream.tasks
        for index in range(len(task.test))
    ]
    shared, total = sum(hashed in trained for hashed in tests), len(tests)
    allowed = 0 if subject.strict else int(MOST_OVERLAP * total)
    text = (
        f"{shared:,} of {total:,} {stream.evaluated_on} images ({100 * shared / total:.3g} %) are "
        f"among the training "
        f"images, pixel for pixel (allowed: {allowed:,})"
    )
    return Verdict(
        "train and test overlap", shared <= allowed, text, {"shared": shared, "images": total}
    )


def unseen_classes(subject: Subject) -> Verdict:
    """As after the first task, with the logits of all later classes raised above the others:
    accuracy must not move.
    """
    trainer, method = subject.trainer, subject.method
    seen = trainer.spans[0].stop
    later = method.num_classes - seen
    if later == 0:
        return Verdict("unseen classes", None, "after the first task no class is unseen")
    classify, calls = method.classify, 0

    def raised(features: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = classify(features).clone()
        found[:, seen:] += RAISED
        return found

    with _few_images(subject) as images:
        plain = trainer.accuracy(0, seen)
        method.classify = raised
        try:
            tempted = trainer.accuracy(0, seen)
        finally:
            del method.classify
        count = len(images)
    assert calls, "the trainer evaluates by Method.classify"
    text = (
        f"with the {later} later classes favoured, accuracy on {count} images of task 1 as after "
        f"task 1 is "
        f"{100 * tempted:.2f} %, {'as' if tempted == plain else 'and'} without {100 * plain:.2f} %"
    )
    return Verdict("unseen classes", tempted == plain, text, {"plain": plain, "tempted": tempted})


def frozen_weights(subject: Subject) -> Verdict:
    """The backbone's file is the one that was trained with, and training left its tensors as they
    were in it.
    """
    identity, told = subject.method.backbone.identity, subject.record.get("frozen_weights")
    ours, theirs = identity.sha256, subject.record["backbone"]["sha256"]
    if ours != theirs:
        text = f"{identity.source} has sha256 {ours[:12]}, run.json says {theirs[:12]}"
        return Verdict("frozen weights", False, text, {"file": ours, "run.json": theirs})
    now = frozen_sha256(subject.method)
    numbers = {"file": ours, "tensors": now, **(told or {})}
    if not told or not told["trained"]:
        text = f"the file has sha256 {ours[:12]} as in run.json, which lacks a hash of the tensors after training"
        return Verdict(
            "frozen weights",
            False if subject.record["status"] == "finished" else None,
            text,
            numbers,
        )
    same = now == told["loaded"] == told["trained"]
    text = f"the file has sha256 {ours[:12]} as in run.json, " + (
        "and training left its tensors as they are in it"
        if same
        else f"but its tensors hash to {now[:12]}, in the run to {told['loaded'][:12]}, then "
        f"{told['trained'][:12]}"
    )
    return Verdict("frozen weights", same, text, numbers)


def last_row(subject: Subject) -> Verdict:
    """The matrix is that of the checkpoint, and its last row is what the final state gives when
    evaluated now.
    """
    trainer = subject.trainer
    kept = History.read(subject.checkpoint.history, subject.checkpoint.path).full_matrix()
    told = subject.record["accuracy_matrix"]
    odd = [
        index + 1 for index in range(len(kept)) if index >= len(told) or told[index] != kept[index]
    ]
    again = evaluate_again(trainer, subject.checkpoint)
    numbers = {"fresh": again.fresh, "recorded": again.recorded}
    if odd or len(told) != len(kept):
        rows = ", ".join(map(str, odd)) or f"{len(told)} rows"
        return Verdict(
            "last row",
            False,
            f"run.json and the checkpoint differ in the matrix after task {rows}",
            numbers,
        )
    off = [
        f"task {index + 1} {100 * again.fresh[index]:.2f} % instead of "
        f"{100 * again.recorded[index]:.2f} %"
        for index in again.off
    ]
    text = f"the last state evaluated again gives the matrix's last row {again.rule}"
    return Verdict(
        "last row", not off, f"evaluated again: {', '.join(off)}" if off else text, numbers
    )


def scores(subject: Subject) -> Verdict:
    """Every accuracy is a number of images, and every score follows from them."""
    record, done = subject.record, subject.tasks_done
    matrix = [row[:done] for row in record["accuracy_matrix"][:done]]
    sizes = [task["test"] for task in record["tasks"]][:done]
    cells = [(row, column) for row in range(len(matrix)) for column in range(row + 1)]
    odd = [
        f"accuracy [{t + 1}, {j + 1}] {matrix[t][j]}"
        for t, j in cells
        if _no_share(matrix[t][j], sizes[j])
    ]
    if not odd:
        # a run of an older version has fewer scores
        expected = {
            key: score.function(matrix, sizes) for key, score in SCORES.items() if key in record
        }
        wrong = [key for key, value in expected.items() if not _close(record.get(key), value)]
        odd = [f"{key} {record.get(key)} instead of {expected[key]}" for key in wrong]
    text = "accuracies are whole numbers of images, and all scores follow from them"
    return Verdict("scores", not odd, f"in run.json {'; '.join(odd)}" if odd else text)


def _no_share(value: float | None, images: int) -> bool:
    """Whether an accuracy is no number of right images out of `images`."""
    return (
        value is None or not 0 <= value <= 1 or abs(value * images - round(value * images)) > WHOLE
    )


def _close(value: float | None, expected: float) -> bool:
    return value is not None and abs(value - expected) <= SCORE
