"""From a configuration to its plan: build, count, estimate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from smope.config.config import Config, replaced
from smope.metrics.cost import peak_memory
from smope.planning.estimate import Estimate, from_measured, from_peak, from_run
from smope.planning.hardware import UTILISATION, choose, peak
from smope.planning.lines import Plan
from smope.planning.measuring import Measured, measure
from smope.planning.paper_stream import PaperStream
from smope.run.dry_run import summary
from smope.run.prepare import prepare
from smope.training.device import free_memory
from smope.training.device_images import AUTO_SHARE, decoded_bytes
from smope.training.trainer import Trainer
from smope.training.workload import count


def make_plan(
    config: Config,
    labels: Sequence[str],
    record: Mapping[str, Any] | None,
    source: Path | None,
    hardware: str | None,
    utilisation: float | None,
    paper: PaperStream | None = None,
    timed: bool = True,
) -> Plan:
    """Build a run, count what it computes, and estimate its seconds.

    The rate comes from `record`, from `hardware`, or is measured here if both are None.

    Args:
        config: the run's configuration.
        labels: names of the runs of a sweep that are like this one.
        record: run.json of a finished run.
        source: where `record` is from, for people.
        hardware: a name of planning/hardware.py.
        utilisation: share of the hardware's peak rate; None: the default.
        paper: sizes of the stream, of which there are no images; nothing can be measured then.
        timed: False for what is counted alone, without seconds.

    Returns:
        The plan.

    Raises:
        UserError: the run cannot be built, or the source has no rate for it.
    """
    elsewhere = record is not None or hardware is not None
    started = time.perf_counter()
    setting = config.trainer["images_on_device"] if paper is None else False
    config = _counted_here(config) if elsewhere else config
    if paper is not None:
        config = replaced(
            config, {"backbone.weights": "random", "backbone.pixel_statistics": "none"}
        )
    experiment, trainer = prepare(config, stream=None if paper is None else paper.stream())
    start = time.perf_counter() - started
    resident = peak_memory(trainer.device).get("process_resident")
    work = count(trainer)
    free = _free_memory(trainer.device, hardware) if record is None else None
    measured: Measured | None = None
    if not timed:
        estimate = Estimate({}, ())
    elif record is not None:
        estimate = from_run(work, record, str(source))
    elif hardware is not None:
        rate = peak(hardware, config.trainer["precision"])
        estimate = from_peak(
            work, rate, UTILISATION if utilisation is None else utilisation, hardware
        )
    else:
        measured = measure(trainer, work)
        estimate = from_measured(work, measured, len(trainer.spans))
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
        free_memory=free,
        images=_image_bytes(trainer, setting, hardware, free),
    )


def _free_memory(device: torch.device, hardware: str | None) -> float | None:
    """Bytes of the hardware, or that are free here; None if not known."""
    if hardware is not None:
        gigabytes = choose(hardware).memory_gb
        return None if gigabytes is None else 1e9 * gigabytes
    free = free_memory(device)
    return free if math.isfinite(free) else None


def _image_bytes(
    trainer: Trainer, setting: bool | str, hardware: str | None, free: float | None
) -> int:
    """Bytes of the images that a run keeps on its device: here, or on hardware with so much
    memory.
    """
    if hardware is None or free is None or setting is False:
        return trainer.loader.on_device.bytes
    size = decoded_bytes(trainer.stream) or 0
    return size if setting is True or size <= AUTO_SHARE * free else 0


def _counted_here(config: Config) -> Config:
    """The configuration in a form that can be counted on any CPU: without float16, compiler and
    images on the device.
    """
    changes: dict[str, Any] = {
        "trainer.device": "cpu",
        "trainer.compile": False,
        "trainer.images_on_device": False,
    }
    if config.trainer["precision"] == "float16":
        changes["trainer.precision"] = "bfloat16"
    return replaced(config, changes)
