"""One's own images in a CSV file: columns path and label and, where wanted, task and split."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from smope.declare.ranges import AtLeast, Share
from smope.declare.texts import ImageFolder, PathTo
from smope.errors import UserError
from smope.streams import folder
from smope.streams.layouts.names import as_text, in_order, warning_of
from smope.streams.layouts.splits import TEST_FRACTION, draw_split, split_hash
from smope.streams.layouts.text_files import describe_error, read_text
from smope.streams.source import ImageSet, Source

REQUIRED_COLUMNS = ("path", "label")
COLUMNS = (*REQUIRED_COLUMNS, "task", "split")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_log = logging.getLogger(__name__)


class TableRow(NamedTuple):
    """One image of the table.

    line: its number in the file. path: absolute, without `..`. label: the class. task: as written,
    "" for none. split: train, test or "".
    """

    line: int
    path: str
    label: str
    task: str
    split: str


def load(
    table: Annotated[str, PathTo("CSV file", "images.csv")],
    root: ImageFolder | None = None,
    split_seed: Annotated[int, AtLeast(0)] = 0,
    test_fraction: Annotated[float, Share(with_0=False, with_1=False)] = 0.2,
) -> Source:
    """The images that a CSV file lists.

    The first line names the columns, in any order and case; comma, semicolon or tab separate them.
    Columns other than these are ignored, with a warning:
        path: an image file within `root`; a table from elsewhere cannot read other files. Each file
            may stand in one row only. Links within `root` are followed, since no table can make
            one.
        label: the name of the class. Classes are in natural order of their names.
        task: a whole number or a name. Tasks come in order of number or, where any is a name, of
            first appearance. Either every row has one, or only the training rows have: test images
            are then evaluated in the task that has most training images of their class. Without
            this column tasks follow from the class order.
        split: train or test. Without this column a part of each class (in each task) is drawn for
            testing, whatever the order of the rows. `facts` say which way it was, with a hash of
            the paths in each split (split_hash).

    Args:
        table: the CSV file.
        root: the folder that its paths start from; None for the table's own folder.
        split_seed: draws the test images where there is no column split.
        test_fraction: part of each class that is drawn, at least one image and not all.

    Raises:
        UserError: names stream.table, the line and what is wrong with it.
    """
    text = _text(table)
    root_given = str(Path(table).expanduser().parent) if root is None else root
    directory = Path(os.path.abspath(folder.existing_directory(root_given, "the images")))
    rows = _rows(table, text, directory)
    _warn_of_names(table, rows)
    rows = _with_names_on_disk(directory, rows)
    _require_files(table, directory, rows)
    _require_one_row_a_file(table, directory, rows)
    task_names = _task_names(rows)
    paths = [Path(row.path).relative_to(directory).as_posix() for row in rows]
    if any(row.split for row in rows):
        if test_fraction != TEST_FRACTION:
            _log.warning(
                "stream.test_fraction=%s is not used: the rows of %s say train or test",
                *(test_fraction, table),
            )
        pairs = [(path, row.split) for path, row in zip(paths, rows, strict=True)]
        facts: dict[str, Any] = {"split": "as in the table", "split_hash": split_hash(pairs)}
    else:
        drawn = draw_split(
            paths, [(row.label, row.task) for row in rows], test_fraction, split_seed
        )
        rows, facts = _with_split(table, rows, drawn.test), drawn.facts
    _require_splits(table, rows)
    if task_names:
        _require_tasks(table, rows, task_names)
    class_names = tuple(in_order({row.label for row in rows}))
    train, test = (
        _image_set([row for row in rows if row.split == split], class_names, task_names)
        for split in ("train", "test")
    )
    return Source("table", class_names, train, test, task_names or None, facts)


def _image_set(
    rows: Sequence[TableRow], class_names: Sequence[str], task_names: Sequence[str]
) -> ImageSet:
    """The images of these rows, sorted by path so that a run does not depend on the order of
    rows.
    """
    rows = sorted(rows, key=lambda row: row.path)
    class_of = {name: target for target, name in enumerate(class_names)}
    task_of = {name: task for task, name in enumerate(task_names)}
    tasks = [task_of[row.task] for row in rows] if task_names and rows[0].task else None
    return ImageSet(
        [class_of[row.label] for row in rows], [Path(row.path) for row in rows], tasks=tasks
    )


def _warn_of_names(table: str, rows: Sequence[TableRow]) -> None:
    """Log which labels, and which names of tasks, look alike."""
    names_of = {
        "classes": {row.label for row in rows},
        "tasks": {row.task for row in rows if row.task},
    }
    for noun, names in names_of.items():
        warning = warning_of(names, noun)
        if warning:
            _log.warning("stream.table=%s: %s", table, warning)


def _row_error(table: str, line: int, problem: str) -> UserError:
    return UserError(f"stream.table={table}, line {line}: {problem}")


def _text(table: str) -> str:
    try:
        return read_text(Path(table).expanduser())
    except OSError as error:
        reason = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}.get(
            type(error), str(error)
        )
        raise UserError(
            f"stream.table={table}: {reason}; give a CSV file with columns path and label"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"stream.table={table}, {describe_error(error)}; save the table as CSV in UTF-8"
        ) from error


def _cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of each row that is not blank; csv.Error where quotes do not
    close.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    line = 1
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _header(table: str, text: str) -> tuple[str, list[str]]:
    """The delimiter with which the first line names the required columns, and all its names in
    lower case.
    """
    for delimiter in DELIMITERS:
        try:
            names = [name.lower() for name in next(_cells(text, delimiter), (1, []))[1]]
        except csv.Error:
            continue
        if set(REQUIRED_COLUMNS) <= set(names):
            break
    else:
        first = next((line for line in text.splitlines() if line.strip()), "")
        raise UserError(
            f"stream.table={table}: the first line must name columns path and label (and may name "
            f"task and split), separated by comma, semicolon or tab, got {first[:80]!r}; add such "
            "a line"
        )
    repeated = [name for name in COLUMNS if names.count(name) > 1]
    if repeated:
        raise UserError(
            f"stream.table={table}: two columns are called {repeated[0]}; rename or remove one"
        )
    ignored = [name for name in names if name and name not in COLUMNS]
    if ignored:
        _log.warning(
            "stream.table=%s: columns without a meaning here are ignored: %s",
            table,
            ", ".join(ignored),
        )
    return delimiter, names


def _rows(table: str, text: str, directory: Path) -> list[TableRow]:
    """The rows below the first line, each one checked for itself."""
    delimiter, names = _header(table, text)
    lines, line = _cells(text, delimiter), 1
    rows = []
    try:
        next(lines)
        for line, cells in lines:
            if any(cells[len(names) :]):
                raise _row_error(
                    table,
                    line,
                    f"has {len(cells)} cells and the first line names {len(names)} columns; "
                    f'put a value with a {DELIMITERS[delimiter]} in it into quotes ("")',
                )
            rows.append(_row(table, line, dict(zip(names, cells, strict=False)), directory))
    except csv.Error as error:
        problem = (
            f'the quotes (") in a row after line {line} do not match ({error}); close them, or '
            f"double one in a value"
        )
        raise UserError(f"stream.table={table}: {problem}") from error
    if not rows:
        raise UserError(f"stream.table={table} has no rows below its first line; add one an image")
    return rows


def _row(table: str, line: int, cells: dict[str, str], directory: Path) -> TableRow:
    for column in COLUMNS:
        if UNPRINTABLE.search(cells.get(column, "")):
            raise _row_error(
                table, line, f"its {column} has a line break or another unprintable sign; remove it"
            )
        if column in REQUIRED_COLUMNS and not cells.get(column):
            raise _row_error(table, line, f"has no {column}; add it or remove the row")
    split = cells.get("split", "")
    if split and split.lower() not in SPLITS:
        raise _row_error(
            table,
            line,
            f"split must be train or test, got {split}; to hold images out for validation, call "
            "them train and set stream.validation_fraction, or remove the row",
        )
    # Tables written on Windows have backslashes. Normalised here, so that the path that is checked
    # is the path that is opened.
    path = Path(os.path.normpath(directory / cells["path"].replace("\\", "/")))
    if not path.is_relative_to(directory):
        raise _row_error(
            table,
            line,
            f"path {cells['path']} leads out of {directory}; move the file there, or give a "
            "stream.root that holds it and paths from there",
        )
    return TableRow(
        line,
        str(path),
        as_text(cells["label"]),
        _plain_number(as_text(cells.get("task", ""))),
        SPLITS.get(split.lower(), ""),
    )


def _plain_number(text: str) -> str:
    """A whole number in its shortest form, since some programs write 1.0 or 01 for 1; other text
    unchanged.
    """
    number = re.fullmatch(r"([+-]?[0-9]{1,18})(\.0*)?", text)
    return str(int(number[1])) if number else text


def _with_names_on_disk(directory: Path, rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows with paths as the disk spells them: it may have é in another form of Unicode."""
    listings: dict[Path, dict[str, str]] = {}

    def on_disk(path: str) -> str:
        current = directory
        for part in Path(path).relative_to(directory).parts:
            if current not in listings:
                names = os.listdir(current) if current.is_dir() else []
                listings[current] = {as_text(name): name for name in names}
            current = current / listings[current].get(as_text(part), part)
        return str(current) if current.is_file() else path

    return [
        row
        if row.path.isascii() or os.path.isfile(row.path)
        else row._replace(path=on_disk(row.path))
        for row in rows
    ]


