"""A plan as lines for the terminal, and as plain values for --json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smope.console.markup import aligned
from smope.planning.estimate import Estimate
from smope.planning.hardware import choose
from smope.planning.measuring import Measured
from smope.training.workload import Workload

LIBRARY_BYTES = 500_000_000  # of a process on a CUDA device, beside its tensors


@dataclass(frozen=True)
class Plan:
    """What the runs of one configuration take.

    Attributes:
        title: of the run.
        labels: names of the runs of a sweep that take the same work.
        tasks: of the stream.
        work: what was counted.
        estimate: seconds.
        measured: what was measured; None if the rate came from elsewhere.
        start: seconds to build the run here, reading images included.
        resident: bytes of this process with everything built; None if that says nothing about the
            run.
        hardware: the name that --hardware gave.
        free_memory: bytes of the device that a run may use; None: not known.
        images: bytes of decoded images that the run keeps on the device.
    """

    title: str
    labels: tuple[str, ...]
    tasks: int
    work: Workload
    estimate: Estimate
    measured: Measured | None
    start: float
    resident: int | None
    hardware: str | None
    free_memory: float | None = None
    images: int = 0

    @property
    def run_memory(self) -> int:
        """Bytes of a whole run on its device, libraries included."""
        if self.resident is None:
            return self.step_memory + self.images + LIBRARY_BYTES
        return self.resident + self.step_memory + self.images - self.work.memory["weights"]

    @property
    def runs(self) -> int:
        """How many runs take this."""
        return len(self.labels)

    @property
    def step_memory(self) -> int:
        """Bytes of a training step."""
        return sum(self.work.memory.values())


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain values."""
    return {
        "title": plan.title,
        "runs": list(plan.labels),
        "tasks": plan.tasks,
        "counted": {
            **asdict(plan.work),
            "steps": plan.work.steps,
            "train_gflops": plan.work.train_gflops,
        },
        "measured": asdict(plan.measured) if plan.measured else None,
        "estimated_seconds": {
            **plan.estimate.seconds,
            "start": plan.start,
            "a_run": plan.estimate.total + plan.start,
        },
        "estimated_step_bytes": plan.step_memory,
        "image_bytes_on_device": plan.images,
        "assumptions": list(plan.estimate.assumptions),
    }


def lines(plan: Plan) -> list[str]:
    """What is counted, measured and estimated, in this order."""
    title = [plan.title]
    if plan.runs > 1:
        title += ["", f"{plan.runs} runs like this: {', '.join(plan.labels)}"]
    parts = [title, ["COUNTED (exact)", *_indented(_counted(plan))]]
    if plan.measured:
        heading = f"MEASURED HERE ({plan.measured.device}, {plan.measured.threads} threads)"
        parts.append([heading, *_indented(_measured(plan.measured))])
    parts.append(["ESTIMATED", *_indented(_estimated(plan))])
    assumptions = [f"- {text}" for text in plan.estimate.assumptions]
    parts.append(["ASSUMED", *_indented(assumptions)])
    return [line for part in parts for line in ("", *part)][1:]


def total(plans: list[Plan], price: float | None) -> list[str]:
    """Sum over all plans.

    Args:
        plans: of a sweep.
        price: of an hour; None: no cost is printed.

    Returns:
        One or two lines.
    """
    runs = sum(plan.runs for plan in plans)
    seconds = sum(plan.runs * (plan.estimate.total + plan.start) for plan in plans)
    what = f"{runs} runs one after the other" if runs > 1 else "the run"
    result = [f"{what}: {duration(seconds)} (estimated)"]
    if price is not None:
        hours = seconds / 3600
        result.append(
            f"cost: {hours:.3g} h at {price:g} an hour = {hours * price:.2f}, the price being yours"
        )
    return result


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _indented(texts: list[str]) -> list[str]:
    return [f"  {line}" for text in texts for line in text.splitlines()]


