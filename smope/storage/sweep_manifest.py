"""What a sweep leaves beside its run directories: the list of its jobs, and what failed jobs said.

sweeps/<hash of the jobs>.json  the command and, for each job, its label, method, seed, hash and run
                                directory: `smope collect` says by it which runs are missing
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
    """Write the list of `jobs`, each with its config_hash, into `folder`; equal jobs replace it."""
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
    """The lists of jobs in a folder of runs; one that cannot be read is no reason to stop."""
    found = []
    for path in sorted((folder / MANIFESTS).glob("*.json")):
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("jobs"), list):
            found.append(manifest)
    return found


def last_line(log: Path) -> str | None:
    """The error that ends the log of a job; None where there is none."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next(
        (line.removeprefix("smope: error: ") for line in reversed(lines) if line.strip()), None
    )
