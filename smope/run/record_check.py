"""What an artefact must hold to make sense, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from smope.errors import UserError, one_line
from smope.run.memory_advice import is_out_of_memory

MOST_CLASSES = 1_000_000  # and tasks: more is no model, but memory that a stranger asks for
MOST_OF_A_CHANNEL = 1000  # mean and std of pixels in [0, 1]
PRECISIONS = ("float32", "bfloat16", "float16", "float64")


def senseless(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of fields that hold what no run writes. Their types are right already."""
    names, classes, tasks = (record[key] for key in ("class_names", "num_classes", "total_tasks"))
    if not _all(names, str) or not 1 <= len(names) <= classes:
        yield "class_names"
    if classes > MOST_CLASSES:
        yield "num_classes"
    if not record["tasks_done"] <= tasks <= MOST_CLASSES:
        yield "total_tasks"
    if not 0 < record["eval_crop"] <= 1:
        yield "eval_crop"
    if record["precision"] not in PRECISIONS:
        yield "precision"
    yield from _wrong("identity", record["identity"], IDENTITY)
    for entry in record.get("lineage", []):
        if not isinstance(entry, dict):
            yield "lineage"
        else:
            yield from _wrong("lineage", entry, ENTRY)


@contextmanager
def refusing_nonsense(*kinds: type[Exception]) -> Iterator[None]:
    """Turn what values and tensors of a file raise where they are used into a UserError.

    Args:
        *kinds: The exceptions that are meant; none: all, for where nothing but the file decides.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if kinds and not isinstance(error, kinds):
            raise
        if is_out_of_memory(error):
            raise MemoryError("model: there is too little memory for what it describes") from error
        raise UserError(
            f"model: its content makes no sense ({type(error).__name__}: {one_line(error)[:200]}); "
            "get the file from where it was trained"
        ) from error


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_channels(value: Any) -> bool:
    """Whether this is one number for each of three channels."""
    numbers = value if _all(value, int | float) else []  # pyright: ignore[reportArgumentType]
    return len(numbers) == 3 and all(abs(number) <= MOST_OF_A_CHANNEL for number in numbers)


def _is_counts(value: Any) -> bool:
    """Whether this is a number of images of each class; one that forgot has a number of classes."""
    return (
        value is None
        or isinstance(value, int)
        or (isinstance(value, dict) and all(isinstance(count, int) for count in value.values()))
    )


Rules = Mapping[str, Callable[[Any], bool]]
IDENTITY: Rules = {
    "name": _is_text,
    "source": _is_text,
    "sha256": _is_text,
    "mean": _is_channels,
    "std": lambda value: _is_channels(value) and min(value) > 0,
}
ENTRY: Rules = {
    "action": _is_text,
    "parent": lambda value: isinstance(value, dict),
    "classes": _is_counts,
    "more_images": lambda value: value is None or _all(value, str),
}


def _wrong(name: str, values: Mapping[str, Any], rules: Rules) -> Iterator[str]:
    return (f"{name}.{key}" for key, holds in rules.items() if not holds(values.get(key)))
