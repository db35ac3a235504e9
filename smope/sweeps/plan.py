"""From the overrides of a multirun to its jobs, and the list of jobs that a sweep leaves beside their run directories.

sweeps/<hash of the jobs>.json   the command and, for each job, its label, method, seed, hash and run directory: `smope
                                 collect` says by it which runs are missing
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope.compose import Overrides, combinations, compose
from smope.config import chosen_name
from smope.errors import UserError
from smope.runs import write_atomically
from smope.sweeps.jobs import Job, make_job
from smope.sweeps.task import key

MANIFESTS = "sweeps"


def plan_jobs(overrides: Overrides) -> tuple[list[Job], list[str]]:
    """The jobs, each computation once, and a line for each combination that cannot be run.

    UserError where none can: a typo in a key is one in all of them.
    """
    jobs: dict[tuple[str, str], Job] = {}
    errors: list[tuple[str, UserError]] = []
    varying = {item.key_or_group for item in overrides.parsed if item.is_sweep_override()}
    for single in combinations(overrides):
        shown = [_as_typed(text) for text in single.texts if not _is_for_hydra(text)]
        swept = [text for text in shown if text.partition("=")[0] in varying and not _is_one_value(text, overrides)]
        try:
            config = compose(single)
        except UserError as error:
            errors.append((" ".join(swept), error))
            continue
        texts = [text for text in single.texts if not _is_for_hydra(text)]
        jobs.setdefault(key(config), make_job(config, texts, swept))
    if not jobs and errors:
        raise errors[0][1]
    return list(jobs.values()), [f"job {label}: {error}" for label, error in errors]


def _as_typed(text: str) -> str:
    """An override without what it was given for Hydra: plus signs, and the quotes of a path."""
    key, _, value = text.lstrip("+").partition("=")
    return f"{key}={value[1:-1]}" if len(value) > 1 and value[0] == value[-1] == "'" else f"{key}={value}"


def _is_for_hydra(text: str) -> bool:
    return text.lstrip("+").startswith(("hydra.", "hydra/"))


def _is_one_value(text: str, overrides: Overrides) -> bool:
    """Whether a sweep lists a single value for this key, which then tells no run from another."""
    name = text.partition("=")[0]
    items = [item for item in overrides.parsed if item.key_or_group == name and item.is_sweep_override()]
    return all(len(list(item.sweep_string_iterator())) == 1 for item in items)


def write_manifests(jobs: Sequence[Job], command: Sequence[str]) -> None:
    """Leave the list of jobs in each folder that they are kept in; the same jobs again replace it."""
    for folder in sorted({job.path.parent for job in jobs}):
        own = [job for job in jobs if job.path.parent == folder]
        entries = [_entry(job) for job in own]
        text = json.dumps({"command": shlex.join(command), "jobs": entries}, indent=1, ensure_ascii=False) + "\n"
        digest = hashlib.sha256(" ".join(sorted(entry["config_hash"] for entry in entries)).encode()).hexdigest()[:12]
        path = folder / MANIFESTS / f"{digest}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); make {folder} writable") from error


def _entry(job: Job) -> dict[str, Any]:
    return {
        "label": job.label,
        "method": chosen_name(job.config.method["_target_"]),
        "seed": job.config.seed,
        "config_hash": job.config.config_hash,
        "run": job.path.name,
        "log": str(job.log.relative_to(job.path.parent)),
    }


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