def _require_files(table: str, directory: Path, rows: Sequence[TableRow]) -> None:
    missing = [row for row in rows if not os.path.isfile(row.path)]
    if missing:
        name = os.path.relpath(missing[0].path, directory)
        proposal = folder.better_root(directory, lambda other_root: (other_root / name).is_file())
        raise _row_error(
            table,
            missing[0].line,
            f"there is no file {name} in {directory} ({len(missing)} of {len(rows)} rows name "
            "files that are not there); correct the paths, or give the folder that they start "
            f"from as stream.root{proposal}",
        )


def _require_one_row_a_file(table: str, directory: Path, rows: Sequence[TableRow]) -> None:
    first_row: dict[str, TableRow] = {}
    for row in rows:
        other = first_row.setdefault(row.path, row)
        if other is not row:
            both = [
                f"{' '.join(filter(None, (each.label, each.split)))} in line {each.line}"
                for each in (other, row)
            ]
            raise _row_error(
                table,
                row.line,
                f"{os.path.relpath(row.path, directory)} stands in two rows ({both[0]}, "
                f"{both[1]}); keep one of them",
            )


def _task_names(rows: Sequence[TableRow]) -> tuple[str, ...]:
    """The tasks in order; none where no row names one."""
    names = list(dict.fromkeys(row.task for row in rows if row.task))
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return tuple(sorted(names, key=int) if numbers else names)


