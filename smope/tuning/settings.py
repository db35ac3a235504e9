"""The settings of a search: the keys `tune.*`. Imports neither torch nor Optuna."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from smope.config.conf_files import load_choice
from smope.config.overrides import read_values
from smope.config.signatures import keys_of
from smope.config.value_types import convert, describe, fits, shown
from smope.declare.ranges import AtLeast, Share
from smope.errors import UserError
from smope.metrics.scores import SCORES

TUNE_OVERRIDE = re.compile(r"\+{0,2}tune(\.[\w.]+)?=")


@dataclass(frozen=True)
class TuneSettings:
    """The protocol and the size of a search; conf/tune/default.yaml says what each key does.

    Tuning on the first tasks alone follows Chaudhry et al. 2019 (arXiv 1812.00420), who use the
    first three tasks of a stream. Here validation images rank the trials, not test images.
    """

    first_tasks: Annotated[int, AtLeast(1)] = 3
    score: str = "final_average_accuracy"
    rank_on: Literal["validation", "test"] = "validation"
    validation_fraction: Annotated[float, Share(with_0=False, with_1=False)] = 0.2
    trials: Annotated[int, AtLeast(1)] = 20
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "none"] = "median"
    startup_trials: Annotated[int, AtLeast(0)] = 5
    defaults_first: bool = True
    folder: str | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that two searches must share for their scores to be comparable."""
        shared_keys = ("first_tasks", "score", "rank_on")
        return {key: value for key, value in asdict(self).items() if key in shared_keys}


def separate(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of `tune.*`, without plus signs, and those of the runs."""
    tune_texts = [text for text in texts if TUNE_OVERRIDE.match(text)]
    return [text.lstrip("+") for text in tune_texts], [
        text for text in texts if text not in tune_texts
    ]


def read_settings(
    texts: Sequence[str], config_dirs: Sequence[Path]
) -> tuple[TuneSettings, dict[str, Any], dict[str, Any]]:
    """Read the keys `tune.*`.

    Args:
        texts: The overrides of these keys.
        config_dirs: The folders with files of tune=.

    Returns:
        The settings, the search space of the chosen file, and the user's changes to it.

    Raises:
        UserError: for a key that does not exist, or a value that does not fit.
    """
    given = read_values(texts)
    name = given.pop("tune", "default")
    if not isinstance(name, str):
        raise UserError(
            f"tune={shown(name)} is no choice; it must be the name of a file in conf/tune"
        )
    values = load_choice("tune", name, config_dirs)
    space = values.pop("space", None) or {}
    if not isinstance(space, dict):
        raise UserError(
            f"tune={name}: space must be a mapping of keys to ranges or lists; correct "
            f"conf/tune/{name}.yaml"
        )
    changes: dict[str, Any] = {}
    for key, value in given.items():
        key = key.removeprefix("tune.")
        # the whole space at once replaces that of the file
        if key == "space" and isinstance(value, dict):
            space, changes = {}, dict(value)
        elif key == "space":
            raise UserError(
                f"tune.space={shown(value)}: must map keys to ranges or lists; write "
                f"tune.space.KEY=..."
            )
        elif key.startswith("space."):
            changes[key.removeprefix("space.")] = value
        else:
            values[key] = value
    return _checked(values), space, changes


def _checked(values: Mapping[str, Any]) -> TuneSettings:
    keys = keys_of("smope.tuning.settings.TuneSettings", "tune")
    for name, value in values.items():
        if name not in keys:
            near = difflib.get_close_matches(name, [*keys, "space"], n=1)
            hint = (
                f"did you mean tune.{near[0]}?"
                if near
                else f"keys of tune are {', '.join([*keys, 'space'])}"
            )
            raise UserError(f"unknown key tune.{name}={shown(value)}; {hint}")
        key = keys[name]
        if not fits(value, key.kind):
            raise UserError(
                f"tune.{name} must be {describe(key.kind)}, got {shown(value)}; write for example "
                f"tune.{name}={shown(key.default)}"
            )
        key.check(f"tune.{name}", value)
    score = values.get("score", TuneSettings.score)
    if score not in SCORES:
        raise UserError(
            f"tune.score must be one of {', '.join(SCORES)}, got {shown(score)}; write for example "
            f"tune.score={TuneSettings.score}"
        )
    return TuneSettings(**{name: convert(value, keys[name].kind) for name, value in values.items()})
