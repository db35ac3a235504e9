"""Sections on prompt experts: load, overlap, drift, use; and example images with their experts."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pandas

from smope.analysis.drift import (
    drift_and_forgetting,
    expert_drift,
    relation,
    rerouting_of_images,
)
from smope.analysis.experts import (
    block_numbers,
    chosen_experts,
    expert_use,
    load_from_choices,
    task_overlap,
)
from smope.analysis.run import Run
from smope.report.figures import Figure, frame_grid, heat_map, lines, load_map, points, scatter
from smope.report.sections.base import (
    Picture,
    Section,
    Table,
    by_label,
    not_shown,
    with_snapshots,
    without_snapshots,
)

MAX_CONFIGURATIONS = 2  # whose maps and tables are shown
MAX_EXAMPLES = 12
MAX_HEADS = 4  # whose experts are named below an example


def routing_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The comparable runs whose choices of experts were recorded, by label."""
    return by_label([run for run in with_snapshots(runs) if run.snapshots.last.experts is not None])


def experts(runs: Sequence[Run]) -> Section | None:
    """Load, overlap, drift and use of experts; None if no run chose experts."""
    groups = routing_runs(runs)
    if not groups:
        return None
    shown = dict(list(groups.items())[:MAX_CONFIGURATIONS])
    figures = []
    for number, (label, members) in enumerate(shown.items(), 1):
        figures += _load_and_overlap(label, members, number)
    for number, (label, members) in enumerate(shown.items(), 1):
        figures += _drift_figure(label, members, number)
    figures += _rerouting_figure(groups)
    tables = []
    for label, members in shown.items():
        tables += [_use_table(label, members), *_rerouting_table(label, members)]
    last, choices = chosen_experts(next(iter(groups.values()))[0])
    lead = (
        f"Each image chooses {choices.shape[-1]} of {last.num_experts} experts in every head of "
        f"the prompted blocks. Load, overlap and dead experts are those of the test images seen."
    )
    note = (
        "Overlap: what two tasks' loads have in common, 1 if they use experts alike. Drift: "
        "relative change of a key, |new - old| / |old|. Top-k margin: how far an image's K-th best "
        "score is above the next one, in units of its score range. Load is shown of one run, "
        "everything else as a mean over seeds where there are several."
    )
    note += not_shown(groups, MAX_CONFIGURATIONS, "load, overlap, drift and use")
    note += without_snapshots(runs)
    return Section("experts", "Experts", lead, tables, figures, note=note)


def _load_and_overlap(label: str, runs: Sequence[Run], number: int) -> list[Figure]:
    """The load of the first run, and what tasks share on average."""
    run = runs[0]
    last, choices = chosen_experts(run)
    load = load_from_choices(choices[last.seen], last.num_experts)
    blocks = block_numbers(run.record["config"], len(load))
    unused = points(float((load == 0).mean()))
    text = f"{unused} percent of the experts of {run.name} were chosen by no image."
    figures = [load_map(f"load-{number}", f"Expert load: {label}", load, blocks, text=text)]
    if run.tasks_done == 1:
        return figures
    tables = [task_overlap(member) for member in runs]
    frame = sum(tables[1:], tables[0]) / len(tables)
    values = frame.to_numpy()
    between_tasks = values[~numpy.eye(len(values), dtype=bool)]
    overlap = heat_map(
        f"overlap-{number}",
        f"Experts shared by tasks: {label}",
        frame,
        text=f"Two tasks share {points(between_tasks.mean())} percent of their use on average, at "
        f"least {points(between_tasks.min())}.",
        caption="Mean over blocks, heads and seeds.",
        low=math.floor(10 * values.min()) / 10,
    )
    return [*figures, overlap]


def _drift_figure(label: str, runs: Sequence[Run], number: int) -> list[Figure]:
    """Drift of keys by block; none if no two neighbouring tasks were recorded."""
    frame = pandas.concat([expert_drift(run) for run in runs])
    if frame.empty:
        return []
    blocks = block_numbers(runs[0].record["config"], max(int(block) for block in frame["block"]))
    frame = frame.assign(line=[f"block {blocks[block - 1]}" for block in frame["block"]])
    mean: Any = frame.groupby("line", sort=False)["keys"].mean()
    figure = lines(
        f"drift-{number}",
        f"Drift of keys: {label}",
        frame,
        ("line", "after_task", "keys"),
        labels=("after task", "relative change of a key, %"),
        text=f"Keys move most in {mean.idxmax()}, by {points(mean.max())} percent a task, least in "
        f"{mean.idxmin()}, by {points(mean.min())} percent.",
    )
    return [figure]


