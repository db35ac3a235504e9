"""Composing conf/ and overrides with Hydra. Its errors become UserErrors of one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smope.config.config import Config, validate
from smope.config.overrides import Overrides, read_overrides
from smope.config.recipes import store_recipes
from smope.errors import UserError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

# Launchers are configured under the names that their plugins have for them, which Hydra warns about
# in every process.
warnings.filterwarnings(
    "ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"
)


def compose(overrides: Overrides) -> Config:
    """The validated configuration of one run."""
    return validate(compose_values(overrides), overrides.given)


def with_sweep(overrides: Overrides) -> Overrides:
    """The overrides of a multirun, and before them those of its sweep's file.

    A file of conf/sweep sets hydra.sweeper.params; keys that the user gives as well are left out.
    """
    from hydra.types import RunMode

    with hydra_session(overrides) as (hydra, texts):
        composed = hydra.compose_config(
            "train", texts, RunMode.MULTIRUN, from_shell=False, with_log_configuration=False
        )
        params = dict(composed.hydra.sweeper.get("params") or {})
    texts = [f"{key}={value}" for key, value in params.items() if key not in overrides.given]
    folder = str(overrides.config_dirs[1]) if len(overrides.config_dirs) > 1 else None
    added = read_overrides(texts, folder, multirun=True)
    return Overrides(
        added.texts + overrides.texts, added.parsed + overrides.parsed, overrides.config_dirs
    )


def compose_values(overrides: Overrides, *, multirun: bool = False) -> dict[str, Any]:
    """Plain values as Hydra composes them, not validated.

    Args:
        overrides: What to compose.
        multirun: Whether `overrides` may have several values for a key; such a key has its default.
    """
    from hydra.types import RunMode

    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    with hydra_session(overrides) as (hydra, texts):
        composed = hydra.compose_config(
            "train", texts, mode, from_shell=False, with_log_configuration=False
        )
        return plain_values(composed)


def plain_values(composed: Any) -> dict[str, Any]:
    """A composed configuration as plain values: interpolations resolved, no settings of Hydra."""
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items() if key != "hydra"}


def launch_jobs(
    overrides: Overrides, jobs: Sequence[Sequence[str]], task: Callable[[Any], Any]
) -> None:
    """Run jobs by the launcher that is chosen; returns when all have ended.

    Args:
        overrides: The overrides of the multirun, `hydra/launcher=` among them.
        jobs: The overrides of each job.
        task: Called for each job with its composed configuration.
    """
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    with hydra_session(overrides) as (hydra, texts):
        config = hydra.compose_config(
            "train", texts, RunMode.MULTIRUN, from_shell=False, with_log_configuration=False
        )
        _no_idle_workers(config, len(jobs))
        context = HydraContext(config_loader=hydra.config_loader, callbacks=_callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        launcher.launch(jobs, initial_job_idx=0)


def _no_idle_workers(config: Any, jobs: int) -> None:
    """Have no more of joblib's workers than jobs: an idle worker would die of Ctrl-C."""
    from omegaconf import open_dict, read_write

    if _workers(config) > jobs:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher.n_jobs = jobs


def _workers(config: Any) -> int:
    """Jobs at once of a launcher of joblib; 1 for another."""
    wanted = config.hydra.launcher.get("n_jobs", 1)
    return wanted if wanted > 0 else os.cpu_count() or 1


def workers(overrides: Overrides) -> int:
    """How many jobs of a multirun the chosen launcher runs at once, if it is one of joblib."""
    from hydra.types import RunMode

    with hydra_session(overrides) as (hydra, texts):
        config = hydra.compose_config(
            "train", texts, RunMode.MULTIRUN, from_shell=False, with_log_configuration=False
        )
        return _workers(config)


def _callbacks(config: Any) -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks(config)


def run_sweeper(overrides: Overrides, task: Callable[[Any], Any]) -> None:
    """Run the jobs that Hydra's sweeper decides on. Raises what the first failed job raised.

    Args:
        overrides: The overrides of the multirun, with a sweeper of their own.
        task: Called for each job with its composed configuration.
    """
    with hydra_session(overrides) as (hydra, texts):
        hydra.multirun(
            config_name="train", task_function=task, overrides=texts, with_log_configuration=False
        )


@contextmanager
def hydra_session(overrides: Overrides) -> Iterator[tuple[Hydra, list[str]]]:
    """Hydra with conf/ and the user's folder, and its overrides; errors become UserErrors."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    main, *extra = overrides.config_dirs
    quoted = [QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in extra]
    texts = overrides.texts + ([f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else [])
    try:
        with initialize_config_dir(str(main), version_base="1.3", job_name="smope"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            store_recipes(overrides.config_dirs)
            yield hydra, texts
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(_translate(error)) from error


def _translate(error: Exception) -> str:
    """One line for an error of Hydra, OmegaConf or YAML."""
    key = getattr(error, "full_key", None)
    where = f"{key}: " if key and not key.startswith("hydra.") else ""
    lines = " ".join(
        str(error).partition("Config search path")[0].partition("full_key:")[0].split()
    )
    return f"{where}{lines or type(error).__name__}; `smope train --help` lists groups and keys"
