"""What a run saves by computing features of the frozen backbone once, in turns with a run that
computes them whenever they are read.

    python benchmarks/frozen_features.py --out benchmarks/results/frozen_features.md

Images of noise, one thread. Both runs must give the same accuracy matrix.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from scale import Size, made_stream

from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.build import make_backbone, make_method
from smope.streams.stream import Stream
from smope.training.frozen_features import FrozenFeatures
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer

PARTS = ("training", "evaluation", "reference")


@dataclass(frozen=True)
class Measured:
    """One run: seconds by part, and its accuracy matrix."""

    seconds: dict[str, float]
    matrix: list[list[float]]


@contextmanager
def computed_anew() -> Iterator[None]:
    """Runs that remember no features of the frozen backbone."""
    applies = FrozenFeatures._applies
    FrozenFeatures._applies = lambda self, images: False
    try:
        yield
    finally:
        FrozenFeatures._applies = applies


def measure(name: str, stream: Stream, epochs: int) -> Measured:
    """One run of a method on a stream, and its reference."""
    config = compose(read_overrides([f"method={name}", "backbone=glyph_vit"]))
    torch.manual_seed(0)
    classes, tasks = len(stream.class_names), len(stream.tasks)
    backbone = make_backbone(config.backbone)
    method = make_method(config.method, config.router, backbone, classes, tasks)
    settings = TrainerSettings(
        device="cpu", batch_size=32, epochs=epochs, frozen_steps=0, alignment_epochs=1
    )
    trainer = Trainer(method, stream, settings, seed=0, device=torch.device("cpu"))
    history = trainer.fit()
    began = time.perf_counter()
    trainer.reference_matrix()
    seconds = (history.seconds["train"], history.seconds["eval"], time.perf_counter() - began)
    return Measured(dict(zip(PARTS, seconds, strict=True)), history.accuracy_matrix)


def row(name: str, augmented: bool, size: Size, epochs: int, rounds: int) -> str:
    """A line of the table: seconds with remembered features, and how many times that without."""
    options = {} if augmented else {"crop_scale": None}
    stream = made_stream(size, **options)
    pairs = []
    for _ in range(rounds):
        pairs.append([])
        for context in (nullcontext(), computed_anew()):
            with context:
                pairs[-1].append(measure(name, stream, epochs))
    assert all(once.matrix == anew.matrix for once, anew in pairs), "the same numbers"
    cells = [name, "on" if augmented else "off"]
    for part in PARTS:
        seconds = statistics.median(once.seconds[part] for once, _ in pairs)
        ratio = statistics.median(anew.seconds[part] / once.seconds[part] for once, anew in pairs)
        cells += [f"{seconds:.2f} s", f"{ratio:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=["coda", "l2p", "finetune", "ridge"])
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--images", type=int, default=8, help="of a class, to train and to test")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, in turns")
    parser.add_argument("--out", type=Path, help="write a Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(options.classes, options.images, options.tasks)
    head = ["method", "augmentation"]
    head += [cell for part in PARTS for cell in (part, "computed anew")]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in options.methods:
        for augmented in (True, False):
            lines.append(row(name, augmented, size, options.epochs, options.rounds))
            print(lines[-1], flush=True)
    if options.out:
        command = " ".join(["python benchmarks/frozen_features.py", *sys.argv[1:]])
        text = [
            "# Features of the frozen backbone, computed once",
            "",
            f"`{command}`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread of a "
            f"CPU that other work shared; embedded ViT, {size.classes} classes of {size.images} "
            f"images in {size.tasks} tasks, {options.epochs} epochs.",
            'Medians of alternating runs. "computed anew" is the time of the same part where '
            "features are computed whenever they are read, as a ratio.",
            "",
        ]
        options.out.write_text("\n".join([*text, *lines, ""]))


if __name__ == "__main__":
    main()
