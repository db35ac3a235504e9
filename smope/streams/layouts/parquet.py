"""Parquet files of images as the Hugging Face Hub has them: encoded images, labels, class names in
the metadata.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.streams.archives.official_dataset import MakeError

IMAGE_COLUMNS = ("img", "image")
KINDS = {int: "a number", str: "a text"}
NUMBERED = re.compile(r"-(\d+)-of-(\d+)\b")  # the Hub's names: test-00000-of-00005.parquet


@dataclass
class Rows:
    """The rows of some files; all lists but `class_names` have one item a row.

    images: encoded images.
    labels: class ids, or class names where the column holds text.
    files: what the image's file was called, None where the name was not stored.
    names: what errors call the image.
    texts: the extra columns, "" in each row of a file that lacks the column.
    class_names: by class id, from the Hub's metadata; None where there are none.
    """

    images: list[bytes] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    files: list[str | None] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    class_names: list[str] | None = None


def shards(
    parent: Path, subdirectories: Sequence[str], test_names: Sequence[str] = ("test",)
) -> dict[str, list[Path]]:
    """The parquet files of each split, in the first folder that has some.

    Args:
        parent: the folder that is looked in first.
        subdirectories: folders in `parent` that are looked in after that.
        test_names: test images are in `<name>-*.parquet` with the first of these names that exists.

    Returns:
        Sorted paths by "train" and "test"; a split without files has no key.
    """
    for directory in (parent, *(parent / name for name in subdirectories)):
        # not Path.glob, which is silent about a folder that cannot be read
        present = sorted(os.listdir(directory)) if directory.is_dir() else []
        files = {
            name: [directory / file for file in fnmatch.filter(present, f"{name}-*.parquet")]
            for name in ("train", *test_names)
        }
        test = next((files[name] for name in test_names if files[name]), [])
        if files["train"] or test:
            files_of = {"train": files["train"], "test": test}
            return {split: paths for split, paths in files_of.items() if paths}
    return {}


def read(
    root: str,
    files: Sequence[Path],
    labels: Mapping[str, type[int] | type[str]],
    make_error: MakeError,
    texts: Sequence[str] = (),
) -> Rows:
    """Read parquet files of images.

    Images are in a column img or image, as structs with their bytes or as the bytes themselves.

    Args:
        root: what the user gave as stream.root.
        files: all files of one split.
        labels: the type of each column that may hold the labels; the first that exists is read.
        make_error: makes the error of a missing or damaged file and of other columns.
        texts: columns of text that are read as well where they exist.

    Raises:
        UserError: from `make_error`, or because pyarrow is not installed.
    """
    _require_whole_set(files, make_error)
    rows = Rows()
    for path in files:
        table = _table(root, path, make_error)
        names = _append(rows, path, table, labels, make_error, texts)
        if path != files[0] and names != rows.class_names:
            raise make_error(f"{path} and {files[0].name} name their classes differently")
        rows.class_names = names
    return rows


def _require_whole_set(files: Sequence[Path], make_error: MakeError) -> None:
    numbers = [NUMBERED.search(path.name) for path in files]
    numbered = sorted((int(match[2]), int(match[1])) for match in numbers if match)
    if not numbered:
        return
    count = numbered[0][0]
    if numbered != [(count, number) for number in range(count)]:
        raise make_error(
            f"{files[0].parent} has "
            f"{', '.join(path.name for path in files[:3])}{', ...' * (len(files) > 3)}, which is "
            f"not each of {count} files once; get the missing ones or remove what does not belong "
            "to them"
        )


def _table(root: str, path: Path, make_error: MakeError) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"stream.root={root} holds parquet files, which need pyarrow; install it with pip "
            "install pyarrow"
        ) from error
    try:
        return parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise make_error(f"cannot read {path} ({' '.join(str(error).split())})") from error


def _append(
    rows: Rows,
    path: Path,
    table: Any,
    labels: Mapping[str, type[int] | type[str]],
    make_error: MakeError,
    texts: Sequence[str],
) -> list[str] | None:
    """Add the rows of a file's table to `rows`, and return its class names."""
    image = _first_column(table, IMAGE_COLUMNS)
    label = _first_column(table, labels)
    if image is None or label is None:
        columns = ", ".join(table.column_names)
        raise make_error(
            f"{path} has columns {columns} and not {_either(IMAGE_COLUMNS)} and "
            f"{_either(list(labels))}"
        )
    cells = [
        cell if isinstance(cell, dict) else {"bytes": cell}
        for cell in table.column(image).to_pylist()
    ]
    images: list[Any] = [cell.get("bytes") for cell in cells]
    targets = table.column(label).to_pylist()
    all_bytes = all(isinstance(content, bytes) for content in images)
    if not all_bytes or any(type(target) is not labels[label] for target in targets):
        raise make_error(
            f"{path} has rows without image bytes in {image} or {KINDS[labels[label]]} in {label}"
        )
    rows.images += images
    rows.labels += targets
    rows.files += [_file_name(cell.get("path")) for cell in cells]
    rows.names += [f"row {row} of {path}" for row in range(len(cells))]
    for name in texts:
        column = table.column(name).to_pylist() if name in table.column_names else [""] * len(cells)
        rows.texts.setdefault(name, []).extend(map(str, column))
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return metadata.get("info", {}).get("features", {}).get(label, {}).get("names")


def _first_column(table: Any, names: Iterable[str]) -> str | None:
    return next((name for name in names if name in table.column_names), None)


def _either(names: Sequence[str]) -> str:
    return names[0] + "".join(f" (or {name})" for name in names[1:])


def _file_name(path: str | None) -> str | None:
    return re.split(r"[/\\]", path)[-1] if path else None
