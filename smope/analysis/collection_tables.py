"""Tables of collected runs as text, Markdown, CSV and LaTeX. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smope.analysis.collection import BOUNDS, COLUMNS, Cell, Column, Row, Table, differences
from smope.analysis.collection_comparison import Contrast, Line, contrast_grid, explanations
from smope.console.markup import Grid, aligned, csv_grid, latex_grid, markdown_grid

FORMATS = ("text", "markdown", "csv", "latex")
CSV_TESTS = (
    "FAA low", "FAA high", "against", "pairs", "difference", "difference low", "difference high", "p", "p Holm",
)  # fmt: skip
SUFFIXES = {".txt": "text", ".md": "markdown", ".csv": "csv", ".tex": "latex"}


def render(
    tables: Sequence[Table],
    left_out: Sequence[str],
    form: str,
    ddof: int,
    contrasts: Sequence[Contrast | None] | None = None,
    chosen: bool = False,
) -> str:
    """All tables in one of FORMATS. CSV holds rows alone, of all tables; the others say what is
    missing as well.

    contrasts: the tests of each table, see collection_comparison.py; `chosen`: against a row that
    the user named.
    """
    contrasts = contrasts or [None for _ in tables]
    if form == "csv":
        return _csv(tables, ddof, contrasts)
    comment: Callable[[str], str] = {
        "text": str,
        "markdown": _item,
        "latex": lambda text: f"% {text}",
    }[form]
    parts = []
    if len(tables) > 1:
        apart = [
            f"{len(tables)} tables, for their runs cannot be compared; they differ in",
            *differences(tables),
        ]
        parts.append("\n".join(map(comment, apart)))
    for table, tested in zip(tables, contrasts, strict=True):
        parts += [_title(table.title, form), _grid(table, form, ddof)]
        parts.append("\n".join(map(comment, [_legend(table, ddof), *table.notes])))
        if tested is not None:
            parts.append(_drawn(contrast_grid(tested), form))
            parts.append("\n".join(map(comment, explanations(tested, chosen))))
    if left_out:
        parts.append("\n".join(map(comment, [f"left out, {len(left_out)} in all:", *left_out])))
    return "\n\n".join(parts)


def remarks(tables: Sequence[Table], left_out: Sequence[str]) -> list[str]:
    """What a table of numbers alone does not say."""
    apart = [f"tables differ in {line}" for line in differences(tables)] if len(tables) > 1 else []
    return [
        *apart,
        *(note for table in tables for note in table.notes),
        *(f"left out: {line}" for line in left_out),
    ]


def _item(text: str) -> str:
    return f"- {text}"


def _title(title: str, form: str) -> str:
    return {"text": title, "markdown": f"### {title}", "latex": f"% {title}"}[form]


def _legend(table: Table, ddof: int) -> str:
    bounds = [row.label for row in table.rows if row.method in BOUNDS]
    text = f"percent; mean ± standard deviation over seeds (ddof {ddof}); the best of each score is marked"
    return text + (f", {', '.join(bounds)} apart, which see earlier images again" if bounds else "")


def _grid(table: Table, form: str, ddof: int) -> str:
    """One table; columns that no run recorded are left out."""
    columns = _recorded([table])
    lines = [["method", "seeds", *(column.title for column in columns)]]
    bold = []
    best = {column.title: _best(table, column, ddof) for column in columns}
    for row in table.rows:
        cells = [row.label, _seeds([*row.runs])]
        for column in columns:
            text = _text(row.cell(column, ddof), column)
            if row.label in best[column.title]:
                bold.append((len(lines), len(cells)))
                text = {"text": f"{text} *", "markdown": f"**{text}**", "latex": text}[form]
            cells.append(text)
        lines.append(cells)
    return _drawn(lines, form, bold)


def _drawn(lines: Grid, form: str, bold: Sequence[tuple[int, int]] = ()) -> str:
    if form == "latex":
        return latex_grid(lines, bold)
    return aligned(lines) if form == "text" else markdown_grid(lines)


def _csv(tables: Sequence[Table], ddof: int, contrasts: Sequence[Contrast | None]) -> str:
    """A line a row, numbers as they are; `best` names the scores in which a row is the best of its
    table.
    """
    columns = _recorded(tables)
    names = [
        name
        for column in columns
        for name in ([column.title, f"{column.title} std"][: 1 + column.spread])
    ]
    tests = CSV_TESTS if any(contrasts) else ()
    lines = [["table", "method", "seeds", *names, "best", *tests]]
    for table, tested in zip(tables, contrasts, strict=True):
        compared = {line.row.label: line for line in tested.lines} if tested is not None else {}
        best = {column.title: _best(table, column, ddof) for column in columns}
        for row in table.rows:
            numbers = []
            for column in columns:
                cell = row.cell(column, ddof)
                numbers += [_raw(cell.mean), *([_raw(cell.std)] if column.spread else [])]
            marked = " ".join(title for title, labels in best.items() if row.label in labels)
            cells = _tested(compared.get(row.label), tested) if tests else []
            lines.append(
                [table.title, row.label, " ".join(map(str, row.runs)), *numbers, marked, *cells]
            )
    return csv_grid(lines)


def _tested(line: Line | None, tested: Contrast | None) -> list[str]:
    """The cells below CSV_TESTS."""
    if line is None or tested is None:
        return [""] * len(CSV_TESTS)
    own, test = [_raw(line.low), _raw(line.high)], line.against
    if test is None or tested.reference is None:
        return [*own, *[""] * (len(CSV_TESTS) - 2)]
    values = [_raw(value) for value in (test.difference, test.low, test.high, test.p, line.holm)]
    return [*own, tested.reference.label, str(test.pairs), *values]


def _recorded(tables: Sequence[Table]) -> list[Column]:
    rows = [row for table in tables for row in table.rows]
    return [
        column for column in COLUMNS if any(row.cell(column, 0).mean is not None for row in rows)
    ]


def _best(table: Table, column: Column, ddof: int) -> set[str]:
    """Labels of the rows that are the best in a score as it is printed; none where there is
    nothing to compare.
    """
    rivals = [row for row in table.rows if row.method not in BOUNDS]
    if column.best is None or len(rivals) < 2:
        return set()
    values = {
        row.label: round(mean, column.digits)
        for row in rivals
        if (mean := _mean(row, column, ddof)) is not None
    }
    chosen = (max if column.best == "high" else min)(values.values(), default=None)
    return {label for label, value in values.items() if value == chosen}


def _mean(row: Row, column: Column, ddof: int) -> float | None:
    return row.cell(column, ddof).mean


def _text(cell: Cell, column: Column) -> str:
    if cell.mean is None:
        return "-"
    spread = "" if cell.std is None else f" ± {cell.std:.{column.digits}f}"
    return f"{cell.mean:,.{column.digits}f}{spread}"


def _raw(value: float | None) -> str:
    return "" if value is None else repr(round(value, 6))


def _seeds(seeds: Sequence[int]) -> str:
    """0-4 where they follow each other, else 0,2,5."""
    if len(seeds) > 1 and list(seeds) == [*range(seeds[0], seeds[-1] + 1)]:
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))
