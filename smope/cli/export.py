"""`smope export MODEL`: a trained model as a graph for other programs."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smope.cli.chosen_run import check_out, chosen_model
from smope.cli.parser import Parser
from smope.errors import UserError
from smope.run.quick_import import quick_imports
from smope.storage.run_directory import model_file

if TYPE_CHECKING:
    from smope.serving.predict import Classifier

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "authors": ".pth"}
EPILOG = """\
The graph takes a batch of any size and gives logits of the classes seen; softmax makes them
probabilities. Weights, routing, the pixel statistics of the backbone and the names of the classes
are in the one file. FILE.json beside it says what goes in and how pictures become that. The graph
computes in float32, and must give the model's own logits before it is written.

--with-preprocessing: the graph takes pictures as bytes (batch, height, width, 3), of any size, and
resizes and crops them as the run's evaluation did. Decoding, the EXIF orientation and RGB are left
to whoever runs it. Without it, the graph takes (batch, 3, side, side) in [0, 1].

--format authors writes a class.pth as the authors' code does; `smope import` reads it.

--format onnx needs `pip install 'smope[onnx]'`.

examples:
  smope export latest --with-preprocessing                  RUN/model.onnx and RUN/model.onnx.json
  smope export latest --format torch --out photos.pt2       for torch.export.load"""


def run(argv: Sequence[str]) -> int:
    """Write the graph, and print the lines of Python that classify with it."""
    options = _parser().parse_args(argv)
    _check(options)
    check_out(options.out, options.model)
    model = chosen_model(options.model)
    file = options.out or model_file(model).with_suffix(SUFFIXES[options.format])
    if not file.parent.is_dir():
        raise UserError(f"--out={file}: there is no folder {file.parent}; make it, or name another")
    from smope.serving.export_example import example

    with quick_imports():
        from smope.serving.export import TOLERANCE, export_model
        from smope.serving.predict import load

    classifier = load(model, "cpu", options.weights)
    if options.format == "authors":
        return _write_authors(classifier, file)
    exported = export_model(
        classifier, options.format, file, with_preprocessing=options.with_preprocessing
    )
    print(f"{exported.file}: {exported.file.stat().st_size / 1e6:.1f} MB")
    print(f"{exported.description}: input, output, classes, preprocessing")
    if exported.difference is None:
        print("not compared with the model, because onnxruntime is not installed")
    else:
        print(
            f"its logits differ from the model's by {exported.difference:.1e} of the largest "
            f"(at most {TOLERANCE:g} is allowed)"
        )
    transform = classifier.transform
    sizes = (transform.image_size, transform.shorter_side)
    lines = example(options.format, str(file), None if options.with_preprocessing else sizes)
    print(f"to classify with it, without smope:\n\n{lines}", end="")
    return 0


def _write_authors(classifier: Classifier, file: Path) -> int:
    from smope.serving.authors import counts_decide, write_authors

    write_authors(classifier.method, file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if counts_decide(classifier.method):
        print(
            "the authors' file does not say which experts were never used, so that its logits are "
            "those of router.exclude_unused_experts=false"
        )
    return 0


def _parser() -> Parser:
    parser = Parser(
        "smope export", "Write a trained model as a graph that other programs run.", EPILOG
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run directory, its model.safetensors, a folder with runs, latest, or "
        "hf://OWNER/NAME",
    )
    parser.add_argument("--format", choices=sorted(SUFFIXES), default="onnx", help="default: onnx")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default: beside the model.safetensors"
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="resize and crop within the graph, which then takes pictures as bytes",
    )
    parser.add_weights()
    return parser


def _check(options: Namespace) -> None:
    """UserError for wrong options, before anything heavy is imported."""
    suffix = SUFFIXES[options.format]
    if options.out and (options.out.is_dir() or options.out.suffix != suffix):
        raise UserError(
            f"--out={options.out}: must be a file that ends in {suffix} for "
            f"--format {options.format}; write for example --out model{suffix}"
        )
    if options.format == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
        if missing:
            raise UserError(
                f"--format=onnx: needs {' and '.join(missing)}; run pip install 'smope[onnx]', or "
                "take --format torch"
            )
