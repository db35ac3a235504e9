"""What `smope predict` prints as soon as it is known: lines, a table (CSV), a document (JSON)."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from smope.cli.predict_table import Table, csv_line, shown_path
from smope.console.progress import above_bars
from smope.serving.predict import Classifier
from smope.serving.prediction import UNKNOWN, Prediction

MAX_COLUMN_WIDTH = 60
SEVERAL = 5  # images of which one at least should be known


def printed_lines(
    predictions: Iterable[Prediction], longest_path: int, with_score: bool = False
) -> Iterator[Prediction]:
    """Print a line for each prediction, and yield it.

    Args:
        predictions: The predictions.
        longest_path: Letters of the longest path, which decide the width of the first column.
        with_score: Whether each line ends with the unknown score.
    """
    width = min(MAX_COLUMN_WIDTH, longest_path)
    for prediction in predictions:
        guesses = "  ".join(
            f"{name}  {100 * probability:6.2f} %" for name, probability in prediction.top
        )
        if prediction.is_unknown:
            guesses = f"{UNKNOWN}  best guess: {guesses}"
        if with_score:
            guesses = f"{guesses}  unknown score {prediction.unknown_score:.2f}"
        with above_bars():
            print(f"{shown_path(prediction.path):<{width}}  {guesses}", flush=True)
        yield prediction


def printed_table(table: Table, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Print a row for each prediction, and yield it.

    Args:
        table: Its columns.
        predictions: The predictions.
    """
    _print_bytes(csv_line(table.head))
    for prediction in predictions:
        _print_bytes(csv_line(table.row(prediction)))
        yield prediction


def judged(predictions: Iterable[Prediction], min_probability: float) -> Iterator[Prediction]:
    """The predictions; and at their end a remark if there are several and all are unknown.

    Args:
        predictions: The predictions.
        min_probability: That of --min-probability.
    """
    count, highest = 0, 0.0
    for prediction in predictions:
        count, highest = count + 1, max(highest, prediction.probability)
        yield prediction
    if count >= SEVERAL and highest < min_probability:
        print(
            f"all {count:,} images are unknown: the highest probability is {highest:.2f}, and "
            f"--min-probability is {min_probability:g}; try a limit on images whose class you know",
            file=sys.stderr,
        )


def _print_bytes(content: bytes) -> None:
    with above_bars():
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def printed_document(
    classifier: Classifier,
    predictions: Iterable[Prediction],
    broken: Sequence[str],
    not_read: Mapping[str, int],
) -> Iterator[Prediction]:
    """Print one JSON document, and yield each prediction once it is printed.

    Args:
        classifier: The model.
        predictions: Its predictions.
        broken: The errors of images that could not be read; read when the predictions end.
        not_read: How many pictures are in formats that are not read, by suffix.
    """
    artefact = classifier.artefact
    head = {
        "classes": list(classifier.class_names),
        "tasks_done": artefact.tasks_done,
        "config_hash": artefact.config_hash,
    }
    print(json.dumps(head, indent=1).removesuffix("\n}") + ',\n "images": [', end="")
    separator = "\n"
    for prediction in predictions:
        entry = json.dumps(_entry(prediction), indent=1)
        with above_bars():
            print(separator + textwrap.indent(entry, "  "), end="")
        separator = ",\n"
        yield prediction
    tail = json.dumps({"broken": list(broken), "not_read": dict(not_read)}, indent=1)
    print("]," if separator == "\n" else "\n ],", tail.removeprefix("{"), sep="")


def _entry(prediction: Prediction) -> dict[str, object]:
    return {
        "path": shown_path(prediction.path),
        "class": prediction.class_name,
        "probability": prediction.probability,
        "unknown": prediction.is_unknown,
        "unknown_score": prediction.unknown_score,
        "top": [
            {"class": name, "probability": probability} for name, probability in prediction.top
        ],
    }
