"""The score that a search optimises is one of the registry, in its own direction."""

from __future__ import annotations

from pathlib import Path

import pytest

from smope.config.conf_files import conf_dir
from smope.errors import UserError
from smope.metrics.scores import SCORES
from smope.tuning.settings import TuneSettings, read_settings
from smope.tuning.study import Study


@pytest.mark.parametrize("name", SCORES)
def test_every_score_can_be_searched_for(name: str, tmp_path: Path) -> None:
    settings, _, _ = read_settings([f"tune.score={name}"], [conf_dir()])
    study = Study(tmp_path, {}, settings, seed=0).optuna
    expected = "MAXIMIZE" if SCORES[name].better == "high" else "MINIMIZE"
    assert study.direction.name == expected


def test_another_score_is_refused() -> None:
    message = r"tune\.score must be one of final_average_accuracy, .*, got speed; write for"
    with pytest.raises(UserError, match=message):
        read_settings(["tune.score=speed"], [conf_dir()])
    assert TuneSettings().score in SCORES
