"""A search: one trial after the other, each a run of the first tasks in this process."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from smope.config.config import Config, replaced
from smope.config.identity import flatten, may_move
from smope.config.signatures import chosen_name
from smope.errors import UserError
from smope.metrics.accuracy_matrix import Matrix
from smope.metrics.scores import SCORES
from smope.run.partial import EndEarly, PartialRun
from smope.run.prepare import prepare
from smope.run.train import train
from smope.training.history import History
from smope.tuning.settings import TuneSettings
from smope.tuning.space import Space, own_values, without_steps
from smope.tuning.study import Claim, Study, join
from smope.tuning.summary import Protocol, result, short, write

MAX_FAILURES = 3  # trials without a score in a row, after which the search stops


@dataclass(frozen=True)
class Search:
    """What `smope tune` has to do.

    Attributes:
        config: The configuration of the trials.
        settings: The settings of the search.
        space: The search space.
        changes: The user's own entries of the space.
        folder: The study's folder; None to name it by method and hash.
        command: The command line, to repeat it.
        train: The arguments of `smope train` that train on all tasks and test images.
    """

    config: Config
    settings: TuneSettings
    space: Space
    changes: Mapping[str, Any]
    folder: Path | None
    command: str
    train: Sequence[str]


def search(job: Search) -> None:
    """Run trials until the study has enough of them, then print the results."""
    job, protocol = _prepared(job)
    folder = job.folder or _study_folder(job, protocol)
    join(folder, _description(job, protocol))
    study = Study(folder, job.space, job.settings, job.config.seed)
    configured = own_values(job.config, job.space)
    study.begin_with(configured if job.settings.defaults_first else None)
    print("\n".join(_heading(job, protocol, folder, configured)), flush=True)
    failures = 0
    while (claim := study.claim()) is not None:
        try:
            scored = _run(claim, study, job, protocol)
        except KeyboardInterrupt:
            print(
                f"stopped in trial {claim.number}; the same command continues with it: "
                f"{job.command}",
                flush=True,
            )
            raise
        finally:
            study.release()
        write(study, protocol)
        failures = 0 if scored else failures + 1
        if failures == MAX_FAILURES:
            raise UserError(
                f"{MAX_FAILURES} trials in a row have no score, the last for the reason above; "
                f"change the space, or, once that is put right, give the same command again: "
                f"{job.command}"
            )
    write(study, protocol)
    print(result(study, protocol))


def _prepared(job: Search) -> tuple[Search, Protocol]:
    """Build the configuration once, so that errors come before there is a study."""
    settings = job.settings
    try:
        experiment, trainer = prepare(job.config, settings.first_tasks)
    except UserError as error:
        raise UserError(
            f"tune.{error}" if str(error).startswith("first_tasks") else str(error)
        ) from error
    stream = experiment.stream
    if not any(trainer.steps(span) for span in trainer.spans):
        method = chosen_name(job.config.method["_target_"])
        job = replace(job, space=without_steps(job.space, job.changes, method))
    protocol = Protocol(
        ranked_on=stream.evaluated_on,
        first_tasks=settings.first_tasks,
        all_tasks=len(stream.benchmark.streams["train"]),
        score=settings.score,
        images=tuple(len(task.test) for task in stream.tasks),
        identity=f"{stream.identity} {experiment.backbone.identity.sha256}",
        train=tuple(job.train),
    )
    return job, protocol


def _description(job: Search, protocol: Protocol) -> dict[str, Any]:
    """What a study is known by: scores of different descriptions cannot be compared."""
    flat = flatten(job.config.as_dict())
    compared = {
        k: v
        for k, v in flat.items()
        if k not in job.space and k not in ("run_dir", "resume") and not may_move(k, flat)
    }
    images, weights = protocol.identity.split()
    return {
        "protocol": {**job.settings.protocol, "images": images, "weights": weights},
        "space": {key: str(dimension) for key, dimension in job.space.items()},
        "config": compared,
        "marked": protocol.mark or None,
    }


def _study_folder(job: Search, protocol: Protocol) -> Path:
    """studies/<name>/<method>-<hash>, or the folder that the study already has."""
    parent, digest = Path("studies") / job.config.name, _digest(job, protocol)
    method = chosen_name(job.config.method["_target_"])
    return next(iter(sorted(parent.glob(f"*{digest}"))), parent / f"{method}-{digest}")


def _digest(job: Search, protocol: Protocol) -> str:
    text = json.dumps(_description(job, protocol), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _heading(
    job: Search, protocol: Protocol, folder: Path, configured: Mapping[str, Any] | None
) -> list[str]:
    settings, images = job.settings, sum(protocol.images)
    lines = [
        f"{protocol.score.replace('_', ' ')} on {images} {protocol.ranked_on} images of the first "
        f"{protocol.first_tasks} of "
        f"{protocol.all_tasks} tasks, {settings.trials} trials in all",
        *(f"  {key}: {dimension}" for key, dimension in job.space.items()),
    ]
    if protocol.first_tasks == protocol.all_tasks:
        lines.append(
            "the search sees every task of the stream: nothing of it is left that it does not know"
        )
    if protocol.mark:
        lines.append(protocol.mark)
    if settings.defaults_first:
        where = (
            "are the first trial"
            if configured is not None
            else "lie outside the space and are not tried"
        )
        lines.append(f"the configuration's own values {where}")
    return [*lines, f"study: {folder}"]


def _run(claim: Claim, study: Study, job: Search, protocol: Protocol) -> bool:
    """Run one trial to its end and report it to Optuna. Returns whether it has a score."""
    values = ", ".join(f"{key}={short(value)}" for key, value in claim.values.items())
    print(
        f"trial {claim.number}: {values}{' (killed before, continuing)' if claim.resume else ''}",
        flush=True,
    )
    reports = _Reports(claim, study, protocol)
    partial = PartialRun(
        job.settings.first_tasks,
        reports.after_task,
        {"searched": True, "ranked_on": job.settings.rank_on},
    )
    try:
        config = replaced(job.config, claim.values)
        if not claim.resume and claim.run_dir.exists():  # killed before anything was in it
            shutil.rmtree(claim.run_dir)
        record = train(config, claim.run_dir, resume=claim.resume, partial=partial)
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
        score = _score(matrix, protocol)
        claim.trial.set_user_attr("row", matrix[-1])
        reports.catch_up(matrix)
        study.optuna.tell(claim.trial, score)
        best = study.optuna.best_trial
        so_far = f"best so far {100 * _value(best):.2f} % of trial {best.number}"
        print(f"trial {claim.number}: {100 * score:.2f} %; {so_far}", flush=True)
    shutil.rmtree(claim.run_dir / "checkpoints", ignore_errors=True)
    return True


class _Reports:
    """Reports the score after each task to Optuna, which may end the trial early."""

    def __init__(self, claim: Claim, study: Study, protocol: Protocol) -> None:
        self.claim = claim
        self.protocol = protocol
        self._reported = 0

    def after_task(self, history: History) -> None:
        self.catch_up(history.accuracy_matrix)
        done = len(history.accuracy_matrix)
        score = _score(history.accuracy_matrix, self.protocol)
        if done < self.protocol.first_tasks:
            print(
                f"  after task {done} of {self.protocol.first_tasks}: {100 * score:.2f} %",
                flush=True,
            )
            if self.claim.trial.should_prune():
                raise EndEarly

    def catch_up(self, matrix: Matrix) -> None:
        """Report the rows that are new, also those of an earlier trial that this one continues."""
        for row in range(self._reported, len(matrix)):
            self.claim.trial.report(_score(matrix[: row + 1], self.protocol), row)
        self._reported = len(matrix)


def _score(matrix: Matrix, protocol: Protocol) -> float:
    """The score after as many tasks as the matrix has rows."""
    return SCORES[protocol.score].function(matrix, protocol.images[: len(matrix)])


def _value(trial: Any) -> float:
    assert trial.value is not None
    return trial.value
