"""Whoever gives photographs to the ViT of printed characters reads so in one line."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from smope.cli.main import main

NOTE = "trained on printed characters and sees 32 pixels a side; for photographs choose another"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, number in (("train", 6), ("test", 2)):
        for label in range(2):
            for index in range(number):
                path = tmp_path / "photos" / split / f"class {label}" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = numpy.full((40, 50, 3), 10 * index + 100 * label + number, numpy.uint8)
                Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def lines_with_note(capsys: pytest.CaptureFixture[str]) -> int:
    return sum(NOTE in line for line in capsys.readouterr().out.splitlines())


def test_data_check_training_and_the_dry_run_say_so(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stream=folder", f"stream.root={root}", "stream.num_tasks=2", "method=ncm"]
    words += ["stream.cache_gb=0", "trainer.num_workers=0"]
    assert main(["data", "check", str(root)]) == 0
    assert lines_with_note(capsys) == 1
    assert main(["train", *words, "--dry-run"]) == 0
    assert lines_with_note(capsys) == 1
    assert main(["train", *words, f"run_dir={tmp_path / 'run'}"]) == 0
    assert lines_with_note(capsys) == 1


def test_nothing_is_said_of_characters_and_other_backbones(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(root), "backbone=sup21k"]) == 0
    assert main(["train", "experiment=smoke", "--dry-run"]) == 0
    assert lines_with_note(capsys) == 0
