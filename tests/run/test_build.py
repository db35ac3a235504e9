"""In which order the parts of a run are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.run.build import build


def test_a_wrong_folder_is_answered_before_weights_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").touch()
    overrides = ["stream=folder", f"stream.root={tmp_path}", "stream.num_tasks=2"]
    config = compose(read_overrides([*overrides, "backbone=vit_small"]))
    monkeypatch.setattr("smope.run.build.make_backbone", lambda group: pytest.fail("looked for"))
    with pytest.raises(UserError, match=rf"^stream\.root={tmp_path} must hold"):
        build(config)
