"""The order in which a stream's classes arrive, and how many of them each task holds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.layouts.names import NameIndex, number_from_0
from smope.streams.layouts.text_files import describe_error, read_text

PILOT_SEED = 1993
ORDER_FILE_FORMAT = "one class a line, by name or by number"


def resolve_class_order(
    order: str | Sequence[int | str], class_names: Sequence[str], seed: int
) -> tuple[int, ...]:
    """The order in which classes arrive. No global random state is read or changed.

    Args:
        order: how classes are ordered:
            "paper": Python's shuffle seeded with `seed`, as in the authors' code (100 classes and
            seed 0 start 23, 8, 11, 7, 48).
            "pilot": numpy's legacy permutation with seed 1993 whatever `seed` is, as in the PILOT
            toolbox and papers built on it.
            "sorted": 0, 1, 2, ...
            A list of classes: exactly that order. A number and its text mean the same: the class
            of that name, if there is one; otherwise the class of that id. Where every class name
            is a whole number, numbers are names only, compared by value (1 is 01 or 1.0).
            Any other text: the path of a file that holds such a list, one class a line.
        class_names: of the source, by class id.
        seed: the stream's seed.

    Returns:
        The source's class ids, 0..num_classes-1, in order of arrival.

    Raises:
        UserError: a given order does not hold each class exactly once.
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
        lines = read_text(Path(path).expanduser()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"stream.class_order={path}: {_reason(error)}; write paper, pilot, sorted, a list of "
            f"class ids or names, or the path of a file with {ORDER_FILE_FORMAT}"
        ) from error
    return [line for line in lines if line.strip()]


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"cannot be read as text ({describe_error(error)})"
    return "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"


def _given_order(
    order: Sequence[int | str], class_names: Sequence[str], key: str
) -> tuple[int, ...]:
    names = NameIndex(class_names)
    ways = "by name" if names.are_numbers else "by name or by number from 0"
    rule = f"{key} must hold each of the {len(class_names)} classes exactly once, {ways}"
    ids = []
    for item in order:
        class_id = names.find(item)
        if class_id is None and not names.are_numbers:
            class_id = number_from_0(item, len(class_names))
        if class_id is None:
            raise UserError(f"{rule}, got {item!r}; remove it or use class_order=paper")
        ids.append(class_id)
    repeated = sorted(i for i, count in Counter(ids).items() if count > 1)
    if repeated:
        raise UserError(
            f"{rule}, got {repeated[0]} ({class_names[repeated[0]]}) more than once; remove one "
            "or use class_order=paper"
        )
    missing = sorted(set(range(len(class_names))) - set(ids))
    if missing:
        raise UserError(
            f"{rule}, got {len(ids)} without {missing[0]} ({class_names[missing[0]]}); add the "
            "missing ones or use class_order=paper"
        )
    return tuple(ids)


def divide_classes(
    num_classes: int,
    num_tasks: int | None,
    classes_per_task: Sequence[int] | Literal["random"] | None,
    seed: int = 0,
) -> list[int]:
    """How many classes each task holds; no class is ever dropped.

    Args:
        num_classes: of the source.
        num_tasks: how many tasks; not read where `classes_per_task` is a list.
        classes_per_task: a list says how many classes each task has; "random" draws the sizes, at
            least one class a task; None divides the classes evenly.
        seed: of the draw.

    Raises:
        UserError: the numbers do not fit.
    """
    if classes_per_task is not None and not isinstance(classes_per_task, str):
        return _explicit_sizes(num_classes, list(classes_per_task))
    if (
        isinstance(num_tasks, bool)
        or not isinstance(num_tasks, int)
        or not 1 <= num_tasks <= num_classes
    ):
        raise UserError(
            f"stream.num_tasks must be in 1..{num_classes}, the number of classes, got "
            f"{'null' if num_tasks is None else num_tasks}; choose one in that range"
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
            f"one of {divisors}, or say how with stream.classes_per_task={example}"
        )
    return [num_classes // num_tasks] * num_tasks


def _explicit_sizes(num_classes: int, sizes: list[int]) -> list[int]:
    text = str(sizes).replace(" ", "")
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise UserError(
            "stream.classes_per_task must be a list of whole numbers, each at least 1, got "
            f"{text}; correct it, or set it to null and stream.num_tasks divides the classes"
        )
    if sum(sizes) != num_classes:
        raise UserError(
            f"stream.classes_per_task must add up to {num_classes}, the number of classes, got "
            f"{text} which adds up to {sum(sizes)}; correct it, or set it to null and "
            "stream.num_tasks divides the classes"
        )
    return sizes
