"""What a table of means leaves open: how sure each mean is, and which differences are more than
chance.

Seeds are paired: a difference is taken between runs of one seed, which share class order and
batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smope.analysis.collection import BOUNDS, COLUMNS, Row, Table
from smope.config.value_types import shown
from smope.errors import UserError

if TYPE_CHECKING:
    from smope.analysis.significance import Comparison

SCORE = COLUMNS[0]


@dataclass(frozen=True)
class Line:
    """A row of a table beside the reference: values in percent.

    low, high:  95 % interval of its own mean (Student's t over seeds, ddof 1); None for a single
                seed.
    against:    row minus reference over the seeds of both, see smope.analysis.significance; None
                for the reference, and
                where fewer than two seeds are shared.
    holm:       p of `against`, Holm's correction over the lines of this table.
    """

    row: Row
    low: float | None
    high: float | None
    against: Comparison | None = None
    holm: float | None = None


@dataclass(frozen=True)
class Contrast:
    """A table's rows against one of them, `reference`; None where the table lacks it."""

    reference: Row | None
    lines: Sequence[Line]

    @property
    def tests(self) -> int:
        return sum(line.against is not None for line in self.lines)


def contrast(table: Table, against: str | None = None) -> Contrast | None:
    """Every row's interval, and its test against the row called `against`, else against the best.

    None where no row has two seeds. Joint training and the like, which are bounds, are compared but
    never chosen as the best.
    """
    if all(len(_values(row)) < 2 for row in table.rows):
        return None
    from smope.analysis.significance import compare, holm

    reference = _reference(table, against)
    ours = _values(reference) if reference is not None else {}
    found = {}
    for row in table.rows:
        theirs = _values(row)
        seeds = sorted(ours.keys() & theirs.keys())
        if row is not reference and len(seeds) > 1:
            found[row.label] = compare(
                [theirs[seed] for seed in seeds], [ours[seed] for seed in seeds]
            )
    corrected = dict(zip(found, holm([item.p for item in found.values()]), strict=True))
    lines = [
        Line(row, *_interval(row), found.get(row.label), corrected.get(row.label))
        for row in table.rows
    ]
    return Contrast(reference, lines)


def require_row(tables: Sequence[Table], against: str) -> None:
    """UserError unless one of the tables has a row of this name."""
    if any(_called(table, against) for table in tables):
        return
    names = ", ".join(dict.fromkeys(row.label for table in tables for row in table.rows))
    titles = "; nor on ".join(table.title for table in tables)
    raise UserError(f"--against {shown(against)}: no such row on {titles}; choose one of {names}")


def _reference(table: Table, against: str | None) -> Row | None:
    if against is None:
        return next((row for row in table.rows if row.method not in BOUNDS), None)
    rows = _called(table, against)
    if len(rows) > 1:
        raise UserError(
            f"--against {shown(against)}: {len(rows)} rows have this method; write one of "
            f"{', '.join(shown(row.label) for row in rows)}"
        )
    return rows[0] if rows else None


def _called(table: Table, name: str) -> list[Row]:
    return [row for row in table.rows if name in (row.label, row.method)]


def _values(row: Row) -> dict[int, float]:
    values = {seed: SCORE.read(run.record) for seed, run in row.runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _interval(row: Row) -> tuple[float | None, float | None]:
    """95 % interval of the mean over seeds: mean ± t(n - 1) s / sqrt(n), s with ddof 1."""
    from scipy.stats import t

    values = list(_values(row).values())
    if len(values) < 2:
        return None, None
    mean = sum(values) / len(values)
    error = (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    reach = float(t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def contrast_grid(found: Contrast) -> list[list[str]]:
    """Lines of cells, the head first."""
    head = ["FAA", "95 % interval"]
    if found.reference is not None and found.tests:
        head += [f"minus {found.reference.label}", "95 % interval", "pairs", "p", "p (Holm)"]
    lines = [head]
    for line in found.lines:
        own = "-" if line.low is None else f"{line.low:.2f} to {line.high:.2f}"
        test = line.against
        cells = ["-"] * (len(head) - 2)
        if test is not None:
            difference = [
                f"{test.difference:+.2f}",
                f"{test.low:+.2f} to {test.high:+.2f}",
                str(test.pairs),
            ]
            cells = [*difference, f"{test.p:.3g}", f"{line.holm:.3g}"]
        lines.append([line.row.label, own, *cells])
    return lines


def explanations(found: Contrast, chosen: bool) -> list[str]:
    """How the numbers of the grid were made, and what they cannot say.

    `chosen`: the user named the reference.
    """
    interval = "interval of a mean: Student's t over seeds (ddof 1)"
    if found.reference is None:
        return [interval, "no differences: this table has no row to compare with"]
    if not found.tests:
        return [
            interval,
            f"no differences: no other row shares two seeds with {found.reference.label}",
        ]
    why = (
        ""
        if chosen
        else ", the best by its mean, which makes differences look larger than they are"
    )
    lines = [
        interval,
        f"difference to {found.reference.label}{why}: paired by seed, bootstrap interval over "
        f"pairs (too narrow where "
        "these are few)",
        f"p: exchanging the two runs of a pair at random, two-sided; corrected by Holm for "
        f"{_plural(found.tests)}",
    ]
    tests = [line.against for line in found.lines if line.against is not None]
    least = min(test.smallest_p for test in tests)
    if least * found.tests > 0.05:
        most = max(test.pairs for test in tests)
        lines.append(
            f"with {most} seeds no p below {least:.3g} can come out, before the correction: more "
            f"seeds are needed to "
            "call any difference here more than chance"
        )
    return lines


def _plural(tests: int) -> str:
    return f"{tests} test{'s' if tests > 1 else ''}"
