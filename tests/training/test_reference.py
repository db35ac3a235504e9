"""What nearest class mean reaches on the frozen features is part of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.train import train

pytestmark = pytest.mark.usefixtures("few_digits")

SMALLEST = ["experiment=smoke", "backbone.image_size=8", "trainer.batch_size=32"]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    return train(compose(read_overrides([*SMALLEST, *overrides])), folder)


@pytest.fixture(scope="module")
def of_ncm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("ncm") / "run", "method=ncm")


@pytest.mark.parametrize("method", ["smope", "l2p"])
def test_the_reference_is_what_ncm_reaches(method: str, of_ncm: dict, tmp_path: Path) -> None:
    record = trained(tmp_path / "run", f"method={method}", "stream.num_tasks=2")
    reference = record["reference"]
    rows = [[value for value in row if value is not None] for row in of_ncm["accuracy_matrix"]]
    assert reference["method"] == "ncm"
    for row, expected in zip(reference["accuracy_matrix"], rows, strict=True):
        assert row == pytest.approx(expected)
    for score in ("final_average_accuracy", "forgetting", "sample_weighted_accuracy"):
        assert reference[score] == pytest.approx(of_ncm[score])
    assert (
        "Nearest class mean on the same frozen features"
        in (tmp_path / "run" / "train.log").read_text()
    )


def test_ncm_itself_and_a_changed_backbone_have_none(of_ncm: dict, tmp_path: Path) -> None:
    assert "reference" not in of_ncm
    assert "reference" not in trained(tmp_path / "run", "method=full_finetune")


def test_it_can_be_left_out_and_changes_no_other_number(tmp_path: Path) -> None:
    with_it = trained(tmp_path / "with")
    without = trained(tmp_path / "without", "trainer.reference=none")
    assert "reference" in with_it and "reference" not in without
    assert with_it["accuracy_matrix"] == without["accuracy_matrix"]
    assert with_it["config_hash"] == without["config_hash"]
