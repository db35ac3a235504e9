"""The table of `smope predict`: written as predictions come, and continued after an interruption.

A CSV file grows in place. A Parquet file can only be written as a whole, so its rows are in
FILE.part (CSV) until all are there. FILE.json says what made the table; only the same continues it.
A process that is killed leaves whole rows and maybe a part of one, which is cut off before others
are added.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from smope.errors import UserError
from smope.storage.files import try_lock, unwritten, write_atomically

if TYPE_CHECKING:
    from smope.serving.prediction import Prediction

NO_PATH = "-"  # of an image that came through a pipe
ROW_END = b"\r\n"
KIND = "table of smope predict"
ROWS_AT_A_TIME = 65536  # of a Parquet file


def shown_path(path: Path | bytes | None) -> str:
    """The path of an image; `-` for one without a path."""
    return str(path) if isinstance(path, Path) else NO_PATH


@dataclass(frozen=True)
class Table:
    """The columns path, class, probability, and class_2, probability_2 and so on for the next best.

    With a lowest probability there is best_guess too, the best class where `class` is `unknown`;
    then, and where it is wanted, unknown_score.

    Attributes:
        top: How many classes each image has.
        with_unknown: Whether there is a lowest probability.
        with_score: Whether unknown_score is wanted without one.
    """

    top: int
    with_unknown: bool
    with_score: bool = False

    @property
    def head(self) -> list[str]:
        ranks = ["", *(f"_{rank}" for rank in range(2, self.top + 1))]
        names = ["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))]
        names += ["best_guess"] if self.with_unknown else []
        return [*names, *(["unknown_score"] if self.with_unknown or self.with_score else [])]

    def row(self, prediction: Prediction) -> list[str]:
        """The cells of an image, in the order of `head`."""
        names = [prediction.class_name, *(guess.class_name for guess in prediction.top[1:])]
        guesses = zip(names, prediction.top, strict=True)
        cells = [cell for name, guess in guesses for cell in (name, f"{guess.probability:.6f}")]
        if self.with_unknown:
            cells.append(prediction.top[0].class_name)
        if self.with_unknown or self.with_score:
            cells.append(f"{prediction.unknown_score:.6f}")
        return [shown_path(prediction.path), *cells]


def csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode(errors="surrogateescape")


class Finished:
    """The paths that a table has rows of: a hash of 8 bytes each, so that millions fit."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, path: str) -> bool:
        number = _number(path)
        position = bisect_left(self._hashes, number)
        return position < len(self._hashes) and self._hashes[position] == number

    def fill(self, paths: Iterator[str]) -> None:
        self._hashes.extend(map(_number, paths))
        import numpy  # sorts within the array, where sorted() would make a list of large objects

        numpy.frombuffer(self._hashes, numpy.uint64).sort()


