"""The order in which a stream's classes arrive, and how many of them each task holds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from smope.errors import UserError
from smope.seeding import stable_seed

PILOT_SEED = 1993
FORM = "one class a line, by name or by number"


def resolve_class_order(
    order: str | Sequence[int | str], class_names: Sequence[str], seed: int
) -> tuple[int, ...]:
    """The source's class ids 0..num_classes-1 in order of arrival; no global random state is read
    or changed.

    `paper`  Python's shuffle seeded with `seed`, as the authors' program orders its classes
             (100 classes and seed 0 start 23, 8, 11, 7, 48);
    `pilot`  numpy's legacy permutation with seed 1993 whatever `seed` is, as the PILOT toolbox and
             papers
    built on it; `sorted` 0, 1, 2, ...; a list   exactly that order, of class ids or class names; any other
    text   a file that holds such a list, one class a line.
    UserError unless each class is there exactly once.
    """
    ids = list(range(len(class_names)))
    if order == "paper":
        random.Random(seed).shuffle(ids)
        return tuple(ids)
    if order == "pilot":
        import numpy

        return tuple(numpy.random.RandomState(PILOT_SEED).permutation(len(ids)).tolist())
    if order == "sorted":
        return tuple(ids)
    if isinstance(order, str):
        return _given_order(_read_order(order), class_names, f"stream.class_order={order}")
    return _given_order(order, class_names, "stream.class_order")


def _read_order(path: str) -> list[str]:
    try:
        # utf-8-sig: editors on Windows put a mark at the start
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "no such file" if isinstance(error, FileNotFoundError) else "cannot be read as text"
        )
        raise UserError(
            f"stream.class_order={path}: {reason}; write paper, pilot, sorted, a list of class "
            f"ids or names, "
            f"or the path of a file with {FORM}"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _given_order(
    order: Sequence[int | str], class_names: Sequence[str], key: str
) -> tuple[int, ...]:
    rule = f"{key} must hold each of the {len(class_names)} classes exactly once, by name or by number from 0"
    # names first: a class that is called 7 is meant where 7 is written as text
    known = {str(i): i for i in range(len(class_names))} | {
        name: i for i, name in enumerate(class_names)
    }
    ids = []
    for item in order:
        is_id = (
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(class_names)
        )
        if not is_id and not (isinstance(item, str) and item in known):
            raise UserError(f"{rule}, got {item!r}; remove it or use class_order=paper")
        ids.append(item if isinstance(item, int) else known[item])
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    if repeated:
        raise UserError(
            f"{rule}, got {repeated[0]} ({class_names[repeated[0]]}) more than once; "
            "remove one or use class_order=paper"
        )
    missing = sorted(set(range(len(class_names))) - set(ids))
    if missing:
        raise UserError(
            f"{rule}, got {len(ids)} without {missing[0]} ({class_names[missing[0]]}); "
            "add the missing ones or use class_order=paper"
        )
    return tuple(ids)


def divide_classes(
    num_classes: int,
    num_tasks: int | None,
    classes_per_task: Sequence[int] | Literal["random"] | None,
    seed: int = 0,
) -> list[int]:
    """How many classes each task holds, task after task.

    A list `classes_per_task` decides where it is given (`num_tasks` is then its length and not
    read); "random" cuts at points drawn with `seed`, every task getting at least one class;
    otherwise the classes must divide evenly into `num_tasks`. UserError where the rule cannot be
    met: no class is ever dropped.
    """
    if classes_per_task is not None and not isinstance(classes_per_task, str):
        return _explicit_sizes(num_classes, list(classes_per_task))
    if (
        isinstance(num_tasks, bool)
        or not isinstance(num_tasks, int)
        or not 1 <= num_tasks <= num_classes
    ):
        raise UserError(
            f"stream.num_tasks must be in 1..{num_classes}, the number of classes, "
            f"got {'null' if num_tasks is None else num_tasks}; "
            "choose one in that range"
        )
    if classes_per_task == "random":
        cuts = random.Random(stable_seed(seed, "classes per task")).sample(
            range(1, num_classes), num_tasks - 1
        )
        ends = [*sorted(cuts), num_classes]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if num_classes % num_tasks:
        small, rest = divmod(num_classes, num_tasks)
        example = str([small + 1] * rest + [small] * (num_tasks - rest)).replace(" ", "")
        divisors = ", ".join(str(n) for n in range(1, num_classes + 1) if num_classes % n == 0)
        raise UserError(
            f"stream.num_tasks={num_tasks} does not divide the {num_classes} classes evenly; use "
            f"one of "
            f"{divisors}, or say how with stream.classes_per_task={example}"
        )
    return [num_classes // num_tasks] * num_tasks


def _explicit_sizes(num_classes: int, sizes: list[int]) -> list[int]:
    shown = str(sizes).replace(" ", "")
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise UserError(
            f"stream.classes_per_task must be a list of whole numbers, each at least 1, got "
            f"{shown}; "
            "correct it, or set it to null and stream.num_tasks divides the classes"
        )
    if sum(sizes) != num_classes:
        raise UserError(
            f"stream.classes_per_task must add up to {num_classes}, the number of classes, got "
            f"{shown} which "
            f"adds up to {sum(sizes)}; correct it, or set it to null and stream.num_tasks divides "
            f"the classes"
        )
    return sizes
