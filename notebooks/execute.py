"""Execute the notebooks and store their outputs, pictures included.

    python notebooks/execute.py                 all of them
    python notebooks/execute.py notebooks/01_quick_start.ipynb

Each is executed on what comes with the package: the environment variable SMOPE_DATA is not passed
on, since photographs of others must not be stored. The hash of the source that was executed is
stored in the notebook's metadata, and tests/notebooks compares it with the present source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS_PER_CELL = 600
HEAD_LINES, TAIL_LINES = 24, 4  # of what a cell prints


def source_hash(notebook: Any) -> str:
    """SHA-256 (hex) of the kinds and sources of all cells."""
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def executed(path: Path) -> Any:
    """The notebook at `path`, executed in an empty folder. Raises the error of a cell."""
    notebook = nbformat.read(path, as_version=4)
    os.environ.pop("SMOPE_DATA", None)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS_PER_CELL, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = _joined(
                [_cleaned(output) for output in cell.outputs if _is_shown(output)]
            )
    notebook.metadata["smope"] = {"source_sha256": source_hash(notebook)}
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """The outputs, with all printed lines as one; of many lines the first and the last."""
    printed = [output for output in outputs if output.output_type == "stream"]
    others = [output for output in outputs if output.output_type != "stream"]
    if not printed:
        return others
    lines = "".join(output.text for output in printed).splitlines()
    if len(lines) > HEAD_LINES + TAIL_LINES:
        left_out = len(lines) - HEAD_LINES - TAIL_LINES
        lines = [*lines[:HEAD_LINES], f"[{left_out} more lines]", *lines[-TAIL_LINES:]]
    return [nbformat.v4.new_output("stream", text="\n".join(lines) + "\n"), *others]


def _is_shown(output: Any) -> bool:
    """Progress bars and warnings are not stored."""
    return output.get("name") != "stderr"


def _cleaned(output: Any) -> Any:
    """The output without the names of temporary folders."""
    if "text" in output:
        output.text = _without_folders(output.text)
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = _without_folders(data["text/plain"])
    return output


def _without_folders(text: str) -> str:
    temporary = re.escape(tempfile.gettempdir())
    return re.sub(rf"{temporary}/tmp\w+", "FOLDER", text)


def main(arguments: list[str]) -> None:
    """Execute the named notebooks, or all."""
    for path in map(Path, arguments) if arguments else sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} KB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
