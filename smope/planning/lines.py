"""A plan on the screen, and as plain values for --json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smope.console.markup import aligned
from smope.planning.estimate import Estimate
from smope.planning.hardware import choose
from smope.planning.measuring import Measured
from smope.training.workload import Workload


@dataclass(frozen=True)
class Plan:
    """One configuration: what it is, how many runs of a sweep are like it, and what a run takes.

    start: seconds to build it here, images read included. resident: bytes of this process with
    everything built.
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

    @property
    def runs(self) -> int:
        return len(self.labels)

    @property
    def step_memory(self) -> int:
        """Bytes that training holds."""
        return sum(self.work.memory.values())


def as_dict(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain values."""
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
        "assumptions": list(plan.estimate.assumptions),
    }


def lines(plan: Plan) -> list[str]:
    """What is counted, measured and estimated, in this order."""
    return [
        plan.title,
        *(["", f"{plan.runs} runs like this: {', '.join(plan.labels)}"] if plan.runs > 1 else []),
        "",
        "COUNTED (exact)",
        *_indented(_counted(plan)),
        *(
            ["", f"MEASURED HERE ({plan.measured.device}, {plan.measured.threads} threads)"]
            if plan.measured
            else []
        ),
        *(_indented(_measured(plan.measured)) if plan.measured else []),
        "",
        "ESTIMATED",
        *_indented(_estimated(plan)),
        "",
        "ASSUMED",
        *_indented([f"- {text}" for text in plan.estimate.assumptions]),
    ]


def total(plans: list[Plan], price: float | None) -> list[str]:
    """The whole, with its price."""
    runs = sum(plan.runs for plan in plans)
    seconds = sum(plan.runs * (plan.estimate.total + plan.start) for plan in plans)
    what = f"{runs} runs one after the other" if runs > 1 else "the run"
    found = [f"{what}: {duration(seconds)} (estimated)"]
    if price is not None:
        hours = seconds / 3600
        found.append(
            f"cost: {hours:.3g} h at {price:g} an hour = {hours * price:.2f}, the price being yours"
        )
    return found


def duration(seconds: float) -> str:
    """Seconds as people say them."""
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
        f"passes over the {work.train_images:,} training images for class statistics: "
        f"{work.statistics}",
        f"evaluation: {work.evaluated:,} images, {work.infer_gflops:.2f} GFLOPs each",
        f"alignment: {work.alignment_steps:,} steps of the classifier",
        f"memory of a step of {work.batch} images: {memory}",
    ]


def _measured(found: Measured) -> list[str]:
    rows = [["step of", "tasks", "seconds", "range", "steps"]]
    for timed in found.phases:
        spread = f"{timed.low:.3g} to {timed.high:.3g}"
        rows.append([timed.name, timed.tasks, f"{timed.seconds:.3g}", spread, str(timed.steps)])
    alignment = found.alignment_step
    return [
        *([aligned(rows)] if found.phases else []),
        f"an image: {1e3 * found.eval_seconds:.3g} ms to classify, {1e3 * found.pass_seconds:.3g} "
        f"ms in a pass over "
        "training images",
        f"after a task's training: {found.passes} passes by the method itself, and "
        f"{found.end_seconds:.2g} s",
        *([f"alignment: {1e3 * alignment:.3g} ms a step"] if alignment else []),
    ]


def _estimated(plan: Plan) -> list[str]:
    rows = [[what, duration(seconds)] for what, seconds in plan.estimate.seconds.items()]
    rows += [
        ["start, as just now", duration(plan.start)],
        ["a run", duration(plan.estimate.total + plan.start)],
    ]
    return [aligned(rows), *_memory_lines(plan)]


def _memory_lines(plan: Plan) -> list[str]:
    step, work = plan.step_memory, plan.work
    if plan.hardware is None and plan.resident is not None:
        more = step - work.memory["weights"]
        return [
            f"memory: {megabytes(plan.resident + more)} resident, {megabytes(plan.resident)} of "
            f"it measured here with "
            f"everything built and {megabytes(more)} counted for a step; passes need more for "
            f"moments"
        ]
    said = f"memory on the device: {megabytes(step)} counted; its libraries (about 0.5 GB) and passes need more, its "
    said += "attention may keep less than the one counted here"
    room = choose(plan.hardware).memory_gb if plan.hardware else None
    if room and step > 0.9e9 * room:
        said += f"; MORE THAN FITS into {room} GB: lower trainer.batch_size, or trainer.activation_checkpointing=true"
    return [said]


def megabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
