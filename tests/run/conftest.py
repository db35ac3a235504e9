"""The finished run of tests/serving, for the tests of its artefact."""

from tests.serving.conftest import pictures, run_dir

__all__ = ["pictures", "run_dir"]
