"""`smope predict RUN IMAGE ...`: classify images with the model of a run."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smope.cli.chosen_run import chosen_model
from smope.cli.parser import Parser, check_min_probability
from smope.console.progress import Bar, above_bars, image_bar
from smope.errors import UserError
from smope.run.quick_import import quick_imports
from smope.training.device_presence import refuse_absent_device

if TYPE_CHECKING:
    from smope.cli.predict_table import Finished, Table, TableFile
    from smope.serving.predict import Classifier
    from smope.serving.standard_input import Inputs

MOST_WORKERS = 256
PARQUET_SUFFIX = ".parquet"
STANDARD_STREAM = Path("-")  # standard input as IMAGE, standard output as the file of --csv
EPILOG = """\
Each line is one image: file, class, probability. Only classes that the run has seen are considered.
A probability is the softmax over their logits; the run's report says how far it can be trusted. Of
a folder, the image files in it and below are classified, in the order of their names. An image that
cannot be read is reported and left out; the exit code is then 1. Pictures in formats that are not
read are counted.

RUN may be a folder with several runs, of which the latest finished one is taken, or the word
latest, which is that of runs/, or hf://OWNER/NAME, a model on the Hugging Face Hub. IMAGE may be -,
for standard input: an image, or paths one a line (or separated by zero bytes).

--min-probability P: an image whose best class is less probable than P is `unknown`, and its best
guess stands in a further column. Try values on images whose class you know.

Any number of images can be classified: memory does not grow with them but for the names in the
largest folder. The table is written as images are classified, and --resume continues it after an
interruption, however it came, if the model and --top, --min-probability and --unknown are those of
before. FILE.json, beside the table, has them on record. Rows of a Parquet file are in FILE.part
until all are there.

columns of the table: path, class, probability; class_2, probability_2, ... with --top; best_guess
and unknown_score with --min-probability, unknown_score with --unknown. It is the largest logit with
a minus sign: the higher, the less an image is like any class.

examples:
  smope predict latest photo.jpg                           the class of one image
  smope predict runs/demo/2026-01-31_12-00-00 photos --top 3 --csv classes.csv
                                                           a folder, three classes each, as a table
  find photos -name '*.jpg' | smope predict latest - --csv - > classes.csv
  smope predict latest photos --min-probability 0.8        and `unknown` below 80 %
  smope predict latest photos --csv classes.csv --resume   what classes.csv lacks
  smope predict model.safetensors photos --weights vit.safetensors
                                                           on another machine: the model's file and
                                                           the backbone's"""


def run(argv: Sequence[str]) -> int:
    """Exit code 1 if an image could not be read."""
    options = _parser().parse_intermixed_args(argv)
    _check(options)
    refuse_absent_device(options.device, "--device")

    from smope.serving.standard_input import Inputs

    run_path = chosen_model(options.run, "RUN")
    has_pipe = STANDARD_STREAM in options.images
    inputs = Inputs(options.images, sys.stdin.buffer.read() if has_pipe else None)
    not_read = inputs.survey()
    if options.resume and inputs.has_piped_image:
        raise UserError("--resume: an image from a pipe has no path; name its file")
    for text in not_read.warnings():
        print(text, file=sys.stderr)
    with quick_imports():
        from smope.serving.predict import load

    classifier = load(run_path, options.device, options.weights)
    if not options.json:
        _warn_of_unfinished_run(classifier)
    broken = _classify(classifier, inputs, options, not_read.suffix_counts)
    if broken:
        print(f"{broken} of {inputs.count} images could not be read", file=sys.stderr)
    return 1 if broken or not_read.suffix_counts else 0


def _classify(
    classifier: Classifier, inputs: Inputs, options: Namespace, not_read: Mapping[str, int]
) -> int:
    """Print and write the predictions, each as soon as it is known.

    Args:
        classifier: The model.
        inputs: The images.
        options: Of the command.
        not_read: For the JSON document.

    Returns:
        How many images could not be read.
    """
    from smope.cli.predict_output import judged, printed_document, printed_lines, printed_table
    from smope.cli.predict_table import Finished, Table

    table = Table(
        options.top, with_unknown=options.min_probability is not None, with_score=options.unknown
    )
    finished, broken, count = Finished(), list[str](), 0
    with image_bar(inputs.count, "images") as bar:

        def report_broken(error: UserError) -> None:
            nonlocal count
            count += 1
            if options.json:
                broken.append(str(error))
            with above_bars():
                print(error, file=sys.stderr)
            bar.update()

        predictions = classifier.predict(
            _unfinished(inputs, finished, bar),
            top=options.top,
            min_probability=options.min_probability or 0.0,
            on_broken=report_broken,
            workers=options.workers,
        )
        if options.min_probability:
            predictions = judged(predictions, options.min_probability)
        if options.json:
            printed = printed_document(classifier, predictions, broken, not_read)
        elif options.csv == STANDARD_STREAM:
            printed = printed_table(table, predictions)
        else:
            printed = printed_lines(predictions, inputs.longest_path, options.unknown)
        with _table_file(classifier, table, options, finished) as file:
            for prediction in printed:
                if file is not None:
                    file.add(prediction)
                bar.update()
    return count


