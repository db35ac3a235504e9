"""Pictures that trackers show while a run is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def live_pictures(
    matrix: Sequence[Sequence[float]], run_dir: Path, config: Mapping[str, Any]
) -> dict[str, bytes]:
    """PNGs: the matrix as a heat map, and the load of experts where choices were recorded."""
    from smope.analysis.experts import block_numbers, load_from_choices
    from smope.analysis.frames import matrix_frame
    from smope.analysis.snapshots import Snapshots
    from smope.report.figures import heat_map, load_map
    from smope.report.style import png

    frame = matrix_frame(matrix)
    pictures = {"accuracy_matrix_map": png(heat_map("matrix", "", frame, text="").drawing)}
    snapshots = Snapshots(run_dir)
    if len(matrix) in snapshots.recorded:
        last = snapshots.after(len(matrix))
        if last.experts is not None:
            load = load_from_choices(last.experts[last.seen], last.num_experts)
            blocks = block_numbers(config, len(load))
            pictures["expert_load"] = png(load_map("load", "", load, blocks, text="").drawing)
    return pictures
