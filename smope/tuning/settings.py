"""What a search is told beside the configuration of its runs: the keys `tune.*`.

Imports neither torch nor Optuna.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from smope.config.conf_files import load_choice
from smope.config.overrides import read_values
from smope.config.ranges import Rule, at_least
from smope.config.signatures import keys_of
from smope.config.value_types import convert, describe, fits, shown
from smope.errors import UserError
from smope.metrics.scores import SCORES

OWN = re.compile(r"\+{0,2}tune(\.[\w.]+)?=")
RULES = {
    "score": Rule(
        f"one of {', '.join(SCORES)}", lambda value: value in SCORES, "final_average_accuracy"
    ),
    "first_tasks": at_least(1, 3),
    "trials": at_least(1, 20),
    "startup_trials": at_least(0, 5),
    "validation_fraction": Rule("above 0 and below 1", lambda value: 0 < value < 1, "0.2"),
}


@dataclass(frozen=True)
class TuneSettings:
    """The protocol of a search, and how much of it there is; conf/tune/default.yaml says what each
    key does.

    Tuning on the first tasks alone, of which nothing later is known, follows Chaudhry et al. 2019
    (arXiv 1812.00420), whose first three tasks of a stream serve for it; here their validation
    images judge, not their test images.
    """

    first_tasks: int = 3
    score: str = "final_average_accuracy"
    rank_on: Literal["validation", "test"] = "validation"
    validation_fraction: float = 0.2
    trials: int = 20
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "none"] = "median"
    startup_trials: int = 5
    defaults_first: bool = True
    folder: str | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides whether two scores can be compared; the amount and the way of searching do
        not.
        """
        kept = ("first_tasks", "score", "rank_on")
        return {key: value for key, value in asdict(self).items() if key in kept}


def separate(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The search's own overrides, without their plus signs, and those of its runs."""
    own = [text for text in texts if OWN.match(text)]
    return [text.lstrip("+") for text in own], [text for text in texts if text not in own]


def read_settings(
    texts: Sequence[str], config_dirs: Sequence[Path]
) -> tuple[TuneSettings, dict[str, Any], dict[str, Any]]:
    """The settings, and the search space as it was written: that of the chosen file, and what
    overrides say of it.

    UserError for a key that does not exist and a value that does not fit.
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
        if not fits(value, keys[name].kind):
            text = f"tune.{name} must be {describe(keys[name].kind)}, got {shown(value)}"
            raise UserError(f"{text}; write for example tune.{name}={shown(keys[name].default)}")
        rule = RULES.get(name)
        if rule and not rule.holds(value):
            raise UserError(
                f"tune.{name} must be {rule.text}, got {shown(value)}; write "
                f"tune.{name}={rule.example}"
            )
    return TuneSettings(**{name: convert(value, keys[name].kind) for name, value in values.items()})
