"""How runs are called, and what happens to two runs of the same seed. Imports no pandas.

A label is the method, in brackets the settings in which configurations of this method differ on the
same benchmark, and the benchmark if there are several: `smope (num_experts=25)`,
`smope (num_experts=25) on digits (num_tasks=5)`. All labels of a method name the same settings.

Two runs of one configuration with the same seed and the same accuracies count once. If their
accuracies differ, no mean over seeds exists, and loading them is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from smope.analysis.run import Run
from smope.config.signatures import chosen_name
from smope.config.value_types import shown
from smope.errors import UserError

Settings = Mapping[str, Any]


def label_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels, without repeats, in the given order.

    UserError if two runs of one configuration and seed have different accuracies.
    """
    benchmarks = distinct([run.benchmark for run in runs])
    rivals: dict[tuple[str, str], list[Settings]] = {}
    for run in runs:
        rivals.setdefault(_rivalry(run), []).append(run.method_settings)
    distinct_rivals = {key: distinct(settings) for key, settings in rivals.items()}
    labelled = [
        replace(
            run,
            method_label=_method_label(run, distinct_rivals[_rivalry(run)]),
            benchmark_label=_benchmark_label(run, benchmarks),
        )
        for run in runs
    ]
    return _without_repeats(labelled)


def _rivalry(run: Run) -> tuple[str, str]:
    """Equal for runs of one method on one benchmark, whose labels must tell settings apart."""
    return run.method, fingerprint(run.benchmark)


def distinct(settings: Sequence[Settings]) -> list[Settings]:
    """Each of these settings once, in the order of their first use."""
    return list({fingerprint(values): values for values in reversed(settings)}.values())[::-1]


def fingerprint(settings: Settings) -> str:
    """A text that is the same for equal settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def differing_keys(settings: Sequence[Settings]) -> list[str]:
    """The keys that have not the same value everywhere, or are missing somewhere."""
    keys = dict.fromkeys(key for values in settings for key in values)
    first = settings[0]
    return [
        key
        for key in keys
        if any(
            (key in values) != (key in first) or values.get(key) != first.get(key)
            for values in settings
        )
    ]


def _method_label(run: Run, rivals: Sequence[Settings]) -> str:
    return run.method + _bracket(run.method_settings, rivals, "method.")


def _benchmark_label(run: Run, benchmarks: Sequence[Settings]) -> str:
    if len(benchmarks) == 1:
        return ""
    name = run.benchmark.get("stream.name", "unknown stream")
    same_stream = [
        benchmark
        for benchmark in benchmarks
        if benchmark.get("stream.name", "unknown stream") == name
    ]
    return name + _bracket(run.benchmark, same_stream, "stream.")


def _bracket(settings: Settings, rivals: Sequence[Settings], prefix: str) -> str:
    """What tells these settings from those of `rivals`, in brackets; keys without `prefix`."""
    parts = []
    for key in _telling_keys(rivals):
        if key not in settings:
            continue
        value = settings[key]
        if key == "method._target_":  # two classes that are chosen by the same name
            parts.append(f"class={value}")
            continue
        name, text = as_written(key, value)
        parts.append(f"{name.removeprefix(prefix)}={text}")
    return f" ({', '.join(parts)})" if parts else ""


def _telling_keys(rivals: Sequence[Settings]) -> list[str]:
    """The keys that tell settings apart, choices such as `router._target_` first.

    A key that only one choice has, or that is the same wherever it exists, adds nothing to the
    choice.
    """
    differing = differing_keys(rivals)
    choices = [key for key in differing if key.endswith("._target_")]
    telling = choices.copy()
    for key in differing:
        values = [values[key] for values in rivals if key in values]
        follows_choice = f"{key.partition('.')[0]}._target_" in choices
        is_same = all(value == values[0] for value in values)
        if key not in choices and not (follows_choice and is_same):
            telling.append(key)
    return telling


def as_written(key: str, value: Any) -> tuple[str, str]:
    """Key and value as on the command line: `router`, `topk` for `router._target_` and its class.

    Args:
        key: Dotted key.
        value: Its value.
    """
    if not key.endswith("._target_"):
        return key, shown(value)
    return key.removesuffix("._target_"), chosen_name(str(value))


def _without_repeats(runs: Sequence[Run]) -> list[Run]:
    """Each configuration and seed once; runs that are not as far as their repeat stay.

    Those are unfinished, and `comparable` leaves them out of means.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.label, run.seed), []).append(run)
    unique = []
    for members in groups.values():
        most_tasks = max(run.tasks_done for run in members)
        first, *repeats = (run for run in members if run.tasks_done == most_tasks)
        for other in repeats:
            _require_same_numbers(first, other)
        unique.append(replace(first, repeats=tuple(other.path for other in repeats)))
        unique += [run for run in members if run.tasks_done < most_tasks]
    return unique


def _require_same_numbers(first: Run, other: Run) -> None:
    if first.matrix != other.matrix:
        raise UserError(
            f"{first.name}: {first.path} and {other.path} have the same settings and other "
            f"numbers, so that no mean over seeds can be taken; leave one of them out"
        )


def repeat_notes(runs: Sequence[Run]) -> list[str]:
    """A line for each run that repeats another and is not counted."""
    return [
        f"{run.name}: {path} repeats {run.path}, with the same numbers; counted once"
        for run in runs
        for path in run.repeats
    ]


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Of each label the runs that have finished the most tasks.

    Only these go into means and pairs, because an average over fewer tasks is an easier problem.
    """
    most_tasks: dict[str, int] = {}
    for run in runs:
        most_tasks[run.label] = max(most_tasks.get(run.label, 0), run.tasks_done)
    return [run for run in runs if run.tasks_done == most_tasks[run.label]]
