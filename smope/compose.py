"""Command-line overrides and the files of conf/ composed into a validated Config, by Hydra's compose API.

Hydra reads defaults lists, group choices, interpolations and its override grammar; what a mistake is called
is decided here, so that every one of them ends as one line.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import smope
from smope.config import GROUPS, Config, validate
from smope.errors import UserError
from smope.plain_types import shown

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.types import Override

# Groups whose files set keys of several others; nothing is chosen unless asked.
SETTINGS = ("experiment", "variant", "sweep")
ALL_GROUPS = (*GROUPS, *SETTINGS)
# Launchers of conf/hydra/launcher: the package that each needs, and the extra that installs it.
LAUNCHERS = {
    "basic": None,
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_ray_launcher", "ray"),
}
MOST_NAMED = 18  # choices that a message names
# Values that are paths or free text: taken as they stand, so that = , [ ] and spaces need no quoting.
TEXT_KEYS = (
    "run_dir", "resume", "stream.root", "stream.split_lists", "stream.table", "stream.cache_dir", "backbone.weights",
    "name",
)  # fmt: skip
OVERRIDE = re.compile(r"\+{0,2}[\w][\w./@:-]*=|~[\w]")
TEXT_OVERRIDE = re.compile(rf"(?P<key>\+{{0,2}}(?:{'|'.join(map(re.escape, TEXT_KEYS))}))=(?P<value>.*)", re.DOTALL)

# Launchers are configured under the names that their plugins have for them, which Hydra warns about in every process.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@dataclass(frozen=True)
class Overrides:
    """Overrides in the form that Hydra is given, and the dotted keys that they set by hand."""

    texts: list[str]
    parsed: list[Override]
    config_dirs: tuple[Path, ...]

    @property
    def given(self) -> set[str]:
        return {item.key_or_group for item in self.parsed}


def conf_dir() -> Path:
    """The folder of shipped YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(smope.__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(f"no conf/train.yaml in {package} or {package.parent}; not all is installed: install smope again")


def choices(group: str, config_dirs: Sequence[Path]) -> list[str]:
    """Names that `group=` accepts: the stems of its YAML files; one that starts with _ is for others to include."""
    return sorted({path.stem for folder in config_dirs for path in (folder / group).glob("[!_]*.yaml")})


def read_overrides(texts: Sequence[str], config_dir: str | None = None, *, multirun: bool = False) -> Overrides:
    """Check each override's form and that every group choice exists; UserError names the first that fails."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    folders = _config_dirs(config_dir)
    parser = OverridesParser.create()
    prepared, parsed = [], []
    for text in texts:
        if not OVERRIDE.match(text):
            raise UserError(f"{text!r} is no override; write key=value (`smope train --help` lists the keys)")
        text = _quote_text(text, multirun)
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            key = text.partition("=")[0]
            raise UserError(f"cannot read {text!r} ({_first_line(error)}); quote the value: \"{key}='...'\"") from error
        if override.is_sweep_override() and not multirun:
            raise UserError(f"{text} gives several values; add -m for a run with each, or write a list as [a,b]")
        _check_choice(override, folders)
        _check_launcher(override, folders)
        prepared.append(text if _is_hydras(override) else f"++{text.lstrip('+')}")
        parsed.append(override)
    return Overrides(prepared, parsed, folders)


def compose(overrides: Overrides) -> Config:
    """The validated configuration of one run."""
    return validate(compose_values(overrides), overrides.given)


def with_sweep(overrides: Overrides) -> Overrides:
    """The overrides of a multirun, and those of its sweep's file (hydra.sweeper.params) that they leave open."""
    from hydra.types import RunMode

    with _hydra(overrides) as (hydra, texts):
        composed = hydra.compose_config(
            "train", texts, RunMode.MULTIRUN, from_shell=False, with_log_configuration=False
        )
        params = dict(composed.hydra.sweeper.get("params") or {})
    texts = [f"{key}={value}" for key, value in params.items() if key not in overrides.given]
    folder = str(overrides.config_dirs[1]) if len(overrides.config_dirs) > 1 else None
    added = read_overrides(texts, folder, multirun=True)
    return Overrides(added.texts + overrides.texts, added.parsed + overrides.parsed, overrides.config_dirs)


def compose_values(overrides: Overrides, *, multirun: bool = False) -> dict[str, Any]:
    """Plain values as Hydra composes them, not validated. Of a multirun: what is swept is as without an override."""
    from hydra.types import RunMode

    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    with _hydra(overrides) as (hydra, texts):
        composed = hydra.compose_config("train", texts, mode, from_shell=False, with_log_configuration=False)
        return plain_values(composed)


def plain_values(composed: Any) -> dict[str, Any]:
    """A composed configuration as plain values, interpolations resolved, without Hydra's own settings."""
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items() if key != "hydra"}