def _unfinished(inputs: Inputs, finished: Finished, bar: Bar) -> Iterator[Path | bytes]:
    """The images that the table has no row of."""
    for image in inputs:
        if len(finished) and str(image) in finished:
            bar.skip()
        else:
            yield image


@contextmanager
def _table_file(
    classifier: Classifier, table: Table, options: Namespace, finished: Finished
) -> Iterator[TableFile | None]:
    """The table that --csv or --parquet names, if they do.

    Args:
        classifier: The model.
        table: The columns.
        options: Of the command.
        finished: Filled with the paths that the table has rows of.
    """
    path = _table_path(options)
    if path is None:
        yield None
        return
    from smope.cli.predict_table import TableFile
    from smope.run.artefact import sha256

    made_by = {
        "the model of sha256": sha256(classifier.artefact),
        "--top": options.top,
        "--min-probability": options.min_probability,
        "--unknown": options.unknown,
    }
    file = TableFile(path, _table_key(options), table, _is_parquet(options), made_by)
    try:
        with file.opened(options.resume, finished):
            if len(finished):
                print(f"{path}: {len(finished):,} images are there already", file=sys.stderr)
            yield file
    except KeyboardInterrupt:
        print(f"{path}: is kept as far as it came; --resume continues it", file=sys.stderr)
        raise


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
    parser.add_min_probability()
    parser.add_argument(
        "--unknown",
        action="store_true",
        help="add the unknown score, which is high for images that are like no class",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=Path,
        help="write a table as well; - prints it instead of lines; a name that ends in .parquet "
        "makes it a Parquet file",
    )
    parser.add_argument(
        "--parquet", metavar="FILE", type=Path, help="write a table as a Parquet file as well"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows that the table has, and classify the other images",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="threads that decode images (default: one for each CPU core, 16 at most)",
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
    check_min_probability(options.min_probability)
    if options.images.count(STANDARD_STREAM) > 1:
        raise UserError("IMAGE=-: standard input can be read once; leave one of them out")
    if options.csv == STANDARD_STREAM and options.json:
        raise UserError("--csv - and --json both print; leave one of them out")
    if options.workers is not None and not 1 <= options.workers <= MOST_WORKERS:
        raise UserError(
            f"--workers={options.workers}: must be in 1..{MOST_WORKERS}; leave it out for the "
            "number of cores"
        )
    _check_table(options)


def _check_table(options: Namespace) -> None:
    if options.csv and options.parquet:
        raise UserError("--csv and --parquet: a table is written once; leave one of them out")
    path = _table_path(options)
    if path is None and options.resume:
        raise UserError("--resume: continues a table; name it with --csv FILE or --parquet FILE")
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(
            f"{_table_key(options)}: must be a file in a folder that is there; write for example "
            "--csv out.csv"
        )
    if _is_parquet(options) and not importlib.util.find_spec("pyarrow"):
        raise UserError(
            f"{_table_key(options)}: needs pyarrow; run pip install 'smope[parquet]', or write .csv"
        )


def _table_path(options: Namespace) -> Path | None:
    """The file of the table; None if there is none, or it is printed."""
    return options.parquet or (None if options.csv == STANDARD_STREAM else options.csv)


def _table_key(options: Namespace) -> str:
    """What errors call the table."""
    return f"--parquet={options.parquet}" if options.parquet else f"--csv={options.csv}"


def _is_parquet(options: Namespace) -> bool:
    return bool(options.parquet or (options.csv and options.csv.suffix == PARQUET_SUFFIX))


def _warn_of_unfinished_run(classifier: Classifier) -> None:
    artefact = classifier.artefact
    if artefact.tasks_done < artefact.total_tasks:
        print(
            f"{artefact.tasks_done} of {artefact.total_tasks} tasks are learned: "
            f"{len(classifier.class_names)} of {artefact.num_classes} classes can be predicted",
            file=sys.stderr,
        )