def _rerouting_figure(groups: Mapping[str, Sequence[Run]]) -> list[Figure]:
    """Forgetting against rerouted images; none if there are too few pairs of tasks."""
    pairs = {
        label: pandas.concat([drift_and_forgetting(run) for run in runs])
        for label, runs in groups.items()
    }
    pairs = {label: frame for label, frame in pairs.items() if len(frame) > 2}
    if not pairs:
        return []
    figure = scatter(
        "rerouting",
        "Rerouted images and forgetting",
        {
            label: (frame["rerouted"].to_numpy(), frame["lost"].to_numpy())
            for label, frame in pairs.items()
        },
        labels=("choices of a task's images that changed, %", "accuracy lost, points"),
        text="; ".join(_correlation(label, frame) for label, frame in pairs.items()) + ".",
        caption="A point: an old task at a later time. Both grow with time, so read the "
        "correlation with care.",
    )
    return [figure]


def _correlation(label: str, frame: pandas.DataFrame) -> str:
    rho: Any = relation(frame).loc["rerouted", "rho"]
    if math.isnan(rho):
        return (
            f"{label}: in all {len(frame)} pairs the same share of choices changed, or the same "
            f"accuracy was lost"
        )
    return f"{label}: rank correlation {rho:.2f}"


def _use_table(label: str, runs: Sequence[Run]) -> Table:
    use: Any = pandas.concat([expert_use(run) for run in runs])
    last = use[use["after_task"] == use["after_task"].max()]
    means = last.groupby("block")[["dead", "effective", "busiest", "margin"]].mean()
    blocks = block_numbers(runs[0].record["config"], len(means))
    rows = [
        [
            str(block),
            points(row["dead"]),
            f"{row['effective']:.1f}",
            points(row["busiest"]),
            "-" if math.isnan(row["margin"]) else points(row["margin"]),
        ]
        for block, (_, row) in zip(blocks, means.iterrows(), strict=True)
    ]
    head = ["block", "dead, %", "effective experts", "load of the busiest, %", "top-k margin, %"]
    return Table(f"Use of experts after the last task: {label}", [head, *rows])


def _rerouting_table(label: str, runs: Sequence[Run]) -> list[Table]:
    images: Any = pandas.concat([rerouting_of_images(run) for run in runs])
    if images.empty:
        return []
    images["weighted"] = images["images"] * images["rerouted"]
    total = images.groupby("still_right")[["images", "weighted"]].sum()
    frame = (total["weighted"] / total["images"]).to_frame("choices that changed")
    names = ["still right" if still_right else "forgotten" for still_right in frame.index]
    frame.index = pandas.Index(names, name="image")
    caption = f"Old images that were right after their own task, percent: {label}"
    return [Table(caption, frame_grid(frame, "image"))]


def examples(runs: Sequence[Run]) -> Section | None:
    """Test images of the first run that chose experts, else of the first with recorded logits."""
    routing = [run for members in routing_runs(runs).values() for run in members]
    candidates = routing or with_snapshots(runs)
    if not candidates:
        return None
    run = candidates[0]
    last = run.snapshots.last
    evaluated = [
        (image, index)
        for image, index in zip(*run.snapshots.examples, strict=True)
        if index < len(last.labels) and last.seen[index]
    ]
    count = min(MAX_EXAMPLES, len(evaluated))
    chosen = numpy.linspace(0, len(evaluated) - 1, count).astype(int)
    lead = f"Test images as the run {run.name} sees them after its last task."
    if last.experts is not None:
        block = block_numbers(run.record["config"], last.experts.shape[1])[-1]
        every_head = last.experts.shape[2] <= MAX_HEADS
        heads = "each head" if every_head else f"the first {MAX_HEADS} heads"
        lead += (
            f" Below each: the experts that it chose in block {block}, the last prompted one, for "
            f"{heads}, best first."
        )
    pictures = [_picture(run, *evaluated[number]) for number in chosen]
    return Section("examples", "Examples", lead, pictures=pictures)


def _picture(run: Run, image: Any, index: int) -> Picture:
    last, names = run.snapshots.last, run.record["class_names"]
    label, predicted = names[last.labels[index]], names[last.predicted[index]]
    result = "right" if label == predicted else f"taken for {predicted}"
    text_lines = [f"{label}: {result}", f"task {last.tasks[index] + 1}"]
    if last.experts is not None:
        for head, row in enumerate(last.experts[index, -1][:MAX_HEADS], 1):
            numbers = " ".join(str(expert + 1) for expert in row)
            text_lines.append(f"head {head}: {numbers}")
    return Picture(_png(image), f"Test image of class {label}, {result}", text_lines)


def _png(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()