def launch(overrides: Overrides, jobs: Sequence[Sequence[str]], task: Callable[[Any], Any]) -> None:
    """Give each job, a list of overrides, to the launcher that `overrides` choose; returns when it has run them all."""
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    with _hydra(overrides) as (hydra, texts):
        config = hydra.compose_config("train", texts, RunMode.MULTIRUN, from_shell=False, with_log_configuration=False)
        _no_idle_workers(config, len(jobs))
        context = HydraContext(config_loader=hydra.config_loader, callbacks=_callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        launcher.launch(jobs, initial_job_idx=0)


def _no_idle_workers(config: Any, jobs: int) -> None:
    """As many of joblib's workers as there are jobs at most: one that never had any would die of Ctrl-C."""
    from omegaconf import open_dict, read_write

    wanted = config.hydra.launcher.get("n_jobs", 1)
    if (wanted if wanted > 0 else os.cpu_count() or 1) > jobs:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher.n_jobs = jobs


def _callbacks(config: Any) -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks(config)


def chosen_launcher(overrides: Overrides) -> str:
    """The name that `hydra/launcher=` has."""
    chosen = [item.value() for item in overrides.parsed if item.key_or_group == "hydra/launcher"]
    return str(chosen[-1]) if chosen else "basic"


def multirun(overrides: Overrides, task: Callable[[Any], Any]) -> None:
    """Run what Hydra's sweeper thinks of through its launcher; raises what the first failed job raised."""
    with _hydra(overrides) as (hydra, texts):
        hydra.multirun(config_name="train", task_function=task, overrides=texts, with_log_configuration=False)


def sweeper_decides(overrides: Overrides) -> bool:
    """Whether a sweeper of its own decides what to try, so that nobody can say beforehand which runs there will be."""
    return any(
        (item.key_or_group == "hydra/sweeper" and item.value() != "basic")
        or (item.is_sweep_override() and not item.is_discrete_sweep())
        for item in overrides.parsed
    )


def combinations(overrides: Overrides) -> Iterator[Overrides]:
    """The single runs of a multirun, in the order of its values: the last override changes fastest."""
    options = []
    for text, item in zip(overrides.texts, overrides.parsed, strict=True):
        key = text.partition("=")[0]
        options.append(
            [f"{key}={value}" for value in item.sweep_string_iterator()] if item.is_sweep_override() else [text]
        )
    for texts in itertools.product(*options):
        yield Overrides(list(texts), overrides.parsed, overrides.config_dirs)


def _config_dirs(config_dir: str | None) -> tuple[Path, ...]:
    if config_dir is None:
        return (conf_dir(),)
    path = Path(config_dir).expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder; name one laid out like conf/ (method/, ...)")
    return conf_dir(), path


def _quote_text(text: str, multirun: bool) -> str:
    """Quote the value of a path key unless it is null or quoted already or, with -m, choice(...)."""
    from hydra.core.override_parser.types import Quote, QuotedString

    match = TEXT_OVERRIDE.fullmatch(text)
    if match is None:
        return text
    key, value = match["key"], match["value"]
    if (
        value in ("null", "???")
        or re.fullmatch(r"'.*'|\".*\"", value)
        or (multirun and re.match(r"(choice|glob|range)\(", value))
    ):
        return text
    parts = value.split(",") if multirun else [value]
    return f"{key}={','.join(QuotedString(part, Quote.single).with_quotes() for part in parts)}"


def _check_choice(override: Override, folders: Sequence[Path]) -> None:
    group = override.key_or_group
    if group not in ALL_GROUPS or override.is_delete():
        return
    if not override.is_sweep_override():
        chosen = [override.value()]
    else:
        chosen = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    known = choices(group, folders)
    for value in chosen:
        if str(value) in known or (value is None and group in SETTINGS):
            continue
        raise UserError(f"{group}={shown(value)} is no choice; {_known_choices(group, str(value), known)}")


def _known_choices(group: str, value: str, known: Sequence[str]) -> str:
    """The way out of a choice that is none: the nearest first, then all others where one line takes them."""
    near = difflib.get_close_matches(value, known, n=1)
    if len(known) <= MOST_NAMED:
        named = ", ".join(known)
        return f"did you mean {group}={near[0]}? Choices are {named}" if near else f"choose one of {named}"
    rest = f"`smope train --help` lists all {len(known)}"
    if near:
        return f"did you mean {group}={near[0]}? {rest}"
    return f"choose one of {', '.join(known[: MOST_NAMED // 2])}, ...; {rest}"


def _check_launcher(override: Override, folders: Sequence[Path]) -> None:
    """UserError, before anything is composed, for a launcher that there is not or that is not installed."""
    if override.key_or_group != "hydra/launcher":
        return
    name = str(override.value())
    known = list(dict.fromkeys([*LAUNCHERS, *choices("hydra/launcher", folders)]))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise UserError(f"hydra/launcher={name} is no choice; {hint}")
    needed = LAUNCHERS.get(name)
    if needed is not None and not _plugin_is_there(needed[0]):
        raise UserError(
            f"hydra/launcher={name} needs {needed[0].replace('_', '-')}, which is not installed; "
            f"pip install 'smope[{needed[1]}]'"
        )


def _plugin_is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def _is_hydras(override: Override) -> bool:
    """Whether Hydra must see the override as it stands: group choices, deletions and its own settings.

    Everything else is force-added, which leaves it to the schema to say whether the key exists.
    """
    key = override.key_or_group
    return key in ALL_GROUPS or key.startswith(("hydra.", "hydra/")) or override.is_delete() or "@" in key


def read_values(texts: Sequence[str]) -> dict[str, Any]:
    """Plain values of key=value texts that no configuration holds, in the grammar of overrides; the last one counts."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values: dict[str, Any] = {}
    for text in texts:
        key = text.partition("=")[0]
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except HydraException as error:
            raise UserError(f"cannot read {text!r} ({_first_line(error)}); quote the value: \"{key}='...'\"") from error
        if override.is_sweep_override() or override.is_delete():
            raise UserError(f"{text}: must be a single value; write a list as {key}=[a,b], and null for nothing")
        values[key] = _unquoted(override.value())
    return values


def _unquoted(value: Any) -> Any:
    """A parsed value with the marks of quotation removed, inside lists and mappings too."""
    if isinstance(value, dict):
        return {str(_unquoted(key)): _unquoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    return getattr(value, "text", value)


def load_choice(group: str, name: str, config_dirs: Sequence[Path]) -> dict[str, Any]:
    """The values of a choice's file, for a group that no run's configuration has; the user's own folder goes first."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    known = choices(group, config_dirs)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        raise UserError(f"{group}={name} is no choice; choose one of {', '.join(known)}{hint}")
    path = next(p for folder in reversed(config_dirs) if (p := folder / group / f"{name}.yaml").is_file())
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not readable YAML ({_first_line(error)}); correct it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys; correct it")
    return {str(key): value for key, value in values.items()}


@contextmanager
def _hydra(overrides: Overrides) -> Iterator[tuple[Hydra, list[str]]]:
    """A Hydra over conf/ (and the user's folder), its exceptions as UserError."""
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
            yield hydra, texts
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(_translate(error)) from error


def _translate(error: Exception) -> str:
    """One line for an error of Hydra, OmegaConf or YAML that no check of ours foresaw."""
    key = getattr(error, "full_key", None)
    where = f"{key}: " if key and not key.startswith("hydra.") else ""
    lines = " ".join(str(error).partition("Config search path")[0].partition("full_key:")[0].split())
    return f"{where}{lines or type(error).__name__}; `smope train --help` lists groups and keys"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("See https://")]
    return lines[0] if lines else type(error).__name__
