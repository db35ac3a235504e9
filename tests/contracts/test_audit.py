"""Every method of conf/method passes the audit of a run of its own; a new one is found by its
file.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smope.cli.main import main
from smope.config.conf_files import conf_dir, read_mapping

from .conftest import METHODS

pytestmark = pytest.mark.usefixtures("few_digits")

CHECKS = [
    "state", "batch size", "image order", "repeated evaluation", "evaluation mode", "evaluation "
                                                                                    "transforms",
    "train and test overlap", "unseen classes", "frozen weights", "last row", "scores",
]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_passes_the_audit(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    quick = [
        "experiment=smoke",
        "backbone.image_size=8",
        "trainer.batch_size=32",
        "trainer.alignment_epochs=1",
    ]
    keys = read_mapping(conf_dir() / "method" / f"{name}.yaml", resolve=False)
    small = ["method.width=64"] if "width" in keys else []
    small += ["method.transport_steps=50"] if "transport_steps" in keys else []
    assert (
        main(
            ["train", *quick, f"method={name}", *small, "trainer.device=cpu", f"run_dir={run_dir}"]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["audit", str(run_dir), "--strict", "--images", "16"]) == 0, capsys.readouterr().out
    found = json.loads((run_dir / "audit.json").read_text(encoding="utf-8"))
    assert [verdict["check"] for verdict in found["verdicts"]] == CHECKS
    assert found["passed"] is True
