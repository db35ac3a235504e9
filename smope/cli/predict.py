"""`smope predict RUN IMAGE ...`: classify images with the model of a run."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smope.cli.chosen_run import chosen_model
from smope.cli.parser import Parser
from smope.errors import UserError
from smope.run.quick_import import quick_imports
from smope.training.device_presence import refuse_absent_device

if TYPE_CHECKING:
    from smope.serving.predict import Classifier
    from smope.streams.layouts.listing import LeftOut

STANDARD_STREAM = Path("-")  # standard input as IMAGE, standard output as the file of --csv
EPILOG = """\
Each line is one image: file, class, probability. Only classes that the run has seen are considered.
A probability is the softmax over their logits and may not be calibrated. Of a folder, the image
files in it and below are classified, in the order of their names. An image that cannot be read is
reported and left out; the exit code is then 1. Pictures in formats that are not read are counted.

RUN may be a folder with several runs, of which the latest finished one is taken, or the word
latest, which is that of runs/, or hf://OWNER/NAME, a model on the Hugging Face Hub. IMAGE may be -,
for standard input: an image, or paths one a line (or separated by zero bytes).

--min-probability P: an image whose best class is less probable than P is `unknown`, and its best
guess stands in a further column. Try values on images whose class you know.

columns of the table (--csv): path, class, probability; class_2, probability_2, ... with --top;
best_guess and unknown_score with --min-probability, unknown_score with --unknown. It is
the largest logit with a minus sign: the higher, the less an image is like any class.

examples:
  smope predict latest photo.jpg                           the class of one image
  smope predict runs/demo/2026-01-31_12-00-00 photos --top 3 --csv classes.csv
                                                           a folder, three classes each, as a table
  find photos -name '*.jpg' | smope predict latest - --csv - > classes.csv
  smope predict latest photos --min-probability 0.8        and `unknown` below 80 %
  smope predict model.safetensors photos --weights vit.safetensors
                                                           on another machine: the model's file and
                                                           the backbone's"""


def run(argv: Sequence[str]) -> int:
    """Exit code 1 if an image could not be read."""
    options = _parser().parse_intermixed_args(argv)
    _check(options)
    refuse_absent_device(options.device, "--device")

    from smope.serving.standard_input import find_inputs

    run_path = chosen_model(options.run, "RUN")
    has_pipe = STANDARD_STREAM in options.images
    not_read: Counter[str] = Counter()

    def report_not_read(left_out: LeftOut) -> None:
        not_read.update(left_out.suffix_counts)
        for text in left_out.warnings():
            print(text, file=sys.stderr)

    content = sys.stdin.buffer.read() if has_pipe else None
    inputs = find_inputs(options.images, content, report_not_read)
    from smope.cli.predict_output import Table, document, printed

    with quick_imports():
        from smope.serving.predict import load

    classifier = load(run_path, options.device, options.weights)
    broken: list[UserError] = []

    def report_broken(error: UserError) -> None:
        broken.append(error)
        print(error, file=sys.stderr)

    stream = classifier.predict(
        inputs,
        top=options.top,
        min_probability=options.min_probability or 0.0,
        on_broken=report_broken,
    )
    table = Table(
        options.top, with_unknown=options.min_probability is not None, with_score=options.unknown
    )
    if not options.json:
        _warn_of_unfinished_run(classifier)
    if options.json:
        predictions = list(stream)
        values = document(classifier, predictions, broken) | {"not_read": dict(not_read)}
        print(json.dumps(values, indent=1))
    elif options.csv == STANDARD_STREAM:
        predictions = list(table.printed(stream))
    else:
        predictions = list(printed(stream, inputs, options.unknown))
    if options.csv and options.csv != STANDARD_STREAM:
        table.write(options.csv, predictions)
    if broken:
        print(f"{len(broken)} of {len(inputs)} images could not be read", file=sys.stderr)
    return 1 if broken or not_read else 0


def _parser() -> Parser:
    parser = Parser(
        "smope predict",
        "Classify images with the model of a run; its data set is not needed.",
        EPILOG,
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run directory, its model.safetensors, a folder with runs, latest, or "
        "hf://OWNER/NAME",
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        type=Path,
        help="an image file, a folder of them, or - for standard input",
    )
    parser.add_argument(
        "--top", metavar="K", type=int, default=1, help="the K most probable classes (default: 1)"
    )
    parser.add_argument(
        "--min-probability",
        metavar="P",
        type=float,
        help="an image whose best class is less probable is unknown (0 to 1; default: none is)",
    )
    parser.add_argument(
        "--unknown",
        action="store_true",
        help="add the unknown score, which is high for images that are like no class",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=Path,
        help="write a table as well; - prints it instead of lines",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document instead of lines"
    )
    parser.add_device()
    parser.add_weights()
    return parser


def _check(options: Namespace) -> None:
    """UserError for wrong options, before anything heavy is imported."""
    if options.top < 1:
        raise UserError(
            f"--top={options.top}: must be at least 1; leave it out for the best class alone"
        )
    lowest = options.min_probability
    if lowest is not None and not 0 <= lowest <= 1:
        raise UserError(
            f"--min-probability={lowest:g}: must be in 0..1; write for example "
            "--min-probability 0.8 for 80 %"
        )
    if options.images.count(STANDARD_STREAM) > 1:
        raise UserError("IMAGE=-: standard input can be read once; leave one of them out")
    if options.csv == STANDARD_STREAM and options.json:
        raise UserError("--csv - and --json both print; leave one of them out")
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
