"""Finished runs, sorted into tables of methods: what may stand in one table, what is one row of it,
what is missing.

A table holds runs on the same images, tasks and backbone. A row holds the runs of one method with
the same settings, a seed each. Only `run.json` is read; what an older program did not record is
left empty. Imports no torch.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from smope.config.config import chosen_name, with_defaults
from smope.config.identity import flatten, immaterial
from smope.config.signatures import takes
from smope.config.value_types import shown
from smope.errors import UserError
from smope.storage.run_directory import RunDirectory, tasks_done
from smope.storage.sweep_manifest import LOGS

SHORT = 60  # characters of a value in a line of text
# A bound that no continual learner competes with: shown, never marked as the best.
BOUNDS = ("joint",)


@dataclass(frozen=True)
class Run:
    """One finished run: its directory, what run.json says, and its configuration by dotted key."""

    path: Path
    record: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides about numbers; a key that an older program did not have is at its default."""
        flat = flatten(with_defaults(self.record["config"]))
        return {key: value for key, value in flat.items() if not immaterial(key, flat)}

    @property
    def method(self) -> str:
        return self.record.get("method") or chosen_name(self.settings["method._target_"])

    @cached_property
    def place(self) -> dict[str, Any]:
        """Images, tasks and backbone: runs that differ here do not belong in one table, nor do a
        search's trials.
        """
        stream, backbone, part = (
            self.record.get(key, {}) for key in ("stream", "backbone", "part")
        )
        found = {key: value for key, value in self.settings.items() if key.startswith("stream.")}
        found["images"] = str(stream.get("content_hash", "not recorded"))[:12]
        found["evaluated on"] = self.record.get("evaluated_on", "test")
        found |= {f"part.{key}": part[key] for key in ("first_tasks", "ranked_on") if key in part}
        resolved = (
            ("weights", "pixel_statistics", "mean", "std", "name", "_target_") if backbone else ()
        )
        asked = {key: value for key, value in self.settings.items() if key.startswith("backbone.")}
        found |= {
            key: value for key, value in asked.items() if key.partition(".")[2] not in resolved
        }
        found |= {
            f"backbone.{key}": backbone[key]
            for key in ("name", "sha256", "mean", "std")
            if key in backbone
        }
        return found

    @cached_property
    def variant(self) -> dict[str, Any]:
        """The method and its settings: runs that are equal here differ in nothing but the seed."""
        groups = ["method", "trainer"]
        if takes(self.settings["method._target_"], "router"):
            groups.append("router")
        return {
            key: value for key, value in self.settings.items() if key.partition(".")[0] in groups
        }


@dataclass(frozen=True)
class Column:
    """A column of the table: `read` takes its number from run.json, None where it is not recorded.

    best: whether high or low is good; spread: whether the standard deviation over seeds is of
    interest.
    """

    title: str
    read: Callable[[Mapping[str, Any]], float | None]
    digits: int = 0
    best: Literal["high", "low"] | None = None
    spread: bool = False


