"""Finished runs as tables of methods: what is one table, what is one row, what is missing.

A table has the runs of one benchmark, a row the runs of one configuration (see
`smope.config.run_identity`), one for each seed. What a run of an older version did not record is
left empty. Imports neither torch nor pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from smope.analysis.labels import differing_keys, fingerprint, repeat_notes
from smope.analysis.run import Run
from smope.config.value_types import shown
from smope.errors import UserError
from smope.metrics.scores import SCORES

MAX_VALUE_CHARACTERS = 60  # of a value in a line of text
# Upper bounds that no continual learner competes with: shown, never marked as the best.
UPPER_BOUNDS = ("joint",)
MAIN_SCORE = "final_average_accuracy"


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    key:        its name in a data file.
    title:      its heading.
    read:       the number of a run, None if it was not recorded.
    better:     whether a high or a low value is better, None if that is no question.
    has_spread: whether the standard deviation over seeds is of interest.
    """

    key: str
    title: str
    read: Callable[[Run], float | None]
    digits: int = 0
    better: Literal["high", "low"] | None = None
    has_spread: bool = False


def score_column(name: str) -> Column:
    """The column of a score of `metrics.scores.SCORES`, in percent."""

    def read(run: Run) -> float | None:
        value = run.scores[name]
        return None if value is None else 100 * value

    score = SCORES[name]
    return Column(name, score.short, read, 2, score.better, has_spread=True)


def _parameters(run: Run) -> float | None:
    counts = run.record.get("trainable_parameters")
    return sum(counts.values()) if counts else None


def _use_of_experts(name: str) -> Callable[[Run], float | None]:
    """Reads a number of metrics.expert_use after the last task, the mean over prompted blocks."""

    def read(run: Run) -> float | None:
        uses = run.record.get("experts")
        return fmean(uses[-1][name]) if uses and name in uses[-1] else None

    return read


def _seconds(run: Run) -> float | None:
    seconds = run.record.get("seconds")
    return sum(seconds[key] for key in ("train", "align", "eval")) if seconds else None


def _cost(*path: str, unit: float = 1.0) -> Callable[[Run], float | None]:
    """Reads a number from the block `cost` of run.json, in multiples of `unit`."""

    def read(run: Run) -> float | None:
        value: Any = run.record.get("cost")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else value / unit

    return read


MEBIBYTE = 2**20
COST_COLUMNS = (
    Column("parameters", "parameters", _parameters),
    Column(
        "train_gflops", "train GFLOPs", _cost("gflops_per_image", "train_gflops", "torch"), digits=2
    ),
    Column(
        "test_gflops", "test GFLOPs", _cost("gflops_per_image", "infer_gflops", "torch"), digits=2
    ),
    Column("seconds", "seconds", _seconds),
    Column("state_mib", "state MiB", _cost("stored_state_bytes", unit=MEBIBYTE), digits=1),
    Column(
        "process_mib",
        "process MiB",
        _cost("peak_memory_bytes", "process_resident", unit=MEBIBYTE),
    ),
    Column("gpu_mib", "GPU MiB", _cost("peak_memory_bytes", "cuda_allocated", unit=MEBIBYTE)),
)


EXPERTS_COLUMNS = (
    Column("effective_experts", "effective experts", _use_of_experts("effective"), digits=1),
    Column("top_k_margin", "top-k margin", _use_of_experts("margin"), digits=3),
)


