"""The stored notebooks are those that were executed: with pictures, small, without names of
machines. `-m slow` executes them.
"""

from __future__ import annotations

import importlib.util
import io
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
import numpy
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000


def _execute_module() -> Any:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = _execute_module()


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: Any) -> list[list[tuple[str, ...]]]:
    """What each cell shows, without the numbers."""
    return [
        [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in code_cells(notebook)
    ]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def stored(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 5


def test_the_stored_execution_is_of_the_present_source(path: Path, stored: Any) -> None:
    assert stored.metadata.get("smope", {}).get("source_sha256") == execute.source_hash(stored), (
        f"{path.name} has changed since it was executed: python notebooks/execute.py {path}"
    )
    counts = [cell.execution_count for cell in code_cells(stored)]
    assert counts == list(range(1, len(counts) + 1)), "every cell, once, in order"


def test_a_change_of_the_source_is_noticed(stored: Any) -> None:
    before = execute.source_hash(stored)
    stored.cells[-1].source += " "
    assert execute.source_hash(stored) != before


def test_pictures_are_stored_and_show_something(stored: Any) -> None:
    pictures = [
        output["data"]["image/png"]
        for cell in code_cells(stored)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    for picture in pictures:
        pixels = numpy.asarray(Image.open(io.BytesIO(b64decode(picture))).convert("L"))
        assert len(numpy.unique(pixels)) > 10


def test_it_is_small_and_says_nothing_of_a_machine(path: Path, stored: Any) -> None:
    assert path.stat().st_size < MAX_BYTES
    texts = [
        text
        for cell in code_cells(stored)
        for output in cell.outputs
        for text in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    ]
    # no absolute path, whatever machine it is of
    assert not re.search(r"(?<![\w.:/])/\w[\w.-]*/|Traceback", "\n".join(texts))
    assert all(
        output.output_type != "error" for cell in code_cells(stored) for output in cell.outputs
    )


@pytest.mark.slow
def test_it_runs_and_shows_what_is_stored(path: Path, stored: Any) -> None:
    assert kinds(execute.executed(path)) == kinds(stored)
