"""An Optuna study in a folder that several processes share: which trial is next, and which were
killed.

study.json       what is searched, on what, by which protocol; written once, and compared by every
                 process that joins
study.db         Optuna's own record (SQLite): each trial, its values, its score after each task,
                 its state
trials/N/        the run directory of trial N, without checkpoints once it has ended
trials/N.lock    held while a process is at trial N: the kernel lets go of it however that process
                 ends
trials.csv, best.json    what came out of it, see summary.py; written anew after each trial

A trial whose process was killed stays RUNNING in Optuna's record while nobody holds its lock. The
next process to ask for a trial marks it as failed and gives out its values again, to go on in the
same run directory; three times at most.
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
from smope.tuning.space import Range, Space

ATTEMPTS = 3
# what another process may have made a moment ago
BEGUN = (
    ".lock",
    "trials",
    "study.db",
    "study.db-journal",
)
FORMAT_VERSION = 1


@dataclass
class Claim:
    """A trial that this process is at: its values, its run directory, whether to go on there;
    `trial` is Optuna's.
    """

    trial: optuna.Trial
    values: dict[str, Any]
    run_dir: Path
    resume: bool

    @property
    def number(self) -> int:
        return self.trial.number


class Study:
    """The trials of one folder.

    What changes which trials there are happens under the folder's lock.
    """

    def __init__(self, folder: Path, space: Space, settings: TuneSettings, seed: int) -> None:
        self.folder = folder
        self.space = space
        self.settings = settings
        self._seed = seed
        self._lock: IO[str] | None = None
        self._distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _alone(self.folder):
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
        """Have the first trial of a new study take these values."""
        with _alone(self.folder):
            if values is not None and not self.trials:
                self.optuna.enqueue_trial(self._encoded(values))

    def claim(self) -> Claim | None:
        """The next trial, its lock held until `let_go`; None where enough have ended or are under
        way.
        """
        with _alone(self.folder):
            self._release_killed()
            trials = self.trials
            states = [trial.state for trial in trials]
            counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
            if sum(state in counted for state in states) >= self.settings.trials:
                return None
            self.optuna.sampler = self._sampler(sum(_stays(trial) for trial in trials))
            trial = self.optuna.ask(self._distributions)
            self._lock = lock_file(self._lock_path(trial.number))
            assert self._lock is not None, "a new trial is nobody else's"
            first = trial.user_attrs.get("continues", trial.number)
            trial.set_user_attr("directory", f"trials/{first}")
        run_dir = self.folder / "trials" / str(first)
        return Claim(trial, self.values(trial.params), run_dir, (run_dir / "config.yaml").is_file())

    def let_go(self) -> None:
        """This process is no longer at a trial."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def under_way(self) -> int:
        """Trials that other processes are at."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as values of the configuration."""
        found: dict[str, Any] = {}
        for key, value in params.items():
            dimension = self.space[key]
            found[key] = value if isinstance(dimension, Range) else dimension.by_text[value]
        return found

    def _encoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v if isinstance(self.space[k], Range) else shown(v) for k, v in values.items()}

    def _release_killed(self) -> None:
        """Trials that nobody is at any more fail, and their values are given out again."""
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
            if trial.params.keys() == self.space.keys() and attempt < ATTEMPTS:
                first = trial.user_attrs.get("continues", trial.number)
                self.optuna.enqueue_trial(
                    trial.params, {"continues": first, "attempt": attempt + 1}
                )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Seeded by how many trials there are: processes draw different values, and one process
        alone the same ones again, killed in between or not.
        """
        seed = stable_seed(self._seed, "tune", number) % 2**32
        if self.settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(n_startup_trials=self.settings.startup_trials, seed=seed)

    def _lock_path(self, number: int) -> Path:
        return self.folder / "trials" / f"{number}.lock"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder's lock: held for moments only; waits for whoever has it."""
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    file = lock_file(folder / ".lock", wait=True)
    assert file is not None
    with file:
        yield


def join(folder: Path, description: Mapping[str, Any]) -> None:
    """Make the study's folder, or check that it holds the same study.

    UserError, naming a difference, otherwise.
    """
    path = folder / "study.json"
    text = (
        json.dumps({"format_version": FORMAT_VERSION, **description}, indent=1, ensure_ascii=False)
        + "\n"
    )
    try:
        _refuse_others(folder, BEGUN)
        with _alone(folder):
            if not path.exists():
                _refuse_others(folder, (".lock", "trials"))
                write_atomically(path, text.encode())
                return
            there = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"tune.folder={folder}: cannot be used ({error.strerror}); name another folder"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: is damaged ({error}); name another folder with tune.folder=..."
        ) from error
    asked = json.loads(text)
    for part in ("protocol", "space", "config"):
        for key in dict.fromkeys([*there[part], *asked[part]]):
            old, new = there[part].get(key), asked[part].get(key)
            if old != new:
                raise UserError(
                    f"tune.folder={folder}: holds a study with {key}={shown(old)}, asked for is "
                    f"{key}={shown(new)}; "
                    "scores could not be compared: name another folder, or leave tune.folder out"
                )


def _refuse_others(folder: Path, known: Collection[str]) -> None:
    """UserError where the folder is no study's and holds anything but the `known` files."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = {name for name in names if name not in known and not name.startswith(".study.json.")}
    if others and "study.json" not in names:
        raise UserError(f"tune.folder={folder}: is not empty and holds no study; name a new folder")


def _stays(trial: FrozenTrial) -> bool:
    """Whether a trial counts for what is drawn next: not one that was killed and whose values were
    given out again.
    """
    return trial.state != TrialState.FAIL or trial.user_attrs.get("attempt", 1) >= ATTEMPTS


def _distribution(dimension: Any) -> BaseDistribution:
    if not isinstance(dimension, Range):
        return CategoricalDistribution(list(dimension.by_text))
    low, high = dimension.low, dimension.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)


def _pruner(settings: TuneSettings) -> optuna.pruners.BasePruner:
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=settings.startup_trials)
