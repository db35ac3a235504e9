"""Seconds of a run from its workload and a throughput: measured here, of a finished run, or stated
for hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smope.errors import UserError
from smope.planning.measuring import Measured
from smope.training.workload import Workload


@dataclass(frozen=True)
class Estimate:
    """seconds: of training, of what follows a task's last step, of alignment and of evaluation.
    assumptions: each a sentence; `rate`: operations a second in training, 10^9.
    """

    seconds: dict[str, float]
    assumptions: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


COMMON = (
    "not counted: checkpoints, the record for the analysis, trackers, and waiting for a busy "
    "machine",
    "later tasks are taken to cost what the second does",
)


def from_measured(work: Workload, found: Measured, tasks: int) -> Estimate:
    """By the seconds of the steps that were measured."""
    step = {(timed.tasks, timed.name): timed.seconds for timed in found.phases}
    passes = work.train_images * found.pass_seconds
    return Estimate(
        {
            "training": sum(phase.steps * step[phase.tasks, phase.name] for phase in work.phases),
            "passes after training": passes * found.passes + tasks * found.end_seconds,
            "statistics and alignment": passes * work.statistics
            + work.alignment_steps * (found.alignment_step or 0.0),
            "evaluation": work.evaluated * found.eval_seconds,
        },
        (
            "a step takes as long throughout as the median of the few that were measured",
            "alignment steps cost the same however many classes there are, and what a method "
            "computes after its "
            "own passes the same as after a single batch",
            *found.assumed,
            *COMMON,
        ),
    )


def from_run(work: Workload, record: Mapping[str, Any], path: str) -> Estimate:
    """By the images a second of a finished run, scaled by the operations of an image where they
    differ.
    """
    cost = record.get("cost", {})
    rates, flops = cost.get("images_per_second", {}), cost.get("gflops_per_image")
    if record.get("status") != "finished" or not rates.get("infer") or not flops:
        raise UserError(
            f"--from {path}: is not finished or tells no cost; name a finished run of this version"
        )
    train, infer = flops["train_gflops"]["torch"], flops["infer_gflops"]["torch"]
    if work.steps and not (rates.get("train") and train):
        raise UserError(
            f"--from {path}: that run took no training steps, and this one does; name a run of "
            f"such a method"
        )
    old_images = sum(task["train"] for task in record["tasks"])
    return Estimate(
        {
            "training": work.train_gflops / (train * rates["train"]) if work.steps else 0.0,
            "statistics and alignment": cost["seconds"]["align"]
            / old_images
            * work.train_images
            * _ratio(work, infer),
            "evaluation": work.evaluated / rates["infer"] * _ratio(work, infer),
        },
        (
            f"rates of {path}, measured there on {record.get('device')}: "
            f"{rates['train'] or 0:.1f} images a second in "
            f"training, {rates['infer']:.1f} in evaluation; passes after training are part of its "
            f"training seconds",
            "an image's seconds are taken to grow with its operations, which are those of that "
            "run's last phase",
            *COMMON,
        ),
    )


def _ratio(work: Workload, infer: float) -> float:
    return work.infer_gflops / infer


def from_peak(work: Workload, operations: float, utilisation: float, where: str) -> Estimate:
    """By a share of the operations a second that hardware can do at best."""
    rate = operations * utilisation / 1e9
    passes = work.train_images * (1 + work.statistics)
    return Estimate(
        {
            "training": work.train_gflops / rate,
            "passes after training": work.train_images * work.infer_gflops / rate,
            "statistics and alignment": (passes - work.train_images) * work.infer_gflops / rate,
            "evaluation": work.evaluated * work.infer_gflops / rate,
        },
        (
            f"{where}: NOTHING WAS MEASURED; {operations / 1e12:g} TFLOP/s at their peak, of "
            f"which a share of "
            f"{utilisation:g} is assumed in every step (--utilisation)",
            "images are read as fast as they are wanted; one pass over a task's images follows "
            "its training; steps of "
            "the classifier's alignment cost nothing",
            *COMMON,
        ),
    )