def _number(path: str) -> int:
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class TableFile:
    """A table in a file.

    Args:
        path: The file.
        key: What errors call it, such as --csv=classes.csv.
        table: Its columns.
        is_parquet: Whether it becomes a Parquet file.
        made_by: What decides the rows, by the names that users know it by: the model's sha256 and
            options.
    """

    def __init__(
        self, path: Path, key: str, table: Table, is_parquet: bool, made_by: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._key = key
        self._table = table
        self._is_parquet = is_parquet
        self._made_by = dict(made_by)
        self._rows = path.with_name(f"{path.name}.part") if is_parquet else path
        self._note = path.with_name(f"{path.name}.json")
        self._file: IO[bytes] = io.BytesIO()

    @contextmanager
    def opened(self, resume: bool, finished: Finished) -> Iterator[TableFile]:
        """The table, ready for rows; completed at the end, unless an exception ends it.

        Args:
            resume: Whether rows that are there stay.
            finished: Filled with their paths.

        Raises:
            UserError: Something else made the table, or is writing it, or it is half written and
                `resume` is not set.
            OSError: It cannot be written.
        """
        with self._errors():
            self._file = self._rows.open("a+b")
        try:
            if not try_lock(self._file, self._rows):
                raise UserError(
                    f"{self._key}: another process writes it; wait until it has ended, or name "
                    "another file"
                )
            with self._removed_if_empty():
                with self._errors():
                    self._begin(resume, finished)
                yield self
                with self._errors():
                    self._complete()
        finally:
            with suppress(OSError):  # of rows that could not be written before
                self._file.close()

    def _begin(self, resume: bool, finished: Finished) -> None:
        is_empty = os.fstat(self._file.fileno()).st_size == 0
        if resume and not (is_empty and not self._note.exists()):
            self._continue(finished, is_empty)
        else:
            self._start(is_empty)

    @contextmanager
    def _removed_if_empty(self) -> Iterator[None]:
        """Whoever is refused leaves no empty file."""
        try:
            yield
        finally:
            if self._rows.exists() and self._rows.stat().st_size == 0:
                self._rows.unlink()

    def add(self, prediction: Prediction) -> None:
        """Write the row of an image."""
        with self._errors():
            self._write(self._table.row(prediction))

    def _write(self, cells: Sequence[str]) -> None:
        self._file.write(csv_line(cells))
        self._file.flush()

    def _start(self, is_empty: bool) -> None:
        """Begin the table anew."""
        note = self._read_note()
        if note is not None and not note["complete"] and not is_empty:
            raise UserError(
                f"{self._key}: is half written; continue it with --resume, or delete {self._rows}"
            )
        self._file.truncate(0)  # first, so that the note never vouches for rows of another model
        self._write_note(complete=False)
        self._write(self._table.head)

    def _continue(self, finished: Finished, is_empty: bool) -> None:
        """Read the rows that are there, and cut off a part of one."""
        note = self._read_note()
        if note is None:
            raise UserError(
                f"--resume: {self._note}, which says what made {self._path}, is not there; leave "
                "out --resume to begin anew"
            )
        self._refuse_differences(note["made_by"])
        # a note that is not complete is of rows that were to replace those of the Parquet file
        if self._is_parquet and is_empty and note["complete"] and self._path.exists():
            for cells in self._parquet_rows():
                self._file.write(csv_line(cells))
            self._file.flush()
        self._write_note(complete=False)
        self._file.seek(0)
        end = 0

        def paths() -> Iterator[str]:
            nonlocal end
            for number, (end, cells) in enumerate(_whole_rows(self._file)):  # noqa: B007
                self._check_row(number, cells)
                if number:
                    yield cells[0]

        finished.fill(paths())
        self._file.truncate(end)
        if end == 0:
            self._write(self._table.head)

    def _check_row(self, number: int, cells: Sequence[str]) -> None:
        head = self._table.head
        if (number == 0 and cells != head) or len(cells) != len(head):
            raise UserError(
                f"--resume: row {number + 1} of {self._rows} is none of this table, whose columns "
                f"are {', '.join(head)}; name another file"
            )

    def _refuse_differences(self, made_by: Mapping[str, Any]) -> None:
        for name, value in self._made_by.items():
            before = made_by.get(name)
            if before != value:
                raise UserError(
                    f"--resume: {self._path} was made with {name} {_text(before)}, which is now "
                    f"{_text(value)}; give what it was made with, or name another file"
                )

    def _read_note(self) -> dict[str, Any] | None:
        """The content of FILE.json; None if there is no such file."""
        if not self._note.exists():
            return None
        try:
            note = json.loads(self._note.read_bytes())
            if note["kind"] == KIND and isinstance(note["made_by"], dict):
                return {"complete": False, **note}
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"{self._key}: {self._note} is where a note about the table goes, and something else; "
            "name another file"
        )

    def _write_note(self, complete: bool) -> None:
        note = {"kind": KIND, "complete": complete, "made_by": self._made_by}
        write_atomically(self._note, (json.dumps(note, indent=1) + "\n").encode())

    def _complete(self) -> None:
        os.fsync(self._file.fileno())
        if self._is_parquet:
            self._file.seek(0)
            _write_parquet(self._path, (cells for _, cells in _whole_rows(self._file)))
        self._write_note(complete=True)
        if self._is_parquet:
            self._rows.unlink()

    def _parquet_rows(self) -> Iterator[list[str]]:
        """The rows of a Parquet file that is complete, as they are in a CSV file."""
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(self._path) as file:
                yield list(file.schema_arrow.names)
                for batch in file.iter_batches(ROWS_AT_A_TIME):
                    for values in zip(*(column.to_pylist() for column in batch), strict=True):
                        yield [_cell(value) for value in values]
        except ArrowException as error:
            raise UserError(
                f"--resume: {self._path} cannot be read ({type(error).__name__}); leave out "
                "--resume to begin anew"
            ) from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritten(
                self._key, error, " or name another file; --resume continues what is there"
            ) from error


def _text(value: object) -> str:
    """A value of FILE.json, for people."""
    return "none" if value in (None, False) else "set" if value is True else str(value)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6f}"


def _whole_rows(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not cut off, each with the offset behind it. Cells may have line breaks."""
    lines: list[bytes] = []
    is_open, end = False, 0  # whether a quoted cell continues in the next line
    for line in file:
        lines.append(line)
        is_open ^= line.count(b'"') % 2 == 1
        if not is_open and line.endswith(ROW_END):
            record = b"".join(lines)
            end += len(record)
            text = io.StringIO(record.decode(errors="surrogateescape"), newline="")
            yield end, next(csv.reader(text), [])
            lines.clear()


def _write_parquet(path: Path, rows: Iterator[list[str]]) -> None:
    """Write rows, of which the first has the names of columns, as a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    head = next(rows)
    is_number = [name.startswith("probability") or name == "unknown_score" for name in head]
    kinds = [pyarrow.float64() if number else pyarrow.string() for number in is_number]
    schema = pyarrow.schema(list(zip(head, kinds, strict=True)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with parquet.ParquetWriter(temporary, schema) as writer:
            while chunk := list(islice(rows, ROWS_AT_A_TIME)):
                columns = [
                    list(map(float if number else _utf8, cells))
                    for number, cells in zip(is_number, zip(*chunk, strict=True), strict=True)
                ]
                writer.write_table(pyarrow.table(columns, schema=schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _utf8(cell: str) -> str:
    """Text that UTF-8 can encode: bytes of a name that are none are written as \\xe9."""
    return os.fsencode(cell).decode(errors="backslashreplace")
