"""Overrides of the command line: check their form and choices, and quote paths for Hydra."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.config.conf_files import (
    ALL_GROUPS,
    GROUPS,
    SETTINGS,
    choices,
    config_folders,
    first_line,
    known_choices,
)
from smope.config.launchers import check_launcher
from smope.config.schema import free_text
from smope.config.value_types import shown
from smope.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

OVERRIDE = re.compile(r"\+{0,2}[\w][\w./@:-]*=|~[\w]")


@dataclass(frozen=True)
class Overrides:
    """Overrides as Hydra takes them.

    Attributes:
        texts: Each override, paths in quotes.
        parsed: The same, as Hydra reads them.
        config_dirs: The folders with choices: conf/, and the user's own.
    """

    texts: list[str]
    parsed: list[Override]
    config_dirs: tuple[Path, ...]

    @property
    def given(self) -> set[str]:
        """The keys and groups that the user set."""
        return {item.key_or_group for item in self.parsed}


def read_overrides(
    texts: Sequence[str], config_dir: str | None = None, *, multirun: bool = False
) -> Overrides:
    """Check the form of each override, and that every choice exists.

    Args:
        texts: The overrides, key=value.
        config_dir: A folder of the user's own that is laid out like conf/.
        multirun: Whether a key may have several values.

    Raises:
        UserError: for the first override that is wrong.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    folders = config_folders(config_dir)
    parser = OverridesParser.create()
    prepared, parsed = [], []
    chosen = _chosen(texts)
    for text in texts:
        if not OVERRIDE.match(text):
            raise UserError(
                f"{text!r} is no override; write key=value (`smope train --help` lists the keys)"
            )
        if free_text(text.partition("=")[0].lstrip("+"), chosen, folders):
            text = _quoted(text, multirun)
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            key = text.partition("=")[0]
            raise UserError(
                f"cannot read {text!r} ({first_line(error)}); quote the value: \"{key}='...'\""
            ) from error
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"{text} gives several values; add -m for a run with each, or write a list as [a,b]"
            )
        _check_choice(override, folders)
        check_launcher(override, folders)
        prepared.append(text if _is_hydras(override) else f"++{text.lstrip('+')}")
        parsed.append(override)
    return Overrides(prepared, parsed, folders)


def chosen_launcher(overrides: Overrides) -> str:
    """The chosen launcher, "basic" by default."""
    chosen = [item.value() for item in overrides.parsed if item.key_or_group == "hydra/launcher"]
    return str(chosen[-1]) if chosen else "basic"


def sweeper_decides(overrides: Overrides) -> bool:
    """Whether a sweeper decides on the runs one after the other, so that they cannot be listed."""
    return any(
        (item.key_or_group == "hydra/sweeper" and item.value() != "basic")
        or (item.is_sweep_override() and not item.is_discrete_sweep())
        for item in overrides.parsed
    )


def combinations(overrides: Overrides) -> Iterator[Overrides]:
    """The single runs of a multirun; the value of the last override changes first."""
    options = []
    for text, item in zip(overrides.texts, overrides.parsed, strict=True):
        key = text.partition("=")[0]
        options.append(
            [f"{key}={value}" for value in item.sweep_string_iterator()]
            if item.is_sweep_override()
            else [text]
        )
    for texts in itertools.product(*options):
        yield Overrides(list(texts), overrides.parsed, overrides.config_dirs)


def _chosen(texts: Sequence[str]) -> dict[str, list[str]]:
    """The choices that overrides make, by group: several of a group in a multirun."""
    pairs = (text.lstrip("+").partition("=") for text in texts)
    return {key: value.split(",") for key, _, value in pairs if key in GROUPS}


def _quoted(text: str, multirun: bool) -> str:
    """An override with its value in quotes, so that = , [ ] and spaces are part of the value.

    null and what is in quotes already stay as they are, and in a multirun so does choice(...).
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = text.partition("=")
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
        hint = _benchmark_and_method(str(value), folders) if group == "experiment" else None
        raise UserError(
            f"{group}={shown(value)} is no choice; "
            f"{hint or known_choices(group, str(value), known)}"
        )


def _benchmark_and_method(experiment: str, folders: Sequence[Path]) -> str | None:
    """What to write for `experiment=<method>_<benchmark>`, a name that commands once had."""
    for benchmark in choices("benchmark", folders):
        method, _, rest = experiment.rpartition(f"_{benchmark}")
        if method in choices("method", folders) and not rest:
            return f"write benchmark={benchmark} method={method}"
    return None


def _is_hydras(override: Override) -> bool:
    """Whether Hydra must see the override as it stands: group choices, deletions and its own
    settings.

    Everything else is force-added, which leaves it to the schema to say whether the key exists.
    """
    key = override.key_or_group
    return (
        key in ALL_GROUPS
        or key.startswith(("hydra.", "hydra/"))
        or override.is_delete()
        or "@" in key
    )


def read_values(texts: Sequence[str]) -> dict[str, Any]:
    """The values of key=value texts in the grammar of overrides; of equal keys the last counts."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values: dict[str, Any] = {}
    for text in texts:
        key = text.partition("=")[0]
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except HydraException as error:
            raise UserError(
                f"cannot read {text!r} ({first_line(error)}); quote the value: \"{key}='...'\""
            ) from error
        if override.is_sweep_override() or override.is_delete():
            raise UserError(
                f"{text}: must be a single value; write a list as {key}=[a,b], and null for nothing"
            )
        values[key] = _unquoted(override.value())
    return values


def _unquoted(value: Any) -> Any:
    """A parsed value with the marks of quotation removed, inside lists and mappings too."""
    if isinstance(value, dict):
        return {str(_unquoted(key)): _unquoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    return getattr(value, "text", value)
