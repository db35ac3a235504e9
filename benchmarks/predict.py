"""How near `smope predict` comes to the throughput of the backbone alone.

    python benchmarks/predict.py --images FOLDER --weights FILE --out benchmarks/results/predict.md

The loop: what `smope predict RUN IMAGES --csv FILE` does once its model is loaded, from finding the
files to the last row of the table. The backbone: the plain ViT on the same images, decoded before,
in batches of the same size. The method: what the loop calls for a batch, on the same tensors.
They take turns; a ratio is the time of one divided by that of the other in the same round.

The backbone has one thread unless --threads says otherwise: several threads that wait for each
other lose most where other programs run, and the loop, with its decoders, least.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import smope
from smope.backbones.vit import load_backbone
from smope.cli import predict as command
from smope.cli.main import main as smope_command
from smope.serving.files import find_images
from smope.serving.predict import Classifier
from smope.serving.standard_input import Inputs

METHODS = {"ncm": [], "smope": ["trainer.epochs=1", "trainer.frozen_steps=0"]}
BATCH = 64  # of Classifier.predict
Round = dict[str, float]


def trained(method: str, images: Sequence[Path], folder: Path, options: argparse.Namespace) -> Path:
    """The run directory of a method that has seen a few images."""
    root = folder / f"images-{method}"
    for index, image in enumerate(images[:32]):
        for split in ("train", "test"):
            target = root / split / "ab"[index % 2]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target / f"{index}{image.suffix}")
    run = folder / method
    words = [f"method={method}", *METHODS[method], f"backbone={options.backbone}"]
    words += [f"backbone.weights={options.weights}", "stream=folder", f"stream.root={root}"]
    words += ["stream.num_tasks=1", "trainer.batch_size=8", "trainer.device=cpu", f"run_dir={run}"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert smope_command(["train", *words]) == 0
    return run


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loop(classifier: Classifier, folder: Path, table: Path) -> Callable[[], object]:
    """What the command does once the model is loaded."""
    words = ["RUN", str(folder), "--csv", str(table)]
    options = command._parser().parse_intermixed_args(words)

    def run() -> None:
        inputs = Inputs(options.images)
        with contextlib.redirect_stdout(io.StringIO()):
            inputs.survey()
            command._classify(classifier, inputs, options, {})

    return run


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> None:
    for batch in images.split(BATCH):
        function(batch)


def measure(
    method: str, images: Sequence[Path], folder: Path, options: argparse.Namespace
) -> list[Round]:
    """Seconds of loop, method and backbone in each round; the first round is not counted."""
    classifier = smope.load(trained(method, images, folder, options), "cpu")
    tree = folder / f"tree-{method}"
    tree.mkdir()
    for index, image in enumerate(images):
        shutil.copy(image, tree / f"{index:05d}{image.suffix}")
    prepared = [classifier._prepare(path) for path in find_images([tree])]
    pixels = torch.stack([image for image in prepared if isinstance(image, Tensor)])
    name = classifier.artefact.backbone["name"]
    vit = load_backbone(name, str(options.weights)).vit.eval()
    parts = {
        "loop": loop(classifier, tree, folder / "table.csv"),
        "method": lambda: in_batches(classifier, pixels),
        "backbone": lambda: in_batches(vit, pixels),
    }
    rounds = []
    for number in range(options.rounds + 1):
        names = list(parts)[number % 3 :] + list(parts)[: number % 3]
        rounds.append({part: seconds(parts[part]) for part in names})
        print(f"{method} round {number}: {rounds[-1]}", file=sys.stderr, flush=True)
    return rounds[1:]


def row(method: str, rounds: Sequence[Round], count: int) -> str:
    """A line of the table: images a second (medians), and ratios with their range."""
    speeds = [count / statistics.median(r[part] for r in rounds) for part in rounds[0]]
    cells = [f"{speed:.1f}" for speed in speeds]
    for part in ("backbone", "method"):
        ratios = sorted(r["loop"] / r[part] for r in rounds)
        median = statistics.median(ratios)
        cells.append(f"{median:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    return f"| {method} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, and writes it to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--weights", type=Path, required=True, help="of the backbone")
    parser.add_argument("--backbone", default="vit_tiny", help="a choice of conf/backbone")
    parser.add_argument("--count", type=int, default=256, help="images (default: 256)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="of the backbone (default: 1)")
    parser.add_argument("--out", type=Path, help="the file for the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    images = list(find_images([options.images]))
    images = images[:: max(1, len(images) // options.count)][: options.count]
    sizes = sum(image.stat().st_size for image in images) / len(images) / 1e3
    head = ["method", "loop, images/s", "method", "backbone"]
    head += ["loop / backbone, seconds", "loop / method"]
    lines = [
        f"{len(images)} images of {sizes:.0f} kB, {options.backbone}, {options.rounds} rounds; "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for method in METHODS:
            rounds = measure(method, images, Path(name), options)
            lines.append(row(method, rounds, len(images)))
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.write_text(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
