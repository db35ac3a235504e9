"""How time and memory grow with classes, images and tasks, on images of noise.

    python benchmarks/scale.py --out benchmarks/results/scale.md

Nearest class mean learns each stream twice in turns: with features of test images computed once,
and with all of them passed through the network after each task. Both must give the same accuracy
matrix. A second table has the seconds that a ridge classifier takes for a task with either rule for
its penalty, in turns, without a network. An exponent of 1 means that a number grows as fast as what
is varied. It is a least-squares fit of logarithms over the three sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods.base import TaskSpan
from smope.methods.ncm import NearestClassMean
from smope.run.build import make_backbone
from smope.storage.run_directory import RunDirectory
from smope.streams.source import ImageSet, Source
from smope.streams.stream import Stream, build_stream
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer

FACTORS = (1, 2, 4)
COLUMNS = ("seconds", "evaluation", "features", "record", "checkpoints", "computed anew")


class ComputedAnew(NearestClassMean):
    """Says that its features may change, so that evaluation computes them again."""

    def features_are_final(self, task: TaskSpan) -> bool:
        return False


@dataclass(frozen=True)
class Size:
    """Of a stream; `images` are those of a class, for training and, without `tested`, again for
    testing.
    """

    classes: int = 60
    images: int = 2
    tasks: int = 5
    tested: int | None = None


MANY_CLASSES = Size(classes=3000, images=3, tasks=30, tested=1)


@dataclass(frozen=True)
class Measured:
    """One run: seconds, and bytes."""

    seconds: float
    evaluation: float
    features: int
    record: int
    checkpoints: int
    matrix: list[list[float]]


def made_stream(size: Size, **options: Any) -> Stream:
    """Noise round a mean of its own for each class, 32 pixels a side; `options` of build_stream."""
    draw = numpy.random.default_rng(0)
    means = draw.integers(60, 196, (size.classes, 4, 4, 3)).repeat(8, 1).repeat(8, 2)

    def images(number: int) -> ImageSet:
        targets = [index % size.classes for index in range(number * size.classes)]
        noise = draw.normal(0, 25, (len(targets), 32, 32, 3))
        pixels = numpy.clip(noise + means[targets], 0, 255).astype(numpy.uint8)
        return ImageSet(targets, list(pixels))

    names = tuple(f"class {number}" for number in range(size.classes))
    source = Source("noise", names, images(size.images), images(size.tested or size.images))
    return build_stream(source, image_size=32, seed=0, num_tasks=size.tasks, flip=False, **options)


def measure(kind: type[NearestClassMean], size: Size, stream: Stream) -> Measured:
    """One run of a method on a stream."""
    config = compose(read_overrides(["backbone=glyph_vit"]))
    method = kind(make_backbone(config.backbone), size.classes)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(Path(folder) / "run", "seed: 0\n")
        settings = TrainerSettings(device="cpu", reference="none")
        device = torch.device("cpu")
        trainer = Trainer(method, stream, settings, seed=0, device=device, directory=directory)
        started = time.perf_counter()
        history = trainer.fit()
        return Measured(
            time.perf_counter() - started,
            history.seconds["eval"],
            trainer.features.store.size,
            _bytes(directory.analysis),
            _bytes(directory.path / "checkpoints"),
            history.accuracy_matrix,
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compared(size: Size, rounds: int) -> dict[str, float]:
    """Medians over rounds, in which both kinds take turns."""
    stream = made_stream(size)
    pairs = [
        (measure(NearestClassMean, size, stream), measure(ComputedAnew, size, stream))
        for _ in range(rounds)
    ]
    assert all(once.matrix == anew.matrix for once, anew in pairs), "the same numbers"
    kept = pairs[0][0]
    return {
        "seconds": statistics.median(once.seconds for once, _ in pairs),
        "evaluation": statistics.median(once.evaluation for once, _ in pairs),
        "features": kept.features,
        "record": kept.record,
        "checkpoints": kept.checkpoints,
        "computed anew": statistics.median(anew.seconds / once.seconds for once, anew in pairs),
    }


@dataclass(frozen=True)
class RidgeSize:
    """Of the features that a ridge classifier learns; `images` are those of a task."""

    classes: int = 100
    images: int = 1000
    tasks: int = 2
    width: int = 250


def ridge_seconds(rule: PenaltyRule, size: RidgeSize) -> float:
    """Seconds of a processor for the last task, on noise round a mean for each class."""
    torch.manual_seed(0)
    head = RidgeHead(128, size.classes, size.width, (-8, 8), rule)
    means = torch.randn(size.classes, 128)
    for _ in range(size.tasks):
        labels = torch.arange(size.images) % size.classes
        features = (means[labels] + torch.randn(size.images, 128)).double()
        started = time.process_time()
        head.fit([(features, labels)])
        seconds = time.process_time() - started
    return seconds


def ridge_table(smallest: RidgeSize, rounds: int) -> list[str]:
    """Seconds of the last task with the new rule, and the old rule's as a ratio."""
    head = ("varied", "classes", "images of a task", "tasks", "width", "gcv", "last_fifth")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in ("classes", "images", "tasks", "width"):
        values, seconds = [getattr(smallest, name) * factor for factor in FACTORS], []
        for value in values:
            size = replace(smallest, **{name: value})
            pairs = [
                (ridge_seconds("gcv", size), ridge_seconds("last_fifth", size))
                for _ in range(rounds)
            ]
            seconds.append(statistics.median(new for new, _ in pairs))
            ratio = statistics.median(old / new for new, old in pairs)
            numbers = [size.classes, size.images, size.tasks, size.width]
            cells = [name, *map(str, numbers), f"{seconds[-1]:.3f} s", f"{ratio:.1f} times"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append(f"| exponent in {name} | | | | | {exponent(values, seconds):.2f} | |")
    return lines


def exponent(sizes: list[int], values: list[float]) -> float:
    """Of the power law through the points, by least squares of logarithms."""
    return float(numpy.polyfit(numpy.log(sizes), numpy.log(values), 1)[0])


def table(smallest: Size, rounds: int) -> list[str]:
    """The rows of every size, and the exponents."""
    head = ("varied", "classes", "images of a class", "tasks", *COLUMNS)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in ("classes", "images", "tasks"):
        values = [getattr(smallest, name) * factor for factor in FACTORS]
        rows = [compared(replace(smallest, **{name: value}), rounds) for value in values]
        for value, row in zip(values, rows, strict=True):
            size = replace(smallest, **{name: value})
            cells = [name, str(size.classes), str(size.images), str(size.tasks), *_cells(row)]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
        fits = [f"{exponent(values, [row[key] for row in rows]):.2f}" for key in COLUMNS]
        lines.append(f"| exponent in {name} | | | | {' | '.join(fits)} |")
        print(lines[-1], flush=True)
    return lines


def many_classes(size: Size) -> list[str]:
    """One run on many small classes, in seconds and bytes."""
    stream, started = made_stream(size), time.process_time()
    run = measure(NearestClassMean, size, stream)
    processor = time.process_time() - started
    images = f"{size.images} training images and {size.tested or size.images} test image(s)"
    head = ("what", "measured")
    rows = (
        ("the run", f"{run.seconds:.1f} s"),
        ("the same, of a processor", f"{processor:.1f} s"),
        ("evaluation", f"{run.evaluation:.1f} s"),
        ("features of test images", f"{run.features / 1e6:.2f} MB"),
        ("analysis/", f"{run.record / 1e6:.2f} MB"),
        ("checkpoints", f"{run.checkpoints / 1e6:.2f} MB"),
    )
    lines = [f"{size.classes:,} classes in {size.tasks} tasks, {images} of each, method=ncm.", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (head, ("---", "---"), *rows)]
    print("\n".join(lines), flush=True)
    return lines


def _cells(row: dict[str, float]) -> list[str]:
    sizes = [f"{row[key] / 1e6:.3f} MB" for key in ("features", "record", "checkpoints")]
    seconds = [f"{row[key]:.2f} s" for key in ("seconds", "evaluation")]
    return [*seconds, *sizes, f"{row['computed anew']:.2f} times the seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, default=Size.classes, help="of the smallest stream")
    parser.add_argument("--images", type=int, default=Size.images, help="of each class")
    parser.add_argument("--tasks", type=int, default=Size.tasks, help="of the smallest stream")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind, in turns")
    parser.add_argument(
        "--only", nargs="+", choices=("ncm", "ridge", "many_classes"), help="some parts"
    )
    parser.add_argument("--out", type=Path, help="write a Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = Size(options.classes, options.images, options.tasks)
    parts = {
        "ncm": lambda: table(sizes, options.rounds),
        "ridge": lambda: _ridge(options.rounds),
        "many_classes": lambda: many_classes(MANY_CLASSES),
    }
    lines = [line for name in options.only or parts for line in ["", *parts[name]()]]
    if options.out:
        command = " ".join(["python benchmarks/scale.py", *sys.argv[1:]])
        head = [
            "# Cost as the work grows",
            "",
            f"`{command}`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread of a "
            "CPU that other work shared. method=ncm, embedded ViT, images of noise.",
            "Medians of alternating runs; the last column is the time of the same run with all "
            "test images passed through the network after each task, as a ratio.",
        ]
        options.out.write_text("\n".join([*head, *lines, ""]))


def _ridge(rounds: int) -> list[str]:
    about = (
        "Seconds of a processor that a ridge classifier takes for the last of its tasks with "
        "method.penalty_rule=gcv, and how many times as long with last_fifth, in turns."
    )
    lines = ridge_table(RidgeSize(), rounds)
    print("\n".join(lines), flush=True)
    return [about, "", *lines]


if __name__ == "__main__":
    main()
