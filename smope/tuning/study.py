"""An Optuna study in a folder that several processes share.

study.json       the search space, the configuration and the protocol; written once and compared by
                 every process that joins
study.db         Optuna's own record (SQLite): each trial, its values, its score after each task,
                 its state
trials/N/        the run directory of trial N, without checkpoints once it has ended
trials/N.lock    held while a process runs trial N; the kernel releases it when the process ends
trials.csv, best.json    the results, see summary.py; rewritten after each trial

If a process is killed, its trial stays RUNNING in Optuna's record, but no process holds its lock.
The next process that asks for a trial marks it as failed and repeats its values in the same run
directory, MAX_ATTEMPTS times at most.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from smope.config.value_types import shown
from smope.errors import UserError
from smope.metrics.scores import SCORES
from smope.seeding import stable_seed
from smope.storage.files import lock_file, write_atomically
from smope.tuning.settings import TuneSettings
from smope.tuning.space import NumberRange, Space

MAX_ATTEMPTS = 3
# files that another process may have made just before study.json
EARLY_FILES = (
    ".lock",
    "trials",
    "study.db",
    "study.db-journal",
)
STUDY_FORMAT_VERSION = 1


@dataclass
class Claim:
    """A trial that this process runs.

    Attributes:
        trial: Optuna's trial.
        values: Values of the configuration by dotted key.
        run_dir: Its run directory.
        resume: Whether to continue the run in that directory.
    """

    trial: optuna.Trial
    values: dict[str, Any]
    run_dir: Path
    resume: bool

    @property
    def number(self) -> int:
        return self.trial.number


class Study:
    """The trials of one folder. Trials are added and released under the folder's lock."""

    def __init__(self, folder: Path, space: Space, settings: TuneSettings, seed: int) -> None:
        self.folder = folder
        self.space = space
        self.settings = settings
        self._seed = seed
        self._lock: IO[str] | None = None
        self._distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _folder_lock(self.folder):
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
            )
            self.optuna = optuna.create_study(
                storage=storage,
                study_name="smope",
                direction="maximize" if SCORES[settings.score].better == "high" else "minimize",
                load_if_exists=True,
                pruner=_pruner(settings),
            )

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials()

    def begin_with(self, values: Mapping[str, Any] | None) -> None:
        """Let the first trial of a new study have these values."""
        with _folder_lock(self.folder):
            if values is not None and not self.trials:
                self.optuna.enqueue_trial(self._encoded(values))

    def claim(self) -> Claim | None:
        """The next trial, locked until `release`; None if there are enough trials."""
        with _folder_lock(self.folder):
            self._release_killed()
            trials = self.trials
            states = [trial.state for trial in trials]
            counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
            if sum(state in counted for state in states) >= self.settings.trials:
                return None
            self.optuna.sampler = self._sampler(sum(_counts_for_sampler(trial) for trial in trials))
            trial = self.optuna.ask(self._distributions)
            self._lock = lock_file(self._lock_path(trial.number))
            assert self._lock is not None, "a new trial is nobody else's"
            first = trial.user_attrs.get("continues", trial.number)
            trial.set_user_attr("directory", f"trials/{first}")
        run_dir = self.folder / "trials" / str(first)
        return Claim(trial, self.values(trial.params), run_dir, (run_dir / "config.yaml").is_file())

    def release(self) -> None:
        """Give up the lock of the present trial."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def running_elsewhere(self) -> int:
        """The number of trials that other processes run."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as values of the configuration."""
        values: dict[str, Any] = {}
        for key, value in params.items():
            dimension = self.space[key]
            values[key] = value if isinstance(dimension, NumberRange) else dimension.by_text[value]
        return values

    def _encoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            k: v if isinstance(self.space[k], NumberRange) else shown(v) for k, v in values.items()
        }

    def _release_killed(self) -> None:
        """Mark trials of killed processes as failed, and queue their values again."""
        for trial in self.trials:
            if trial.state != TrialState.RUNNING:
                continue
            path = self._lock_path(trial.number)
            path.parent.mkdir(exist_ok=True)
            free = lock_file(path)
            if free is None:
                continue
            free.close()
            self.optuna.tell(trial.number, state=TrialState.FAIL)
            attempt = trial.user_attrs.get("attempt", 1)
            if trial.params.keys() == self.space.keys() and attempt < MAX_ATTEMPTS:
                first = trial.user_attrs.get("continues", trial.number)
                self.optuna.enqueue_trial(
                    trial.params, {"continues": first, "attempt": attempt + 1}
                )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler seeded by the number of trials.

        Processes draw different values, and a search by one process draws the same values again,
        even if it was killed in between.
        """
        seed = stable_seed(self._seed, "tune", number) % 2**32
        if self.settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(n_startup_trials=self.settings.startup_trials, seed=seed)

    def _lock_path(self, number: int) -> Path:
        return self.folder / "trials" / f"{number}.lock"


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, for a short time; waits for another process."""
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    file = lock_file(folder / ".lock", wait=True)
    assert file is not None
    with file:
        yield


def join(folder: Path, description: Mapping[str, Any]) -> None:
    """Make the study's folder, or check that it holds the same study.

    Args:
        folder: The folder.
        description: Protocol, space and configuration of the search.

    Raises:
        UserError: if the folder holds something else; a difference is named.
    """
    path = folder / "study.json"
    text = (
        json.dumps(
            {"format_version": STUDY_FORMAT_VERSION, **description}, indent=1, ensure_ascii=False
        )
        + "\n"
    )
    try:
        _refuse_others(folder, EARLY_FILES)
        with _folder_lock(folder):
            if not path.exists():
                _refuse_others(folder, (".lock", "trials"))
                write_atomically(path, text.encode())
                return
            saved = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"tune.folder={folder}: cannot be used ({error.strerror}); name another folder"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: is damaged ({error}); name another folder with tune.folder=..."
        ) from error
    wanted = json.loads(text)
    for part in ("protocol", "space", "config"):
        for key in dict.fromkeys([*saved[part], *wanted[part]]):
            old, new = saved[part].get(key), wanted[part].get(key)
            if old != new:
                raise UserError(
                    f"tune.folder={folder}: holds a study with {key}={shown(old)}, asked for is "
                    f"{key}={shown(new)}; "
                    "scores could not be compared: name another folder, or leave tune.folder out"
                )


def _refuse_others(folder: Path, known: Collection[str]) -> None:
    """UserError if the folder holds no study, but other files than the `known` ones."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = {name for name in names if name not in known and not name.startswith(".study.json.")}
    if others and "study.json" not in names:
        raise UserError(f"tune.folder={folder}: is not empty and holds no study; name a new folder")


def _counts_for_sampler(trial: FrozenTrial) -> bool:
    """Whether a trial counts for the sampler's seed: not if it was killed and is repeated."""
    return trial.state != TrialState.FAIL or trial.user_attrs.get("attempt", 1) >= MAX_ATTEMPTS


def _distribution(dimension: Any) -> BaseDistribution:
    if not isinstance(dimension, NumberRange):
        return CategoricalDistribution(list(dimension.by_text))
    low, high = dimension.low, dimension.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)


def _pruner(settings: TuneSettings) -> optuna.pruners.BasePruner:
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=settings.startup_trials)