def _with_split(table: str, rows: Sequence[TableRow], test: Sequence[int]) -> list[TableRow]:
    """The rows with their split; UserError where a class has no test image."""
    in_test = set(test)
    tested_labels = {rows[index].label for index in test}
    untested = [row for row in rows if row.label not in tested_labels]
    if untested:
        first = min(untested, key=lambda row: row.line)
        in_task = " in each task" if first.task else ""
        raise _row_error(
            table,
            first.line,
            f"class {first.label} has a single image{in_task}, so that none can be drawn "
            "for testing; add images, remove the class, or add a column split",
        )
    return [
        row._replace(split="test" if index in in_test else "train")
        for index, row in enumerate(rows)
    ]


def _require_splits(table: str, rows: Sequence[TableRow]) -> None:
    """Every row is in a split, and every class in both."""
    labels: dict[str, set[str]] = {"train": set(), "test": set()}
    for row in rows:
        if not row.split:
            raise _row_error(
                table, row.line, "has no split, and other rows have one; write train or test"
            )
        labels[row.split].add(row.label)
    for split, split_labels in labels.items():
        if not split_labels:
            raise UserError(
                f"stream.table={table}: no row has split {split}; name some, or leave the column "
                "out and a part of each class is drawn for testing"
            )
    for row in rows:
        for split, split_labels in labels.items():
            if row.label not in split_labels:
                raise _row_error(
                    table,
                    row.line,
                    f"class {row.label} is in no row with split {split}; correct its name, add "
                    "images, or remove it",
                )


def _require_tasks(table: str, rows: Sequence[TableRow], task_names: Sequence[str]) -> None:
    """Every training row has a task, all or no test rows have one, and no class is tested before
    it is learned.
    """
    number = {name: task for task, name in enumerate(task_names)}
    tests_have_tasks = any(row.task for row in rows if row.split == "test")
    first_task: dict[str, int] = {}
    for row in rows:
        if not row.task and (row.split == "train" or tests_have_tasks):
            raise _row_error(
                table,
                row.line,
                f"a {row.split} row without a task, where other rows have one; every row needs a "
                "task, or every training row and no test row",
            )
        if row.split == "train":
            earlier = first_task.get(row.label, len(task_names))
            first_task[row.label] = min(number[row.task], earlier)
    for row in rows:
        if row.task and row.split == "test" and number[row.task] < first_task[row.label]:
            raise _row_error(
                table,
                row.line,
                f"tests class {row.label} in task {row.task}, but its first training image comes "
                f"in task {task_names[first_task[row.label]]}; give it that task or a later one",
            )
