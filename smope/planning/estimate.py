"""Seconds of a run, from its workload and a rate: measured here, from a finished run, or from
hardware.
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
    """What a run will take.

    Attributes:
        seconds: by kind of work.
        assumptions: sentences.
    """

    seconds: dict[str, float]
    assumptions: tuple[str, ...]

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())


COMMON = (
    "not counted: checkpoints, the record for the analysis, trackers, and waiting for a busy "
    "machine",
    "training steps of later tasks are taken to cost what those of the second do",
)


def from_measured(work: Workload, measured: Measured, tasks: int) -> Estimate:
    """Estimate from steps that were measured.

    Args:
        work: what the run computes.
        measured: what was measured.
        tasks: of the stream.

    Returns:
        The estimate.
    """
    passes = work.passes
    step = {(timing.tasks, timing.name): timing.seconds for timing in measured.phases}
    steps = sum(phase.steps * step[phase.tasks, phase.name] for phase in work.phases)
    bare = measured.eval_seconds * work.frozen_gflops / work.infer_gflops
    return Estimate(
        {
            "training": max(steps - work.frozen.in_training * bare, 0.0),
            "passes after training": passes.own * measured.pass_seconds
            + measured.end_seconds
            + (tasks - 1) * measured.later_end_seconds,
            "statistics and alignment": passes.recorded * measured.pass_seconds
            - work.frozen.in_statistics * bare
            + work.alignment_steps * (measured.alignment_step or 0.0),
            "evaluation": passes.evaluated * measured.eval_seconds
            - work.frozen.in_evaluation * bare,
        },
        (
            "a step takes as long throughout as the median of the few that were measured",
            "alignment steps cost the same however many classes there are, and what a method "
            "computes after its own passes the same as after a single batch",
            *measured.assumed,
            *COMMON,
        ),
    )


def from_run(work: Workload, record: Mapping[str, Any], path: str) -> Estimate:
    """Estimate from the rates of a finished run, scaled by the operations of an image.

    Args:
        work: what the run computes.
        record: run.json of the finished run.
        path: of that run, for people.

    Returns:
        The estimate.

    Raises:
        UserError: the record has no rates.
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
    align_seconds = cost["seconds"]["align"] / sum(task["train"] for task in record["tasks"])
    image_ratio = work.infer_gflops / infer
    trained, tested = _as_recorded(work)
    return Estimate(
        {
            "training": trained / (train * rates["train"]) if work.steps else 0.0,
            "statistics and alignment": align_seconds * work.train_images * image_ratio,
            "evaluation": tested / (infer * rates["infer"]),
        },
        (
            f"rates of {path}, measured there on {record.get('device')}: "
            f"{rates['train'] or 0:.1f} images a second in training, {rates['infer']:.1f} in "
            f"evaluation; passes after training are part of its training seconds",
            "an image's seconds are taken to grow with its operations, which are those of that "
            "run's last phase in its first task, and after its last task",
            *COMMON,
        ),
    )


def _as_recorded(work: Workload) -> tuple[float, float]:
    """GFLOPs of training and of evaluation as a run's record counts an image: in training as in the
    first task, in evaluation as after the last. Its rates are means over all tasks.
    """
    first = {phase.name: phase.gflops for phase in work.phases if phase.tasks == "first task"}
    trained = work.batch * sum(
        phase.steps * first.get(phase.name, phase.gflops) for phase in work.phases
    )
    frozen = work.frozen
    return (
        trained - frozen.in_training * work.frozen_gflops,
        work.evaluated * work.infer_gflops - frozen.in_evaluation * work.frozen_gflops,
    )


def from_peak(work: Workload, operations: float, utilisation: float, where: str) -> Estimate:
    """Estimate from the peak rate of hardware.

    Args:
        work: what the run computes.
        operations: of the hardware in a second, at its peak.
        utilisation: share of the peak that is assumed.
        where: the hardware, for people.

    Returns:
        The estimate.
    """
    rate = operations * utilisation / 1e9
    passes = work.passes
    return Estimate(
        {
            "training": work.train_gflops / rate,
            "passes after training": passes.own * passes.gflops / rate,
            "statistics and alignment": (
                passes.recorded * passes.gflops
                - work.frozen.in_statistics * work.frozen_gflops
                + work.alignment_gflops
            )
            / rate,
            "evaluation": work.eval_gflops / rate,
        },
        (
            f"{where}: NOTHING WAS MEASURED; {operations / 1e12:g} TFLOP/s at their peak, of "
            f"which a share of {utilisation:g} is assumed in every step (--utilisation)",
            "images are read as fast as they are wanted; of what follows a task's training, only "
            "passes over its images and the products of the classifier's alignment count",
            *COMMON,
        ),
    )
