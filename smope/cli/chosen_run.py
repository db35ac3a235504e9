"""The run that a command's argument means."""

from __future__ import annotations

import sys
from pathlib import Path

from smope.serving.hub import download, is_hub_reference
from smope.storage.run_directory import check_run
from smope.storage.run_search import finished_run


def chosen_run(path: Path, key: str = "RUN") -> Path:
    """The run directory or file; of a folder or `latest` the latest finished run, which is printed.

    Args:
        path: What the user wrote.
        key: What errors call it.
    """
    return finished_run(
        path.expanduser(), lambda line: print(line, file=sys.stderr, flush=True), key
    )


def chosen_model(text: str, key: str = "MODEL") -> Path:
    """The run directory or model.safetensors that a command's argument means.

    Args:
        text: What the user wrote; hf://OWNER/NAME is downloaded into the Hub's cache.
        key: What errors call it.
    """
    if is_hub_reference(text):
        return download(text, key)
    path = chosen_run(Path(text), key)
    check_run(path, key)
    return path
