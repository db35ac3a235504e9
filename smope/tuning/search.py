"""A search from its description to its table: trial after trial, each a run of the first tasks in
this process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from smope.config.config import Config, chosen_name, replaced
from smope.config.identity import flatten, may_move
from smope.errors import UserError
from smope.metrics.accuracy_matrix import Matrix
from smope.metrics.scores import SCORES
from smope.run.prepare import prepare
from smope.run.train import EndEarly, Part, train
from smope.training.history import History
from smope.tuning.settings import TuneSettings
from smope.tuning.space import Space, present, without_steps
from smope.tuning.study import Claim, Study, join
from smope.tuning.summary import Judged, result, short, write

FAILURES = 3  # trials in a row without a score, after which something else is wrong


@dataclass(frozen=True)
class Search:
    """What `smope tune` was asked for.

    config: of the trials. changes: the user's own entries of the space. command: this one, to give
    again. train: the arguments of `smope train` that run the configuration as it is meant to be, on
    all tasks and judged on test images.
    """

    config: Config
    settings: TuneSettings
    space: Space
    changes: Mapping[str, Any]
    folder: Path | None
    command: str
    train: Sequence[str]


def search(asked: Search) -> None:
    """Run trials until the study has as many as asked for, then tell what came out of it."""
    asked, judged = _look(asked)
    folder = asked.folder or Path("studies") / asked.config.name / _digest(asked, judged)
    join(folder, _description(asked, judged))
    study = Study(folder, asked.space, asked.settings, asked.config.seed)
    own = present(asked.config, asked.space)
    study.begin_with(own if asked.settings.defaults_first else None)
    print("\n".join(_heading(asked, judged, folder, own)), flush=True)
    failures = 0
    while (claim := study.claim()) is not None:
        try:
            scored = _run(claim, study, asked, judged)
        except KeyboardInterrupt:
            print(
                f"stopped in trial {claim.number}; the same command goes on with it: "
                f"{asked.command}",
                flush=True,
            )
            raise
        finally:
            study.let_go()
        write(study, judged)
        failures = 0 if scored else failures + 1
        if failures == FAILURES:
            raise UserError(
                f"{FAILURES} trials in a row have no score, the last for the reason above; change "
                f"the space, or, once "
                f"that is put right, give the same command again: {asked.command}"
            )
    write(study, judged)
    print(result(study, judged))


def _look(asked: Search) -> tuple[Search, Judged]:
    """Build the configuration once, so that what cannot run is refused before there is a study."""
    settings = asked.settings
    try:
        experiment, trainer = prepare(asked.config, settings.first_tasks)
    except UserError as error:
        raise UserError(
            f"tune.{error}" if str(error).startswith("first_tasks") else str(error)
        ) from error
    stream = experiment.stream
    if not any(trainer.steps(span) for span in trainer.spans):
        method = chosen_name(asked.config.method["_target_"])
        asked = replace(asked, space=without_steps(asked.space, asked.changes, method))
    judged = Judged(
        ranked_on=stream.evaluated_on,
        first_tasks=settings.first_tasks,
        all_tasks=len(stream.benchmark.streams["train"]),
        score=settings.score,
        images=tuple(len(task.test) for task in stream.tasks),
        identity=f"{stream.identity} {experiment.backbone.identity.sha256}",
        train=tuple(asked.train),
    )
    return asked, judged


def _description(asked: Search, judged: Judged) -> dict[str, Any]:
    """What a study's folder is known by: scores of two descriptions that differ cannot be
    compared.
    """
    flat = flatten(asked.config.as_dict())
    kept = {
        k: v
        for k, v in flat.items()
        if k not in asked.space and k not in ("run_dir", "resume") and not may_move(k, flat)
    }
    images, weights = judged.identity.split()
    return {
        "protocol": {**asked.settings.protocol, "images": images, "weights": weights},
        "space": {key: str(dimension) for key, dimension in asked.space.items()},
        "config": kept,
        "marked": judged.mark or None,
    }


def _digest(asked: Search, judged: Judged) -> str:
    text = json.dumps(_description(asked, judged), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _heading(
    asked: Search, judged: Judged, folder: Path, own: Mapping[str, Any] | None
) -> list[str]:
    settings, images = asked.settings, sum(judged.images)
    lines = [
        f"{judged.score.replace('_', ' ')} on {images} {judged.ranked_on} images of the first "
        f"{judged.first_tasks} of "
        f"{judged.all_tasks} tasks, {settings.trials} trials in all",
        *(f"  {key}: {dimension}" for key, dimension in asked.space.items()),
    ]
    if judged.first_tasks == judged.all_tasks:
        lines.append(
            "the search sees every task of the stream: nothing of it is left that it does not know"
        )
    if judged.mark:
        lines.append(judged.mark)
    if settings.defaults_first:
        where = (
            "are the first trial" if own is not None else "lie outside the space and are not tried"
        )
        lines.append(f"the configuration's own values {where}")
    return [*lines, f"study: {folder}"]


def _run(claim: Claim, study: Study, asked: Search, judged: Judged) -> bool:
    """One trial, from where it is to its end, and what Optuna is told of it; whether it has a
    score.
    """
    values = ", ".join(f"{key}={short(value)}" for key, value in claim.values.items())
    print(
        f"trial {claim.number}: {values}{' (killed before, going on)' if claim.resume else ''}",
        flush=True,
    )
    reports = _Reports(claim, study, judged)
    part = Part(
        asked.settings.first_tasks,
        reports.after_task,
        {"searched": True, "ranked_on": asked.settings.rank_on},
    )
    try:
        config = replaced(asked.config, claim.values)
        if not claim.resume and claim.run_dir.exists():  # killed before anything was in it
            shutil.rmtree(claim.run_dir)
        record = train(config, claim.run_dir, resume=claim.resume, part=part)
    except (UserError, MemoryError) as error:
        claim.trial.set_user_attr("note", " ".join(str(error).split()))
        study.optuna.tell(claim.trial, state=TrialState.PRUNED)
        print(f"trial {claim.number}: no score: {error}", flush=True)
        return False
    claim.trial.set_user_attr("seconds", sum(record["seconds"]["per_task"]))
    if record["status"] == "ended early":
        study.optuna.tell(claim.trial, state=TrialState.PRUNED)
        print(
            f"trial {claim.number}: ended early, worse than the median of the others after this "
            f"task",
            flush=True,
        )
    else:
        matrix = record["accuracy_matrix"]
        score = _score(matrix, judged)
        claim.trial.set_user_attr("row", matrix[-1])
        reports.catch_up(matrix)
        study.optuna.tell(claim.trial, score)
        best = study.optuna.best_trial
        so_far = f"best so far {100 * _value(best):.2f} % of trial {best.number}"
        print(f"trial {claim.number}: {100 * score:.2f} %; {so_far}", flush=True)
    shutil.rmtree(claim.run_dir / "checkpoints", ignore_errors=True)
    return True


class _Reports:
    """Tells Optuna the score after each task, and asks it whether to go on."""

    def __init__(self, claim: Claim, study: Study, judged: Judged) -> None:
        self.claim = claim
        self.judged = judged
        self._told = 0

    def after_task(self, history: History) -> None:
        self.catch_up(history.accuracy_matrix)
        done = len(history.accuracy_matrix)
        score = _score(history.accuracy_matrix, self.judged)
        if done < self.judged.first_tasks:
            print(
                f"  after task {done} of {self.judged.first_tasks}: {100 * score:.2f} %",
                flush=True,
            )
            if self.claim.trial.should_prune():
                raise EndEarly

    def catch_up(self, matrix: Matrix) -> None:
        """Rows that a trial inherited from the one it continues are told as well."""
        for row in range(self._told, len(matrix)):
            self.claim.trial.report(_score(matrix[: row + 1], self.judged), row)
        self._told = len(matrix)


def _score(matrix: Matrix, judged: Judged) -> float:
    """The score after as many tasks as the matrix has rows."""
    return SCORES[judged.score].function(matrix, judged.images[: len(matrix)])


def _value(trial: Any) -> float:
    assert trial.value is not None
    return trial.value
