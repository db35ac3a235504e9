"""What a sweep writes beside its run directories: the list of its jobs, and logs of failed ones.

sweeps/<hash of the jobs>.json  the command and, for each job, its label, method, seed, hash and run
                                directory; `smope collect` finds missing runs by it
logs/<run directory>.log        the output of a job that failed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.storage.files import write_atomically

MANIFESTS = "sweeps"
LOGS = "logs"


def write_manifest(folder: Path, command: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Write the list of jobs into a folder. The same jobs replace their earlier list.

    Args:
        folder: The folder that has the run directories.
        command: The command line of the sweep.
        jobs: Plain values for each job, `config_hash` among them.
    """
    text = json.dumps({"command": command, "jobs": jobs}, indent=1, ensure_ascii=False) + "\n"
    hashes = " ".join(sorted(job["config_hash"] for job in jobs))
    name = hashlib.sha256(hashes.encode()).hexdigest()[:12]
    path = folder / MANIFESTS / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make {folder} writable"
        ) from error


def read_manifests(folder: Path) -> list[dict[str, Any]]:
    """The lists of jobs in a folder of runs; a list that cannot be read is skipped."""
    manifests = []
    for path in sorted((folder / MANIFESTS).glob("*.json")):
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("jobs"), list):
            manifests.append(manifest)
    return manifests


def last_line(log: Path) -> str | None:
    """The error in the last line of a job's log; None if there is no log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next(
        (line.removeprefix("smope: error: ") for line in reversed(lines) if line.strip()), None
    )
