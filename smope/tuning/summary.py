"""The results of a search, on the screen and in files: the best trials, the importance of keys, and
the command that trains with the best values.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from smope.config.value_types import shown
from smope.console.markup import aligned, csv_grid
from smope.metrics.scores import SCORES
from smope.storage.files import write_atomically

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from smope.tuning.study import Study

TABLE_TRIALS = 10  # in the table on the screen
IMPORTANCE_TRIALS = 5  # finished ones, before importance is computed
TEST_WARNING = (
    "RANKED ON TEST IMAGES (forced): the test scores of what was chosen here are too good, and no "
    "result to report"
)


@dataclass(frozen=True)
class Protocol:
    """What the scores of trials are measured on.

    Attributes:
        ranked_on: "validation" or "test" images.
        first_tasks: The number of tasks that trials learn.
        all_tasks: The number of tasks of the stream.
        score: The score that ranks the trials.
        images: The number of images of each of the first tasks.
        identity: Of the stream and of the backbone's weights.
        train: The arguments of `smope train`, see search.Search.
    """

    ranked_on: str
    first_tasks: int
    all_tasks: int
    score: str
    images: tuple[int, ...]
    identity: str
    train: tuple[str, ...]

    @property
    def mark(self) -> str:
        return TEST_WARNING if self.ranked_on == "test" else ""


def write(study: Study, protocol: Protocol) -> None:
    """Write trials.csv and, once a trial has finished, best.json."""
    trials = study.trials
    write_atomically(
        study.folder / "trials.csv", f"{csv_grid(_lines(study, trials, protocol))}\n".encode()
    )
    best = _ranked(trials, protocol)[:1]
    if best:
        text = json.dumps(_best(study, best[0], protocol), indent=1, ensure_ascii=False)
        write_atomically(study.folder / "best.json", f"{text}\n".encode())


def result(study: Study, protocol: Protocol) -> str:
    """The text at the end of a search."""
    trials = study.trials
    ranked = _ranked(trials, protocol)
    lines = ["", *([protocol.mark] if protocol.mark else []), _counts(trials)]
    running = study.running_elsewhere()
    if running:
        lines.append(
            f"{running} under way in other processes; the same command shows the table again"
        )
    if not ranked:
        return "\n".join([*lines, "no trial has a score yet", f"study: {study.folder}"])
    best = _best(study, ranked[0], protocol)
    tied = _tied(ranked)
    lines += [
        "",
        _table(study, ranked[:TABLE_TRIALS], protocol),
        "",
        *_importance_lines(study, ranked),
    ]
    lines += [_noise_line(best), ""]
    if len(tied) > 1:
        lines.append(_tie_line(tied, ranked))
    if len(tied) == len(ranked) > 1:
        return "\n".join([*lines, f"study: {study.folder}"])
    what = (
        "the best values, on all tasks and test images"
        if not protocol.mark
        else "the best values, marked in the name"
    )
    return "\n".join(
        [*lines, f"train with {what}:", f"  {best['train_command']}", f"study: {study.folder}"]
    )


def _tied(ranked: Sequence[FrozenTrial]) -> list[int]:
    """The numbers of the trials that share the best score."""
    return [trial.number for trial in ranked if trial.value == ranked[0].value]


def _tie_line(tied: Sequence[int], ranked: Sequence[FrozenTrial]) -> str:
    score = f"{_percent(ranked[0].value)} %"
    if len(tied) == len(ranked):
        return (
            f"all {len(tied)} trials tie at {score}: these images do not tell the values apart, so "
            f"none are recommended; keep the configuration's own, or give the search a harder "
            f"problem (tune.first_tasks, tune.validation_fraction)"
        )
    return f"trials {', '.join(map(str, tied))} tie at {score}; the earliest of them is taken below"


def _ranked(trials: Sequence[FrozenTrial], protocol: Protocol) -> list[FrozenTrial]:
    """Trials that finished, best first; of equals the earlier one."""
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sign = -1 if SCORES[protocol.score].better == "high" else 1
    return sorted(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def _best(study: Study, trial: FrozenTrial, protocol: Protocol) -> dict[str, Any]:
    values = study.values(trial.params)
    arguments = [*protocol.train, *(f"{key}={shown(value)}" for key, value in values.items())]
    first = next((t for t in study.trials if t.number == 0 and t.state.name == "COMPLETE"), None)
    return {
        **({"marked": protocol.mark} if protocol.mark else {}),
        **{key: value for key, value in asdict(protocol).items() if key != "train"},
        "trial": trial.number,
        "value": trial.value,
        "standard_error": _standard_error(trial.user_attrs["row"], protocol.images),
        "values": values,
        "tied_trials": _tied(_ranked(study.trials, protocol)),
        "value_of_trial_0": first.value if first else None,
        "trial_0_is_the_configuration": study.settings.defaults_first,
        "importance": _importance(study),
        "train_command": shlex.join(["smope", "train", *arguments]),
    }


def _standard_error(row: Sequence[float], images: Sequence[int]) -> float:
    """The standard error of FAA, the mean of the last row, from this many images of each task."""
    return math.sqrt(sum(p * (1 - p) / n for p, n in zip(row, images, strict=True))) / len(row)


def _noise_line(best: dict[str, Any]) -> str:
    error, images = 100 * best["standard_error"], sum(best["images"])
    return (
        f"{images} images judge: by their number alone FAA has a standard error of {error:.2f} "
        f"points; "
        "smaller differences mean nothing, and the best of many is too good by luck"
    )


def _counts(trials: Sequence[FrozenTrial]) -> str:
    states = [_state(trial) for trial in trials]
    names = ("finished", "ended early", "no score", "killed")
    return "trials: " + ", ".join(
        f"{states.count(name)} {name}" for name in names if name in states
    )


def _state(trial: FrozenTrial) -> str:
    if trial.state.name == "PRUNED":
        return "no score" if "note" in trial.user_attrs else "ended early"
    return {"COMPLETE": "finished", "FAIL": "killed", "RUNNING": "running", "WAITING": "waiting"}[
        trial.state.name
    ]


def _table(study: Study, ranked: Sequence[FrozenTrial], protocol: Protocol) -> str:
    names = [key.partition(".")[2] for key in study.space]
    keys = names if len(set(names)) == len(names) else list(study.space)
    score = SCORES[protocol.score].short
    lines = [
        ["trial", f"{score} ({protocol.ranked_on})", *_task_columns(protocol), *keys, "seconds"]
    ]
    for trial in ranked:
        values = [short(value) for value in study.values(trial.params).values()]
        lines.append(
            [
                str(trial.number),
                _percent(trial.value),
                *_scores(trial, protocol),
                *values,
                _seconds(trial),
            ]
        )
    return aligned(lines)


def _lines(study: Study, trials: Sequence[FrozenTrial], protocol: Protocol) -> list[list[str]]:
    """The table of all trials, the header first."""
    head = [
        "trial",
        "state",
        "score",
        *_task_columns(protocol),
        *study.space,
        "seconds",
        "ranked_on",
        "note",
        "directory",
    ]
    lines = [head]
    ranked_on = "test (forced)" if protocol.mark else protocol.ranked_on
    for trial in trials:
        values = study.values(trial.params)
        score = _percent(trial.value) if trial.state.name == "COMPLETE" else ""
        cells = [shown(values[key]) if key in values else "" for key in study.space]
        attributes = [trial.user_attrs.get(name, "") for name in ("note", "directory")]
        state = [str(trial.number), _state(trial), score]
        lines.append(
            [*state, *_scores(trial, protocol), *cells, _seconds(trial), ranked_on, *attributes]
        )
    return lines


def _task_columns(protocol: Protocol) -> list[str]:
    return [f"after task {task + 1}" for task in range(protocol.first_tasks)]


def _scores(trial: FrozenTrial, protocol: Protocol) -> list[str]:
    return [_percent(trial.intermediate_values.get(task)) for task in range(protocol.first_tasks)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def short(value: Any) -> str:
    """A value with three digits, for the screen."""
    return f"{value:.3g}" if isinstance(value, float) else shown(value)


def _seconds(trial: FrozenTrial) -> str:
    seconds = trial.user_attrs.get("seconds")
    return "" if seconds is None else f"{seconds:.1f}"


def _importance(study: Study) -> dict[str, float] | None:
    """The importance of each key by Optuna's PED-ANOVA (arXiv 2304.10255); None if unknown."""
    import optuna

    finished = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(finished) < IMPORTANCE_TRIALS or len({trial.value for trial in finished}) < 2:
        return None
    try:
        return {
            key: round(value, 4)
            for key, value in optuna.importance.get_param_importances(study.optuna).items()
        }
    except (ValueError, RuntimeError):  # too few different values
        return None


def _importance_lines(study: Study, ranked: Sequence[FrozenTrial]) -> list[str]:
    importance = _importance(study)
    if importance is None or not any(importance.values()):
        return [f"importance: not known from {len(ranked)} finished trials"]
    return [
        "importance (PED-ANOVA): "
        + ", ".join(f"{key} {value:.2f}" for key, value in importance.items())
    ]
