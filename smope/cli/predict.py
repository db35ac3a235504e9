"""`smope predict RUN IMAGE ...`: classify images with the model of a run."""

from __future__ import annotations

import csv
import io
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smope.cli.parser import Parser
from smope.errors import UserError

if TYPE_CHECKING:
    from smope.serving.predict import Classifier, Prediction

MAX_COLUMN_WIDTH = 60
EPILOG = """\
Each line is one image: file, class, probability. Only classes that the run has seen are considered.
A probability is the softmax over their logits and may not be calibrated. Of a folder, the image
files in it and below are classified, in the order of their names. An image that cannot be read is
reported and left out; the exit code is then 1.

examples:
  smope predict runs/demo/2026-01-31_12-00-00 photo.jpg    the class of one image
  smope predict RUN photos --top 3 --csv classes.csv       a folder, three classes each, as a table
  smope predict model.safetensors photos --weights vit.safetensors
                                                           on another machine: the model's file and
                                                           the backbone's"""


def run(argv: Sequence[str]) -> int:
    """Exit code 1 if an image could not be read."""
    options = _parser().parse_intermixed_args(argv)
    _check(options)

    from smope.serving.files import find_images
    from smope.storage.run_directory import check_run

    check_run(options.run)
    files = find_images(options.images)
    from smope.serving.predict import load

    classifier = load(options.run, options.device, options.weights)
    broken: list[UserError] = []

    def report_broken(error: UserError) -> None:
        broken.append(error)
        print(error, file=sys.stderr)

    stream = classifier.predict(files, top=options.top, on_broken=report_broken)
    if options.json:
        predictions = list(stream)
        _print(json.dumps(_document(classifier, predictions, broken), indent=1))
    else:
        _warn_of_unfinished_run(classifier)
        predictions = list(_printed(stream, files))
    if options.csv:
        _write_table(options.csv, predictions, options.top)
    if broken:
        print(f"{len(broken)} of {len(files)} images could not be read", file=sys.stderr)
    return 1 if broken else 0


def _parser() -> Parser:
    parser = Parser(
        "smope predict",
        "Classify images with the model of a run; its data set is not needed.",
        EPILOG,
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run directory, or its model.safetensors"
    )
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", type=Path, help="an image file, or a folder of them"
    )
    parser.add_argument(
        "--top", metavar="K", type=int, default=1, help="the K most probable classes (default: 1)"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write a table as well")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document instead of lines"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="where the backbone's weights are now (default: where the run found them)",
    )
    return parser


def _check(options: Namespace) -> None:
    """UserError for wrong options, before anything heavy is imported."""
    if options.top < 1:
        raise UserError(
            f"--top={options.top}: must be at least 1; leave it out for the best class alone"
        )
    if options.csv and (options.csv.is_dir() or not options.csv.parent.is_dir()):
        raise UserError(
            f"--csv={options.csv}: must be a file in a folder that is there; write for example "
            "--csv out.csv"
        )


def _warn_of_unfinished_run(classifier: Classifier) -> None:
    artefact = classifier.artefact
    if artefact.tasks_done < artefact.total_tasks:
        print(
            f"{artefact.tasks_done} of {artefact.total_tasks} tasks are learned: "
            f"{len(classifier.class_names)} of {artefact.num_classes} classes can be predicted",
            file=sys.stderr,
        )


def _printed(predictions: Iterable[Prediction], files: Sequence[Path]) -> Iterator[Prediction]:
    """Yield predictions, and print each on a line as soon as it is known."""
    width = min(MAX_COLUMN_WIDTH, max(len(str(file)) for file in files))
    for prediction in predictions:
        guesses = (f"{name}  {100 * probability:6.2f} %" for name, probability in prediction.top)
        _print(f"{prediction.path!s:<{width}}  {'  '.join(guesses)}")
        yield prediction


def _print(text: str) -> None:
    # a file name need not be valid text
    print(text.encode(errors="backslashreplace").decode(), flush=True)


def _document(
    classifier: Classifier, predictions: Iterable[Prediction], broken: Iterable[UserError]
) -> dict[str, object]:
    artefact = classifier.artefact
    return {
        "classes": list(classifier.class_names),
        "tasks_done": artefact.tasks_done,
        "config_hash": artefact.config_hash,
        "images": [
            {
                "path": str(prediction.path),
                "class": prediction.class_name,
                "probability": prediction.probability,
                "top": [
                    {"class": name, "probability": probability}
                    for name, probability in prediction.top
                ],
            }
            for prediction in predictions
        ],
        "broken": [str(error) for error in broken],
    }


def _write_table(path: Path, predictions: Iterable[Prediction], top: int) -> None:
    """Columns path, class, probability, and class_2, probability_2 and so on for the next best."""
    from smope.storage.files import write_atomically

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    writer.writerow(
        ["path", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))]
    )
    for prediction in predictions:
        guesses = [
            value for name, probability in prediction.top for value in (name, f"{probability:.6f}")
        ]
        writer.writerow([prediction.path, *guesses])
    try:
        write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
    except OSError as error:
        raise OSError(
            f"--csv={path}: cannot be written ({error.strerror}); name another file"
        ) from error
