"""Draws the rows of speed.py: time relative to the plain ViT by the number of experts in a head.

python benchmarks/speed_plot.py ROWS.json FILE      # .svg or .png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from smope.report import style

SHORT = {
    "vit_tiny_patch16_224": "ViT-Ti",
    "vit_small_patch16_224": "ViT-S",
    "vit_base_patch16_224": "ViT-B",
}
PHASES = {"train": "training", "infer": "inference"}


def curves(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float, float, float]]]:
    """The curves with more than one point.

    Returns:
        By name, for each number of experts: the number, the ratio to the plain ViT, and its lowest
        and highest value.
    """
    by_name: dict[str, dict[int, tuple[float, float, float]]] = {}
    for row in rows:
        if row["variant"] == "smope" and row["top_k"] == 5:
            later = ", from task 2 on" if row["task"] else ""
            name = (
                f"{SHORT.get(row['backbone'], row['backbone'])}, batch {row['batch']}, "
                f"{row['device']} {row['dtype']}: {PHASES[row['phase']]}{later}"
            )
            points = by_name.setdefault(name, {})
            points[row["num_experts"]] = (
                row["ratio_to_plain"],
                row["lowest_ratio"],
                row["highest_ratio"],
            )
    return {
        name: [(number, *points[number]) for number in sorted(points)]
        for name, points in sorted(by_name.items())
        if len(points) > 1
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw medians, with their lowest and highest value as bars; the plain ViT is the line at 1."""
    lines = curves(rows)
    with style.drawing(height=3.2 + 0.2 * len(lines), width=6.0) as (figure, axes):
        axes.axhline(
            1.0, color=style.TEXT_COLOUR, linewidth=1, linestyle=":", label="the plain ViT"
        )
        for index, (name, points) in enumerate(lines.items()):
            numbers, ratios, lowest, highest = zip(*points, strict=True)
            below = [max(0.0, ratio - low) for ratio, low in zip(ratios, lowest, strict=True)]
            above = [max(0.0, high - ratio) for ratio, high in zip(ratios, highest, strict=True)]
            axes.errorbar(
                numbers,
                ratios,
                (below, above),
                label=name,
                capsize=2,
                elinewidth=0.8,
                **style.series(index),
            )
        numbers = sorted({point[0] for points in lines.values() for point in points})
        top = max([1.2, *(point[3] for points in lines.values() for point in points)])
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers], minor=False)
        axes.minorticks_off()
        axes.set_yscale("log" if top > 3 else "linear")
        axes.set(xlabel="experts a head, 5 chosen", ylabel="time / plain ViT")
        if top <= 3:
            axes.set_ylim(0, 1.05 * top)
        figure.legend(loc="outside lower center", ncols=1)
    if path.suffix == ".svg":
        path.write_text(style.svg_file(style.svg(figure, path.stem)), encoding="utf-8")
    else:
        path.write_bytes(style.png(figure))


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