def _percent(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(record: Mapping[str, Any]) -> float | None:
        value = record.get(name)
        return None if value is None else 100 * value

    return read


def _parameters(record: Mapping[str, Any]) -> float | None:
    counts = record.get("trainable_parameters")
    return sum(counts.values()) if counts else None


def _seconds(record: Mapping[str, Any]) -> float | None:
    return (
        sum(record["seconds"][key] for key in ("train", "align", "eval"))
        if "seconds" in record
        else None
    )


def _cost(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(record: Mapping[str, Any]) -> float | None:
        value: Any = record.get("cost")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return read


def _mebibytes(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    read = _cost(*path)

    def scaled(record: Mapping[str, Any]) -> float | None:
        value = read(record)
        return None if value is None else value / 2**20

    return scaled


COLUMNS = (
    Column("FAA", _percent("final_average_accuracy"), 2, "high", spread=True),
    Column("CAA", _percent("cumulative_average_accuracy"), 2, "high", spread=True),
    Column("forgetting", _percent("forgetting"), 2, "low", spread=True),
    Column("parameters", _parameters),
    Column("train GFLOPs", _cost("gflops_per_image", "train_gflops", "torch"), 2),
    Column("test GFLOPs", _cost("gflops_per_image", "infer_gflops", "torch"), 2),
    Column("seconds", _seconds),
    Column("state MiB", _mebibytes("stored_state_bytes"), 1),
    Column("process MiB", _mebibytes("peak_memory_bytes", "process_resident")),
    Column("GPU MiB", _mebibytes("peak_memory_bytes", "cuda_allocated")),
)


@dataclass(frozen=True)
class Cell:
    """A mean over seeds and its standard deviation; `absent` are the row's seeds that did not
    record it.
    """

    mean: float | None
    std: float | None = None
    absent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """A method with the same settings, one run a seed."""

    label: str
    method: str
    runs: Mapping[int, Run]

    def cell(self, column: Column, ddof: int) -> Cell:
        values = {seed: column.read(run.record) for seed, run in self.runs.items()}
        numbers = [value for value in values.values() if value is not None]
        absent = tuple(seed for seed, value in values.items() if value is None)
        if not numbers:
            return Cell(None, None, absent)
        mean, spare = fmean(numbers), len(numbers) - ddof
        squares = sum((number - mean) ** 2 for number in numbers)
        std = (squares / spare) ** 0.5 if column.spread and len(numbers) > 1 and spare > 0 else None
        return Cell(mean, std, absent)


@dataclass(frozen=True)
class Table:
    """Rows on the same images, tasks and backbone, best first; notes say what a reader must not
    overlook.
    """

    place: Mapping[str, Any]
    title: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    notes: list[str] = field(default_factory=list)


def find_runs(arguments: Iterable[str]) -> list[Path]:
    """The run directories that the arguments name: themselves, below them, or matched by a glob;
    each once.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        matches = sorted(glob.glob(os.path.expanduser(argument), recursive=True))
        paths = [path for match in matches for path in _below(Path(match))]
        if not paths:
            reason = (
                "no run directory in it" if matches else "no such directory, and no match as a glob"
            )
            raise UserError(
                f"RUN={argument}: {reason}; run directories are named runs/<name>/<time>"
            )
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _below(path: Path) -> list[Path]:
    """The run directories at or below a path, in order."""
    if path.name == "run.json" and path.is_file():
        return [path.parent]
    found = []
    for folder, inner, files in os.walk(path):
        inner.sort()
        if (
            "run.json" in files
            or {"config.yaml", "train.log"} <= {*files}
            or ("checkpoints" in inner)
        ):
            found.append(Path(folder))
            inner.clear()  # a run directory holds no other
    return found


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs, and a line for each other one."""
    runs, left_out = [], []
    for path in paths:
        try:
            record = RunDirectory(path).read_record()
        except UserError as error:
            left_out.append(str(error))
            continue
        if record.get("status") != "finished":
            log = path.parent / LOGS / f"{path.name}.log"  # of a job of a sweep
            said = f"; log: {log}" if log.is_file() else ""
            # A search begins its trials again by itself, and what it ended early is at its end.
            further = "" if "part" in record else f"; go on with: smope train resume={path}"
            left_out.append(f"{path}: {_state(record)}{said}{further}")
        elif "config" not in record or "seed" not in record:
            left_out.append(
                f"{path}: its run.json has no config or seed, so nobody can say what it is a run of"
            )
        else:
            runs.append(Run(path, record))
    return runs, left_out


def _state(record: Mapping[str, Any]) -> str:
    if not record:
        return "has no run.json yet"
    status = {"running": "running, or killed,"}.get(
        record.get("status", ""), record.get("status", "unfinished")
    )
    tasks = len(record.get("accuracy_matrix", []))
    return f"{status} after {tasks_done(record)} of {tasks} tasks"


def tables(runs: Sequence[Run], ddof: int = 0) -> list[Table]:
    """Sort finished runs into tables.

    UserError where one row has two runs of a seed that disagree.
    """
    places = _grouped(runs, lambda run: run.place)
    return [_table(place, members, ddof) for place, members in places]


def differences(found: Sequence[Table]) -> list[str]:
    """What sets tables apart, a line a key."""
    keys = dict.fromkeys(key for table in found for key in table.place)
    lines = []
    for key in keys:
        values = [shown(table.place.get(key, "not there"))[:SHORT] for table in found]
        if len({*values}) > 1:
            lines.append(f"{key}: {' | '.join(values)}")
    return lines


def _grouped(
    runs: Iterable[Run], key: Callable[[Run], dict[str, Any]]
) -> list[tuple[dict[str, Any], list[Run]]]:
    """Runs with an equal key together, in the order in which they come."""
    groups: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        own = key(run)
        members = next((members for other, members in groups if other == own), None)
        if members is None:
            groups.append((own, [run]))
        else:
            members.append(run)
    return groups


def _table(place: Mapping[str, Any], members: Sequence[Run], ddof: int) -> Table:
    notes: list[str] = []
    groups = _grouped(members, lambda run: run.variant)
    methods = Counter(runs[0].method for _, runs in groups)
    rows = []
    for variant, runs in groups:
        method = runs[0].method
        rivals = [other for other, theirs in groups if theirs[0].method == method]
        label = _label(method, variant, rivals) if methods[method] > 1 else method
        rows.append(Row(label, method, _by_seed(label, runs, notes)))
    faa = COLUMNS[0]
    rows.sort(key=lambda row: -(row.cell(faa, ddof).mean or 0.0))
    seeds = sorted({seed for row in rows for seed in row.runs})
    notes += _missing(rows, seeds, ddof) + _unlike(groups)
    return Table(place, _title(members[0]), rows, seeds, notes)


def _label(method: str, variant: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> str:
    """The method and those of its settings in which its rows differ."""
    keys = dict.fromkeys(key for rival in rivals for key in rival)
    differing = [key for key in keys if any(rival.get(key) != variant.get(key) for rival in rivals)]
    told = [f"{key.removeprefix('method.')}={shown(variant.get(key))}" for key in differing]
    return f"{method} ({', '.join(told)})"


def _by_seed(label: str, runs: Sequence[Run], notes: list[str]) -> dict[int, Run]:
    """One run a seed, ascending.

    A repeat with the same numbers counts once; with others it is an error.
    """
    chosen: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        first = chosen.setdefault(run.seed, run)
        if first is run:
            continue
        matrices = [item.record.get("accuracy_matrix") for item in (first, run)]
        if matrices[0] != matrices[1]:
            raise UserError(
                f"{label}, seed {run.seed}: {first.path} and {run.path} have the same settings "
                f"and other numbers, so "
                "that no mean over seeds can be taken; leave one of them out"
            )
        notes.append(
            f"{label}, seed {run.seed}: {run.path} repeats {first.path}, with the same numbers; "
            f"counted once"
        )
    return chosen


def _missing(rows: Sequence[Row], seeds: Sequence[int], ddof: int) -> list[str]:
    """The seeds that a row lacks and others have, and the numbers that some of its runs did not
    record.
    """
    lines = []
    for row in rows:
        absent = [seed for seed in seeds if seed not in row.runs]
        if absent:
            lines.append(
                f"{row.label}: no finished run with {_seeds(absent)}; its mean is over "
                f"{_seeds([*row.runs])}"
            )
        for column in COLUMNS:
            cell = row.cell(column, ddof)
            if cell.mean is not None and cell.absent:
                lines.append(
                    f"{row.label}: {column.title} not recorded for {_seeds(cell.absent)}; mean of "
                    f"the others"
                )
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _unlike(groups: Sequence[tuple[Mapping[str, Any], Sequence[Run]]]) -> list[str]:
    """Settings of the trainer in which methods differ: a comparison that is not on equal terms
    says so.
    """
    lines = []
    keys = dict.fromkeys(
        key for variant, _ in groups for key in variant if key.startswith("trainer.")
    )
    for key in keys:
        values: dict[str, list[str]] = {}
        for variant, runs in groups:
            names = values.setdefault(shown(variant.get(key)), [])
            names += [runs[0].method] if runs[0].method not in names else []
        if len(values) > 1:
            lines.append(
                f"not alike: {key} is "
                + ", ".join(f"{v} ({', '.join(names)})" for v, names in values.items())
            )
    return lines


def _title(run: Run) -> str:
    """Stream and backbone in a line."""
    place, record = run.place, run.record
    stream = record.get("stream", {}).get("name") or place.get("stream.name", "unknown stream")
    backbone = record.get("backbone", {})
    name = backbone.get("name") or place.get("backbone.name", "unknown backbone")
    statistics = (
        f", pixel mean {shown(backbone['mean'])} std {shown(backbone['std'])}"
        if "mean" in backbone
        else ""
    )
    count = len(record.get("tasks") or record.get("accuracy_matrix", []))
    ranked = place.get("part.ranked_on")
    trials = (
        ""
        if ranked is None
        else f", trials of a search{' RANKED ON TEST IMAGES' if ranked == 'test' else ''}"
    )
    return f"{stream}, {count} tasks, {place['evaluated on']} images{trials}; {name}{statistics}"
