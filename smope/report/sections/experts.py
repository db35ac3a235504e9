"""Sections on prompt experts: load, overlap, dead experts, drift, and example images with their
experts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy
import pandas

from smope.analysis.drift import drift, drift_and_forgetting, relation, rerouting_of_images
from smope.analysis.experts import block_numbers, chosen, expert_use, load_of, task_overlap
from smope.analysis.runs import Run
from smope.report.figures import Figure, frame_grid, heat_map, lines, load_map, points, scatter
from smope.report.sections.base import (
    Picture,
    Section,
    Table,
    by_label,
    not_shown,
    with_evidence,
    without_evidence,
)

MOST = 2  # configurations whose maps are shown
PICTURES = 12
HEADS = 4  # named below a picture


def routing_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs whose choices were recorded, by label."""
    return by_label([run for run in with_evidence(runs) if run.evidence.last.experts is not None])


def experts(runs: Sequence[Run]) -> Section | None:
    groups = routing_runs(runs)
    if not groups:
        return None
    figures: list[Figure] = []
    for number, (label, group) in enumerate(list(groups.items())[:MOST]):
        figures += _maps(label, group, number + 1)
    figures += _moves(groups)
    last, choices = chosen(next(iter(groups.values()))[0])
    lead = (
        f"Each image chooses {choices.shape[-1]} of {last.num_experts} experts in every head of "
        f"the prompted blocks. "
        "Load, overlap and dead experts are those of the test images seen."
    )
    note = (
        "Overlap: what two tasks' loads have in common, 1 if they use experts alike. Drift: "
        "relative change of a key, "
        "|new - old| / |old|. Load is shown of one run, everything else as a mean over seeds "
        "where there are several."
    )
    note += not_shown(groups, MOST, "load, overlap, drift and use") + without_evidence(runs)
    return Section("experts", "Experts", lead, _tables(groups), figures, note=note)


def _maps(label: str, runs: Sequence[Run], number: int) -> list[Figure]:
    run = runs[0]
    last, choices = chosen(run)
    load = load_of(choices[last.seen], last.num_experts)
    blocks = block_numbers(run.record["config"], len(load))
    unused = points(float((load == 0).mean()))
    maps = [
        load_map(
            f"load-{number}", f"Expert load: {label}", load, blocks,
            text=f"{unused} percent of the experts of {run.name} were chosen by no image.",
        )
    ]  # fmt: skip
    if run.tasks_done > 1:
        tables = [task_overlap(mate) for mate in runs]
        frame = sum(tables[1:], tables[0]) / len(tables)
        low = math.floor(10 * frame.to_numpy().min()) / 10
        apart = frame.to_numpy()[~numpy.eye(len(frame), dtype=bool)]
        text = f"Two tasks share {points(apart.mean())} percent of their use on average, at least {points(apart.min())}."
        caption = "Mean over blocks, heads and seeds."
        maps.append(
            heat_map(
                f"overlap-{number}",
                f"Experts shared by tasks: {label}",
                frame,
                text=text,
                caption=caption,
                low=low,
            )
        )
    return maps


def _moves(groups: dict[str, list[Run]]) -> list[Figure]:
    """Drift of keys by block, and forgetting against it."""
    figures = []
    for number, (label, runs) in enumerate(list(groups.items())[:MOST]):
        frames = [drift(run) for run in runs]
        frame = pandas.concat(frames)
        if frame.empty:
            continue
        blocks = block_numbers(
            runs[0].record["config"], max(int(block) for block in frame["block"])
        )
        frame = frame.assign(line=[f"block {blocks[block - 1]}" for block in frame["block"]])
        mean: Any = frame.groupby("line", sort=False)["keys"].mean()
        figures.append(
            lines(
                f"drift-{number + 1}", f"Drift of keys: {label}", frame, ("line", "after_task", "keys"),
                labels=("after task", "relative change of a key, %"),
                text=f"Keys move most in {mean.idxmax()}, by {points(mean.max())} percent a task, "
                     f"least in "
                f"{mean.idxmin()}, by {points(mean.min())} percent.",
            )
        )  # fmt: skip
    pairs = {
        label: pandas.concat([drift_and_forgetting(run) for run in runs])
        for label, runs in groups.items()
    }
    pairs = {label: frame for label, frame in pairs.items() if len(frame) > 2}
    if pairs:
        figures.append(
            scatter(
                "rerouting", "Rerouted images and forgetting",
                {label: (frame["rerouted"].to_numpy(), frame["lost"].to_numpy()) for label, frame in pairs.items()},
                labels=("choices of a task's images that changed, %", "accuracy lost, points"),
                text="; ".join(_correlation(label, frame) for label, frame in pairs.items()) + ".",
                caption="A point: an old task at a later time. Both grow with time, so read the "
                        "correlation with care.",
            )
        )  # fmt: skip
    return figures


