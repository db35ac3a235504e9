"""The section on audits: what `smope audit` found out, or how to ask it."""

from __future__ import annotations

from collections.abc import Sequence

from smope.analysis.audit_verdict import AuditVerdict, audit_verdict
from smope.analysis.run import Run
from smope.report.sections.base import Section, Table, plural
from smope.storage.commands import command

OUTCOMES = {True: "ok", False: "failed", None: "not possible"}


def audit(runs: Sequence[Run]) -> Section:
    """The outcome of each check of a single run; of several runs, a row each."""
    audits = [(run, audit_verdict(run)) for run in runs]
    missing = [run for run, stored in audits if stored is None]
    lead = _lead(audits)
    if missing:
        lead += f" {_command(missing, len(runs) > 1)}"
    tables = []
    stored = [(run, content) for run, content in audits if content is not None]
    if len(runs) == 1 and stored:
        rows = [[name, OUTCOMES[outcome], text] for name, outcome, text in stored[0][1].checks]
        tables = [Table("Checks", [["check", "outcome", "what was compared"], *rows], words=True)]
    elif stored:
        rows = [
            [
                run.name,
                "passed" if content.passed else "FAILED",
                ", ".join(content.outcomes(False)) or "none",
                ", ".join(content.outcomes(None)) or "none",
            ]
            for run, content in stored
        ]
        head = ["run", "audit", "failed", "not possible"]
        tables = [Table("Audits", [head, *rows], words=True)]
    return Section("audit", "Audit", lead.strip(), tables, note=_outdated(stored))


def _lead(audits: Sequence[tuple[Run, AuditVerdict | None]]) -> str:
    stored = [content for _, content in audits if content is not None]
    if not stored:
        return ""
    if len(audits) == 1:
        content = stored[0]
        right, possible = len(content.outcomes(True)), len(content.checks)
        verdict = "passed" if content.passed else "FAILED"
        text = f"The audit has {verdict}: {right} of {plural(possible, 'check')} passed"
        failed, unknown = content.outcomes(False), content.outcomes(None)
        text += f", {len(failed)} failed" if failed else ""
        return text + (f", {len(unknown)} could not be made." if unknown else ".")
    passed = sum(content.passed for content in stored)
    return f"{passed} of {plural(len(stored), 'audit')} have passed."


def _command(missing: Sequence[Run], several: bool) -> str:
    """How an audit is made, for the first run without one."""
    subject = "This run has" if len(missing) == 1 else f"{plural(len(missing), 'run')} have"
    if len(missing) == 1 and several:
        subject = f"{missing[0].name} has"
    return (
        f"{subject} not been audited. An audit checks whether numbers can be trusted: whether "
        f"training and test images overlap, labels leak, and the stored model gives the recorded "
        f"numbers. Make one with: {command('audit', missing[0].path)}"
    )


def _outdated(stored: Sequence[tuple[Run, AuditVerdict]]) -> str:
    older = [run.name for run, content in stored if (content.tasks_done or 0) < run.tasks_done]
    return f"Tasks were learned after the audit of: {', '.join(older)}." if older else ""
