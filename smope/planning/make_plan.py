"""From a configuration to its plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.config.config import Config, replaced
from smope.metrics.cost import peak_memory
from smope.planning.estimate import Estimate, from_measured, from_peak, from_run
from smope.planning.hardware import UTILISATION, peak
from smope.planning.lines import Plan
from smope.planning.measuring import Measured, measure
from smope.run.dry_run import summary
from smope.run.prepare import prepare
from smope.training.trainer import Trainer
from smope.training.workload import Workload, count


def make_plan(
    config: Config,
    labels: Sequence[str],
    record: Mapping[str, Any] | None,
    source: Path | None,
    hardware: str | None,
    utilisation: float | None,
) -> Plan:
    """Build the run, count what it computes, and estimate its seconds from the source asked for."""
    elsewhere = record is not None or hardware is not None
    started = time.perf_counter()
    experiment, trainer = prepare(_counted_here(config) if elsewhere else config)
    start = time.perf_counter() - started
    resident = peak_memory(trainer.device).get("process_resident")
    work = count(trainer)
    measured: Measured | None = None
    if record is not None:
        estimate = from_run(work, record, str(source))
    elif hardware is not None:
        rate = peak(hardware, config.trainer["precision"])
        estimate = from_peak(
            work, rate, UTILISATION if utilisation is None else utilisation, hardware
        )
    else:
        measured, estimate = _measured(trainer, work)
    return Plan(
        title=summary(experiment),
        labels=tuple(labels),
        tasks=len(trainer.spans),
        work=work,
        estimate=estimate,
        measured=measured,
        start=start,
        resident=None if elsewhere or trainer.device.type == "cuda" else resident,
        hardware=hardware,
    )


def _counted_here(config: Config) -> Config:
    """The configuration in a form that any machine can count: a CPU has neither float16 nor,
    perhaps, a compiler.
    """
    half = {"trainer.precision": "bfloat16"} if config.trainer["precision"] == "float16" else {}
    return replaced(config, {"trainer.device": "cpu", "trainer.compile": False, **half})


def _measured(trainer: Trainer, work: Workload) -> tuple[Measured, Estimate]:
    found = measure(trainer, work)
    return found, from_measured(work, found, len(trainer.spans))
