"""Checking a data set: reading all its images and dividing them into tasks as training would."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smope.config.config import Config
from smope.errors import UserError
from smope.run.backbone_note import backbone_note
from smope.run.build_source import make_source
from smope.streams.checking.findings import LEVELS, Finding, findings, uneven_tasks
from smope.streams.checking.inspection import (
    Inspection,
    TaskContents,
    incomplete_folder,
    inspect,
    task_contents,
)
from smope.streams.partition import divide, hold_out
from smope.streams.source import Source

PARTITION_KEYS = (
    "num_tasks",
    "classes_per_task",
    "class_order",
    "disjoint_classes",
    "blurry_images",
)


@dataclass
class DataReport:
    """The result of a check.

    mark: the name on disk by which `stream` was recognised, "" where the user chose the stream.
    content_hash: what run.json would record; None where training refuses the data set.
    evaluated_on: which images the tasks are evaluated on, "test" or "validation".
    inspection: None where not even the files could be listed.
    tasks: None where the images cannot be divided into tasks.
    """

    root: Path
    stream: str
    mark: str = ""
    content_hash: str | None = None
    evaluated_on: str = "test"
    inspection: Inspection | None = None
    tasks: list[TaskContents] | None = None
    findings: list[Finding] = field(default_factory=list)

    def count(self, level: str) -> int:
        """The number of findings of this level."""
        return sum(finding.level == level for finding in self.findings)


def check(root: Path, config: Config, mark: str = "") -> DataReport:
    """Check the stream of a configuration. What training would refuse becomes a finding.

    Args:
        root: the data set as the user named it.
        config: the configuration that training would have.
        mark: by which name on disk the stream was recognised.

    Returns:
        The report, with the worst findings first.
    """
    report = DataReport(root, config.stream["name"], mark)
    base = Path(config.stream.get("root") or root.parent)
    source = _source(config, base, report)
    refused = any(finding.level == "error" for finding in report.findings)
    if source is not None:
        report.inspection = inspect(source, base)
        report.findings += findings(report.inspection)
        note = backbone_note(config)
        report.findings += [Finding("backbone", "note", note)] if note else []
        report.content_hash = None if refused else report.inspection.content_hash
        if not refused and not any(finding.kind == "missing_class" for finding in report.findings):
            _divide(report.inspection.source, config, report)
    report.findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return report


def _source(config: Config, base: Path, report: DataReport) -> Source | None:
    """The images as training would find them; those that exist of a folder that it refuses."""
    with _captured_warnings() as warnings:
        try:
            return make_source(config)
        except UserError as error:
            report.findings.append(
                Finding("layout", "error", f"training refuses this data set: {error}")
            )
            if report.stream != "folder":
                return None
            return incomplete_folder(base, config.stream["exclude"] or ())
        finally:
            report.findings += [Finding("stream", "warning", text) for text in warnings]


def _divide(source: Source, config: Config, report: DataReport) -> None:
    """Add the tasks of the images that can be read to the report, or why there are none."""
    stream = config.stream
    if source.train.tasks is None and stream["num_tasks"] is None:
        report.findings.append(
            Finding("tasks", "note", "stream.num_tasks=N shows what each of N tasks would hold")
        )
        return
    try:
        if stream["validation_fraction"] is not None:
            source = hold_out(source, stream["validation_fraction"], config.seed)
            report.evaluated_on = "validation"
        partition = divide(source, seed=config.seed, **{key: stream[key] for key in PARTITION_KEYS})
    except UserError as error:
        report.findings.append(Finding("tasks", "error", f"training refuses these tasks: {error}"))
        return
    report.tasks = task_contents(source, partition)
    report.findings += uneven_tasks(report.tasks)


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect what streams log, for the report instead of the screen."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("smope.streams")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
