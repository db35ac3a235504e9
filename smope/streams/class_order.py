"""The order in which a stream's classes arrive, and how many of them each task holds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from smope.errors import UserError

PILOT_SEED = 1993


def resolve_class_order(order: str | Sequence[int], num_classes: int, seed: int) -> tuple[int, ...]:
    """The source's class ids 0..num_classes-1 in order of arrival; no global random state is read or changed.

    `paper`  Python's shuffle seeded with `seed`, as the authors' program orders its classes
             (100 classes and seed 0 start 23, 8, 11, 7, 48);
    `pilot`  numpy's legacy permutation with seed 1993 whatever `seed` is, as the PILOT toolbox and papers
    built on it; `sorted` 0, 1, 2, ...; a list   exactly that order; UserError unless it is a permutation of
    all class ids.
    """
    if order == "paper":
        ids = list(range(num_classes))
        random.Random(seed).shuffle(ids)
        return tuple(ids)
    if order == "pilot":
        import numpy

        return tuple(numpy.random.RandomState(PILOT_SEED).permutation(num_classes).tolist())
    if order == "sorted":
        return tuple(range(num_classes))
    if isinstance(order, str):
        raise UserError(
            f"stream.class_order must be paper, pilot, sorted or a list of class ids, got {order!r}; choose one of them"
        )
    return _explicit_order(order, num_classes)


def _explicit_order(order: Sequence[int], num_classes: int) -> tuple[int, ...]:
    ids = list(order)
    rule = f"stream.class_order must hold each class id 0..{num_classes - 1} exactly once"
    wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < num_classes]
    if wrong:
        raise UserError(f"{rule}, got {wrong[0]!r}; remove it or use class_order=paper")
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise UserError(f"{rule}, got {repeated[0]} more than once; remove one or use class_order=paper")
    missing = sorted(set(range(num_classes)) - set(ids))
    if missing:
        raise UserError(
            f"{rule}, got {len(ids)} ids without {missing[0]}; add the missing ones or use class_order=paper"
        )
    return tuple(ids)


def divide_classes(num_classes: int, num_tasks: int, classes_per_task: Sequence[int] | None) -> list[int]:
    """How many classes each task holds, task after task.

    `classes_per_task` decides where it is given (`num_tasks` is then its length and not read); otherwise the
    classes must divide evenly into `num_tasks`. UserError where neither rule can be met: no class is ever
    dropped.
    """
    if classes_per_task is not None:
        return _explicit_sizes(num_classes, list(classes_per_task))
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or not 1 <= num_tasks <= num_classes:
        raise UserError(
            f"stream.num_tasks must be in 1..{num_classes}, the number of classes, got {num_tasks}; "
            "choose one in that range"
        )
    if num_classes % num_tasks:
        small, rest = divmod(num_classes, num_tasks)
        example = str([small + 1] * rest + [small] * (num_tasks - rest)).replace(" ", "")
        divisors = ", ".join(str(n) for n in range(1, num_classes + 1) if num_classes % n == 0)
        raise UserError(
            f"stream.num_tasks={num_tasks} does not divide the {num_classes} classes evenly; use one of "
            f"{divisors}, or say how with stream.classes_per_task={example}"
        )
    return [num_classes // num_tasks] * num_tasks


def _explicit_sizes(num_classes: int, sizes: list[int]) -> list[int]:
    shown = str(sizes).replace(" ", "")
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise UserError(
            f"stream.classes_per_task must be a list of whole numbers, each at least 1, got {shown}; "
            "correct it, or set it to null and stream.num_tasks divides the classes"
        )
    if sum(sizes) != num_classes:
        raise UserError(
            f"stream.classes_per_task must add up to {num_classes}, the number of classes, got {shown} which "
            f"adds up to {sum(sizes)}; correct it, or set it to null and stream.num_tasks divides the classes"
        )
    return sizes