def all_columns() -> list[Column]:
    """The scores, the use of experts, then the costs."""
    return [*map(score_column, SCORES), *EXPERTS_COLUMNS, *COST_COLUMNS]


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds; `absent` are the seeds that did not record it."""

    mean: float | None
    std: float | None = None
    absent: tuple[int, ...] = ()


@dataclass(frozen=True)
class ResultRow:
    """The runs of one configuration, by seed."""

    label: str
    method: str
    runs: Mapping[int, Run]

    def values(self, column: Column) -> dict[int, float]:
        """The numbers of a column by seed, without those that were not recorded."""
        values = {seed: column.read(run) for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def cell(self, column: Column, ddof: int) -> Cell:
        """Mean and standard deviation of a column; the latter divides by n - ddof."""
        values = self.values(column)
        absent = tuple(seed for seed in self.runs if seed not in values)
        if not values:
            return Cell(None, None, absent)
        mean, divisor = fmean(values.values()), len(values) - ddof
        std = None
        if column.has_spread and len(values) > 1 and divisor > 0:
            squares = sum((value - mean) ** 2 for value in values.values())
            std = (squares / divisor) ** 0.5
        return Cell(mean, std, absent)


@dataclass(frozen=True)
class ResultTable:
    """Rows on one benchmark, best first; `notes` are what a reader must not overlook."""

    benchmark: Mapping[str, Any]
    title: str
    rows: Sequence[ResultRow]
    seeds: Sequence[int]
    notes: list[str] = field(default_factory=list)

    def rows_named(self, name: str) -> list[ResultRow]:
        """The rows whose label or method is `name`."""
        return [row for row in self.rows if name in (row.label, row.method)]


def result_tables(runs: Sequence[Run], ddof: int = 0) -> list[ResultTable]:
    """Sort labelled runs into tables, one for each benchmark.

    Args:
        runs: Finished runs, as `read_finished` or `load_runs` gives them.
        ddof: The standard deviations that the notes are about divide by n - ddof.
    """
    benchmarks = _grouped(runs, lambda run: fingerprint(run.benchmark))
    return [_table(members, ddof) for members in benchmarks]


def with_common_seeds(runs: Sequence[Run]) -> list[Run]:
    """The runs whose seed every row of their table has; UserError if a table has no such seed."""
    common = []
    for table in result_tables(runs):
        seeds = [seed for seed in table.seeds if all(seed in row.runs for row in table.rows)]
        if not seeds:
            raise UserError(
                f"--common-seeds: no method shares a seed with all others on {table.title}; leave "
                f"it out"
            )
        common += [row.runs[seed] for row in table.rows for seed in seeds]
    return common


def require_row(tables: Sequence[ResultTable], name: str) -> None:
    """UserError unless one of the tables has a row of this name."""
    if any(table.rows_named(name) for table in tables):
        return
    labels = ", ".join(dict.fromkeys(row.label for table in tables for row in table.rows))
    titles = "; nor on ".join(table.title for table in tables)
    raise UserError(f"--against {shown(name)}: no such row on {titles}; choose one of {labels}")


def table_differences(tables: Sequence[ResultTable]) -> list[str]:
    """What tells the benchmarks of tables apart, a line for each key."""
    lines = []
    for key in differing_keys([table.benchmark for table in tables]):
        values = [
            shown(table.benchmark[key])[:MAX_VALUE_CHARACTERS]
            if key in table.benchmark
            else "not there"
            for table in tables
        ]
        lines.append(f"{key}: {' | '.join(values)}")
    return lines


def seed_words(seeds: Iterable[int]) -> str:
    """`seed 0` or `seeds 0, 1`."""
    numbers = list(seeds)
    return ("seed " if len(numbers) == 1 else "seeds ") + ", ".join(map(str, numbers))


def _grouped(runs: Iterable[Run], key: Callable[[Run], str]) -> list[list[Run]]:
    """Runs with an equal key together, in the order of their first run."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _table(runs: Sequence[Run], ddof: int) -> ResultTable:
    main = score_column(MAIN_SCORE)
    rows = []
    for members in _grouped(runs, lambda run: run.method_label):
        by_seed = {run.seed: run for run in sorted(members, key=lambda run: run.seed)}
        rows.append(ResultRow(members[0].method_label, members[0].method, by_seed))
    rows.sort(key=lambda row: -(row.cell(main, ddof).mean or 0.0))
    seeds = sorted({seed for row in rows for seed in row.runs})
    notes = [*repeat_notes(runs), *_missing(rows, seeds, ddof), *_unequal_training(rows)]
    return ResultTable(runs[0].benchmark, _title(runs[0]), rows, seeds, notes)


def _missing(rows: Sequence[ResultRow], seeds: Sequence[int], ddof: int) -> list[str]:
    """The seeds that a row lacks, and the numbers that only some of its runs recorded."""
    lines = []
    for row in rows:
        absent = [seed for seed in seeds if seed not in row.runs]
        if absent:
            lines.append(
                f"{row.label}: no finished run with {seed_words(absent)}; its mean is over "
                f"{seed_words(row.runs)}"
            )
        for column in all_columns():
            cell = row.cell(column, ddof)
            if cell.mean is not None and cell.absent:
                lines.append(
                    f"{row.label}: {column.title} not recorded for {seed_words(cell.absent)}; "
                    f"mean of the others"
                )
    return lines


def _unequal_training(rows: Sequence[ResultRow]) -> list[str]:
    """Settings of the trainer in which methods differ, which makes a comparison unequal."""
    lines = []
    settings = [next(iter(row.runs.values())).method_settings for row in rows]
    for key in differing_keys(settings):
        if not key.startswith("trainer."):
            continue
        methods: dict[str, list[str]] = {}
        for row, values in zip(rows, settings, strict=True):
            names = methods.setdefault(shown(values.get(key)), [])
            if row.method not in names:
                names.append(row.method)
        parts = [f"{value} ({', '.join(names)})" for value, names in methods.items()]
        lines.append(f"not alike: {key} is {', '.join(parts)}")
    return lines


def _title(run: Run) -> str:
    """Stream and backbone in a line."""
    benchmark = run.benchmark
    backbone = run.record.get("backbone", {})
    statistics = ""
    if "mean" in backbone:
        statistics = f", pixel mean {shown(backbone['mean'])} std {shown(backbone['std'])}"
    trials = ""
    if "part.ranked_on" in benchmark:
        on_test = benchmark["part.ranked_on"] == "test"
        trials = f", trials of a search{' RANKED ON TEST IMAGES' if on_test else ''}"
    return (
        f"{benchmark.get('stream.name', 'unknown stream')}, {run.num_tasks} tasks, "
        f"{benchmark['evaluated on']} images{trials}; "
        f"{benchmark.get('backbone.name', 'unknown backbone')}{statistics}"
    )
