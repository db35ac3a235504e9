"""From the overrides of a multirun to its jobs, and the manifest that lists them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from smope.config.hydra import compose
from smope.config.overrides import Overrides, combinations
from smope.config.signatures import chosen_name
from smope.errors import UserError
from smope.run.early_checks import check_tasks
from smope.storage.sweep_manifest import write_manifest
from smope.sweeps.job_runner import job_key
from smope.sweeps.jobs import Job, make_job


def expand_jobs(overrides: Overrides) -> tuple[list[Job], list[str]]:
    """The jobs, each computation once, and one line for each combination that cannot be run.

    Raises:
        UserError: if no combination can be run; a typing error in a key is one in all of them.
    """
    jobs: dict[tuple[str, str], Job] = {}
    errors: list[tuple[str, UserError]] = []
    varying = {item.key_or_group for item in overrides.parsed if item.is_sweep_override()}
    for single in combinations(overrides):
        shown = [_as_typed(text) for text in single.texts if not _is_for_hydra(text)]
        swept = [
            text
            for text in shown
            if text.partition("=")[0] in varying and not _is_one_value(text, overrides)
        ]
        try:
            config = compose(single)
            check_tasks(config)
        except UserError as error:
            errors.append((" ".join(swept), error))
            continue
        texts = [text for text in single.texts if not _is_for_hydra(text)]
        jobs.setdefault(job_key(config), make_job(config, texts, swept))
    if not jobs and errors:
        raise errors[0][1]
    return list(jobs.values()), [f"job {label}: {error}" for label, error in errors]


def _as_typed(text: str) -> str:
    """An override as the user typed it: without the plus signs and quotes that Hydra needs."""
    key, _, value = text.lstrip("+").partition("=")
    return (
        f"{key}={value[1:-1]}"
        if len(value) > 1 and value[0] == value[-1] == "'"
        else f"{key}={value}"
    )


def _is_for_hydra(text: str) -> bool:
    return text.lstrip("+").startswith(("hydra.", "hydra/"))


def _is_one_value(text: str, overrides: Overrides) -> bool:
    """Whether a sweep has a single value for the key of this override, key=value."""
    name = text.partition("=")[0]
    items = [
        item for item in overrides.parsed if item.key_or_group == name and item.is_sweep_override()
    ]
    return all(len(list(item.sweep_string_iterator())) == 1 for item in items)


def write_manifests(jobs: Sequence[Job], command: Sequence[str]) -> None:
    """Write the list of jobs into each folder that holds some; the same jobs replace their list."""
    for folder in sorted({job.path.parent for job in jobs}):
        entries = [_entry(job) for job in jobs if job.path.parent == folder]
        write_manifest(folder, shlex.join(command), entries)


def _entry(job: Job) -> dict[str, Any]:
    return {
        "label": job.label,
        "method": chosen_name(job.config.method["_target_"]),
        "seed": job.config.seed,
        "config_hash": job.config.config_hash,
        "run": job.path.name,
        "log": str(job.log.relative_to(job.path.parent)),
    }