def _counted(plan: Plan) -> list[str]:
    work = plan.work
    rows = [["phase", "tasks", "steps", "images", "GFLOPs an image"]]
    for phase in work.phases:
        images = phase.steps * work.batch
        rows.append(
            [phase.name, phase.tasks, f"{phase.steps:,}", f"{images:,}", f"{phase.gflops:.2f}"]
        )
    memory = ", ".join(f"{what} {megabytes(size)}" for what, size in work.memory.items())
    training = [aligned(rows)] if work.phases else ["no training steps"]
    return [
        *training,
        f"training in all: {work.steps:,} steps, {work.train_gflops / 1e3:,.1f} TFLOPs",
        f"passes over the {work.train_images:,} training images: {_times(work)}",
        f"evaluation: {work.evaluated:,} images, {_each(work)}",
        f"alignment: {work.alignment_steps:,} steps of the classifier",
        *_frozen(work),
        f"memory of a step of {work.batch} images: {memory}",
        f"disk: {_disk(work)}",
    ]


def _times(work: Workload) -> str:
    """How often all training images pass through the network beside training steps."""
    own = work.passes.own / work.train_images
    return f"{own:.3g} by the method itself, {work.statistics} for class statistics"


def _each(work: Workload) -> str:
    """The operations of an image that is classified, which may grow with the tasks."""
    last = f"{work.infer_gflops:.2f} GFLOPs"
    mean = work.passes.evaluated * work.infer_gflops / work.evaluated
    grows = abs(mean / work.infer_gflops - 1) > 1e-6
    return (
        f"{mean:.2f} GFLOPs each on average, {last} after the last task"
        if grows
        else f"{last} each"
    )


def _frozen(work: Workload) -> list[str]:
    """What is not computed again, if anything."""
    passes = work.frozen.in_training + work.frozen.in_statistics + work.frozen.in_evaluation
    if not passes:
        return []
    return [
        f"features of the frozen backbone, kept for {work.frozen.images:,} images, save "
        f"{passes:,} passes of an image, {work.frozen_gflops:.2f} GFLOPs each"
    ]


def _disk(work: Workload) -> str:
    """What a run writes, without what is nothing."""
    names = {
        "checkpoints": "checkpoints and model",
        "analysis": "analysis/",
        "features": "features of images while it runs",
    }
    return ", ".join(f"{names[what]} {megabytes(size)}" for what, size in work.disk.items() if size)


def _measured(measured: Measured) -> list[str]:
    rows = [["step of", "tasks", "seconds", "range", "steps"]]
    for step in measured.phases:
        spread = f"{step.low:.3g} to {step.high:.3g}"
        rows.append([step.name, step.tasks, f"{step.seconds:.3g}", spread, str(step.steps)])
    alignment = measured.alignment_step
    return [
        *([aligned(rows)] if measured.phases else []),
        f"an image: {1e3 * measured.eval_seconds:.3g} ms to classify, "
        f"{1e3 * measured.pass_seconds:.3g} ms in a pass over training images",
        f"after the training of the first task, beside passes over its images: "
        f"{measured.end_seconds:.2g} s; of a later one {measured.later_end_seconds:.2g} s",
        *([f"alignment: {1e3 * alignment:.3g} ms a step"] if alignment else []),
    ]


def _estimated(plan: Plan) -> list[str]:
    rows = [[what, duration(seconds)] for what, seconds in plan.estimate.seconds.items()]
    rows += [
        ["start, as just now", duration(plan.start)],
        ["a run", duration(plan.estimate.total + plan.start)],
    ]
    largest, seconds = max(plan.estimate.seconds.items(), key=lambda part: part[1])
    share = 100 * seconds / (plan.estimate.total + plan.start)
    part = f"the largest part: {largest}, {share:.0f} % of the seconds"
    return [aligned(rows), part, *_memory_lines(plan)]


def _memory_lines(plan: Plan) -> list[str]:
    step = plan.step_memory
    if plan.resident is not None:
        more = plan.run_memory - plan.resident
        return [
            f"memory: {megabytes(plan.run_memory)} resident, {megabytes(plan.resident)} of "
            f"it measured here with everything built and {megabytes(more)} counted for a step; "
            f"passes need more for moments"
        ]
    images = f" and {megabytes(plan.images)} of decoded images" if plan.images else ""
    text = (
        f"memory on the device: {megabytes(step)} counted{images}; its libraries (about "
        f"{LIBRARY_BYTES / 1e9:g} GB) and passes need more, its attention may keep less than the "
        f"one counted here"
    )
    available = choose(plan.hardware).memory_gb if plan.hardware else None
    if available and step > 0.9e9 * available:
        text += (
            f"; MORE THAN FITS into {available} GB: lower trainer.batch_size, or "
            f"trainer.activation_checkpointing=true"
        )
    return [text]


def megabytes(size: float) -> str:
    """Bytes in MB or GB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
