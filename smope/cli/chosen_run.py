"""The run that a command's argument means."""

from __future__ import annotations

import sys
from pathlib import Path

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
