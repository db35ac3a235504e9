"""What `smope audit` found out about a run and stored in its audit.json."""

from __future__ import annotations

import json
from dataclasses import dataclass

from smope.analysis.run import Run


@dataclass(frozen=True)
class AuditVerdict:
    """A stored audit.

    passed:     whether no check failed.
    checks:     the outcome of each check: its name, True, False or None (not possible), and what
                was compared, in words.
    tasks_done: how many tasks the run had finished then; None if its state could not be restored.
    """

    passed: bool
    checks: tuple[tuple[str, bool | None, str], ...]
    tasks_done: int | None

    def outcomes(self, passed: bool | None) -> list[str]:
        """The names of the checks with this outcome."""
        return [name for name, outcome, _ in self.checks if outcome is passed]


def audit_verdict(run: Run) -> AuditVerdict | None:
    """The audit of a run; None if there is none, or its file cannot be read."""
    try:
        content = json.loads((run.path / "audit.json").read_bytes())
        checks = [
            (str(item["check"]), item["passed"], str(item["text"])) for item in content["verdicts"]
        ]
        return AuditVerdict(bool(content["passed"]), tuple(checks), content.get("tasks_done"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
