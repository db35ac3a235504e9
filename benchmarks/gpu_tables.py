"""The results of benchmarks/gpu.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VARIANTS = {
    "plain": "plain ViT",
    "plain_compiled": "plain ViT, compiled",
    "plain_held": "plain ViT, weights held in half precision",
    "smope": "SMoPE",
    "smope_compiled": "SMoPE, compiled",
    "smope_graphs_compiled": "SMoPE, compiled, as CUDA graphs",
    "smope_plus": "SMoPE+",
    "smope_cast": "SMoPE, weights cast in each pass",
    "smope_appended": "SMoPE, attention over an appended key",
    "authors": "the authors' program",
}
PARTS = ("start", "training", "waiting", "usage", "statistics", "alignment", "evaluation")


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """All that the results hold, a section a stage; of a job that failed the error's last line."""
    makers = {
        "tests": _tests,
        "speed": _speed,
        "profile": _profile,
        "run": _runs,
        "images": _images,
        "accuracy": _accuracy,
    }
    sections = [_machine(line) for line in lines if line["stage"] == "machine"][:1]
    for stage, make in makers.items():
        jobs = [line for line in lines if line["stage"] == stage]
        text = "\n\n".join(make(line) for line in jobs if "rows" in line)
        failed = [
            f"- {line['name']}: {line['error'].strip().splitlines()[-1]}"
            for line in jobs
            if "error" in line
        ]
        if text or failed:
            sections.append(
                "\n\n".join(filter(None, [f"## {stage.capitalize()}", text, "\n".join(failed)]))
            )
    return "\n\n".join(sections)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; None is an empty cell."""
    body = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join("" if x is None else str(x) for x in row) + " |" for row in body
    )


def _number(value: float | None, digits: int, factor: float = 1.0) -> str | None:
    return None if value is None else f"{value * factor:,.{digits}f}"


def _machine(line: Mapping[str, Any]) -> str:
    machine = line["machine"]
    where = f"{machine['gpu'] or 'no GPU'}, {machine['cpu']}"
    versions = f"torch {machine['torch']}, timm {machine['timm']}, Python {machine['python']}"
    peaks = [
        f"{dtype}: {found['peak_tflops']} TFLOP/s ({found['peak_of']})"
        for dtype, found in line["peaks"].items()
        if found["peak_tflops"]
    ]
    rates = ", ".join(peaks) or "not known"
    return f"{where}; {versions}; {line['name']} UTC.\n\nPeak rates: {rates}."


def _tests(line: Mapping[str, Any]) -> str:
    rows = [[row[key] for key in ("tests", "passed", "skipped", "failed")] for row in line["rows"]]
    failures = [
        f"- {name}: {text}" for row in line["rows"] for name, text in row["failures"].items()
    ]
    return "\n\n".join(
        filter(None, [table(["tests", "passed", "skipped", "failed"], rows), "\n".join(failures)])
    )


def _what(row: Mapping[str, Any]) -> str:
    name = VARIANTS.get(row["variant"], row["variant"])
    return name if row["task"] is None else f"{name}, task {row['task']}"


def _speed(line: Mapping[str, Any]) -> str:
    heads = [
        "step",
        "images/s",
        "ms",
        "time / plain",
        "±",
        "/ plain compiled",
        "TFLOP/s",
        "of peak",
        "kernels",
        "peak memory, GB",
        "/ plain",
    ]
    rows = [
        [
            _what(row),
            _number(row["images_per_second"], 0),
            _number(row["seconds"], 2, 1e3),
            _number(row["ratio_to_plain"], 3),
            _number(row["ratio_error"], 3),
            _number(row.get("ratio_to_plain_compiled"), 3),
            _number(row["tflops"], 1),
            None if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}",
            row["kernels"],
            _number(row["peak_bytes"], 2, 1e-9),
            _number(row["peak_memory_ratio"], 3),
        ]
        for row in line["rows"]
    ]
    first = line["rows"][0]
    rounds = f"{first['rounds']} rounds of {first['steps']} steps"
    sizes = f"batch {first['batch']}, {first['image_size']} px, {rounds}"
    said = [row["left_out"].strip().splitlines()[-1] for row in line["rows"] if "left_out" in row]
    rest = f"\n\nNot all could be measured: {said[0]}" if said else ""
    return f"### {line['name']}\n\n{sizes}.\n\n{table(heads, rows)}{rest}"


def _profile(line: Mapping[str, Any]) -> str:
    return "\n\n".join([f"### {line['name']}", *(_profile_of(row) for row in line["rows"])])


def _profile_of(row: Mapping[str, Any]) -> str:
    head = (
        f"{_what(row)}, batch {row['batch']}: {1e3 * row['seconds']:.2f} ms a step, of which the "
        f"device works {1e3 * row['busy_seconds']:.2f} ms and waits {row['idle_share']:.1%}; "
        f"{row['kernels']:.0f} kernels, {row['casts']:.0f} of them casts and copies."
    )
    kinds, dearest = ([_kernel(each) for each in row[key]] for key in ("kinds", "dearest"))
    heads = ["a step", "ms", "share"]
    return "\n\n".join(
        [head, table(["kind", *heads], kinds), table(["dearest kernels", *heads], dearest)]
    )


def _kernel(found: Mapping[str, Any]) -> list[str]:
    name = found["name"].replace("|", "\\|")
    name = name if len(name) <= 90 else f"{name[:60]}...{name[-27:]}"
    return [
        f"`{name}`",
        f"{found['count']:.0f}",
        f"{1e3 * found['seconds']:.3f}",
        f"{found['share']:.1%}",
    ]


def _runs(line: Mapping[str, Any]) -> str:
    return "\n\n".join([f"### {line['name']}", *(_run(row) for row in line["rows"])])


def _run(row: Mapping[str, Any]) -> str:
    """Measured seconds by part, and those that FULL in timed_run.py would take at the same pace."""
    if "seconds" not in row:
        return f"No task was finished: {row.get('said', '').strip()[-300:]}"
    work, images = row["work"], row.get("images", {})
    head = (
        f"{work['tasks_done']} of {row['tasks']} tasks, {work['steps']:,} steps on "
        f"{work['train_images']:,} training images ({images.get('train', 0):,} in all tasks), "
        f"{row['whole']:.0f} s in all. The last column is computed: 10 tasks of 5,000 training and "
        "1,000 test images, 20 epochs (10 dense ones first), batch 128, each step, epoch or image "
        "taking what it took here."
    )
    whole, seconds, projected = row["whole"], row["seconds"], row["projection"]
    rows = [
        [
            part,
            _number(seconds[part], 1),
            f"{seconds[part] / whole:.1%}",
            _number(_projected(part, projected), 0),
        ]
        for part in PARTS
    ]
    rows.append(["all", _number(whole, 1), None, _number(projected["whole"], 0)])
    return f"{head}\n\n{table(['part', 's', 'share', 'projected, s'], rows)}"


def _projected(part: str, projected: Mapping[str, float | None]) -> float | None:
    if part != "training":
        return projected.get(part)
    computing, waiting = projected["computing"], projected["waiting"]
    return None if computing is None or waiting is None else computing + waiting


def _images(line: Mapping[str, Any]) -> str:
    heads = [
        "pictures",
        "images are",
        "images/s",
        "ms a batch",
        "ms of the CPU",
        "MB on the device",
    ]
    rows = [
        [
            row["pictures"],
            row["way"],
            _number(row["batch"] / row["seconds"], 0),
            _number(row["seconds"], 2, 1e3),
            _number(row["host_seconds"], 2, 1e3),
            _number(row["bytes"], 0, 1e-6),
        ]
        for row in line["rows"]
    ]
    return f"### {line['name']}\n\n{table(heads, rows)}"


def _accuracy(line: Mapping[str, Any]) -> str:
    heads = [
        "run",
        "status",
        "tasks",
        "FAA",
        "CAA",
        "forgetting",
        "accuracy after the last task",
        "s",
    ]
    rows = []
    for row in line["rows"]:
        done = [each for each in row.get("accuracy_matrix") or [] if each[0] is not None]
        last = [value for value in done[-1] if value is not None] if done else []
        names = ("final_average_accuracy", "cumulative_average_accuracy", "forgetting")
        scores = [_number(row.get(name), 2, 100) for name in names]
        shown = " ".join(f"{100 * value:.1f}" for value in last)
        rows.append(
            [row["run"], row.get("status"), len(done), *scores, shown, _number(row.get("whole"), 0)]
        )
    return table(heads, rows)