def _correlation(label: str, frame: pandas.DataFrame) -> str:
    rho: Any = relation(frame).loc["rerouted", "rho"]
    if math.isnan(rho):
        return f"{label}: in all {len(frame)} pairs the same share of choices changed, or the same accuracy was lost"
    return f"{label}: rank correlation {rho:.2f}"


def _tables(groups: dict[str, list[Run]]) -> list[Table]:
    tables = []
    for label, runs in list(groups.items())[:MOST]:
        use: Any = pandas.concat([expert_use(run).assign(run=run.seed) for run in runs])
        last = (
            use[use["after_task"] == use["after_task"].max()]
            .groupby("block")[["dead", "effective", "busiest"]]
            .mean()
        )
        blocks = block_numbers(runs[0].record["config"], len(last))
        rows = [
            [str(block), points(row["dead"]), f"{row['effective']:.1f}", points(row["busiest"])]
            for block, (_, row) in zip(blocks, last.iterrows(), strict=True)
        ]
        head = ["block", "dead, %", "effective experts", "load of the busiest, %"]
        tables.append(Table(f"Use of experts after the last task: {label}", [head, *rows]))
        images: Any = pandas.concat([rerouting_of_images(run) for run in runs])
        if len(images):
            images["weighted"] = images["images"] * images["rerouted"]
            total = images.groupby("kept")[["images", "weighted"]].sum()
            frame = (total["weighted"] / total["images"]).to_frame("choices that changed")
            frame.index = pandas.Index(
                ["still right" if kept else "forgotten" for kept in frame.index], name="image"
            )
            caption = f"Old images that were right after their own task, percent: {label}"
            tables.append(Table(caption, frame_grid(frame, "image")))
    return tables


def examples(runs: Sequence[Run]) -> Section | None:
    """Test images of the first run that chose experts, else of the first with evidence."""
    groups = routing_runs(runs)
    candidates = [run for group in groups.values() for run in group] or with_evidence(runs)
    if not candidates:
        return None
    run = candidates[0]
    images, where = run.evidence.examples
    last = run.evidence.last
    known = [
        (image, index)
        for image, index in zip(images, where, strict=True)
        if index < len(last.labels)
    ]
    known = [(image, index) for image, index in known if last.seen[index]]
    picked = [
        known[place]
        for place in numpy.linspace(0, len(known) - 1, min(PICTURES, len(known))).astype(int)
    ]
    lead = f"Test images as the run {run.name} sees them after its last task."
    if last.experts is not None:
        block = block_numbers(run.record["config"], last.experts.shape[1])[-1]
        lead += (
            f" Below each: the experts that it chose in block {block}, the last prompted one, "
            f"for "
            f"{'each head' if last.experts.shape[2] <= HEADS else f'the first {HEADS} heads'}, "
            f"best first."
        )
    pictures = [_picture(run, image, int(index)) for image, index in picked]
    return Section("examples", "Examples", lead, pictures=pictures)


def _picture(run: Run, image: Any, index: int) -> Picture:
    last, names = run.evidence.last, run.record["class_names"]
    label, predicted = names[last.labels[index]], names[last.predicted[index]]
    verdict = "right" if label == predicted else f"taken for {predicted}"
    lines = [f"{label}: {verdict}", f"task {last.tasks[index] + 1}"]
    if last.experts is not None:
        lines += [
            f"head {head + 1}: {' '.join(str(expert + 1) for expert in row)}"
            for head, row in enumerate(last.experts[index, -1][:HEADS])
        ]
    return Picture(_png(image), f"Test image of class {label}, {verdict}", lines)


def _png(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()
