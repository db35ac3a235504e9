"""Finished runs: one on few digits, and that of tests/serving for the tests of its artefact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.conftest import pictures, run_dir

from .small_runs import QUICK, train

__all__ = ["pictures", "run_dir"]


@pytest.fixture(scope="module")
def quick(few_digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on few digits."""
    return train(tmp_path_factory.mktemp("runs") / "quick", *QUICK)
