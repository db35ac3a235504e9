"""What `smope predict` prints and writes: lines, a table (CSV), a document (JSON)."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smope.errors import UserError
from smope.serving.predict import UNKNOWN, Classifier, Prediction
from smope.storage.files import write_atomically

MAX_COLUMN_WIDTH = 60
NO_PATH = "-"  # of an image that came through a pipe


def shown_path(path: Path | bytes | None) -> str:
    """The path of an image; `-` for one without a path."""
    return str(path) if isinstance(path, Path) else NO_PATH


def printed(
    predictions: Iterable[Prediction], inputs: Sequence[Path | bytes], with_score: bool = False
) -> Iterator[Prediction]:
    """Print each prediction as soon as it is known, and yield it.

    Args:
        predictions: The predictions.
        inputs: The images; the longest path decides the width of the first column.
        with_score: Whether each line ends with the unknown score.
    """
    width = min(MAX_COLUMN_WIDTH, max(len(shown_path(path)) for path in inputs))
    for prediction in predictions:
        guesses = "  ".join(
            f"{name}  {100 * probability:6.2f} %" for name, probability in prediction.top
        )
        if prediction.is_unknown:
            guesses = f"{UNKNOWN}  best guess: {guesses}"
        if with_score:
            guesses = f"{guesses}  unknown score {prediction.unknown_score:.2f}"
        print(f"{shown_path(prediction.path):<{width}}  {guesses}", flush=True)
        yield prediction


@dataclass(frozen=True)
class Table:
    """The columns path, class, probability, and class_2, probability_2 and so on for the next best.

    With a lowest probability there is best_guess too, the best class where `class` is `unknown`;
    then, and where it is wanted, unknown_score.

    Attributes:
        top: How many classes each image has.
        with_unknown: Whether there is a lowest probability.
        with_score: Whether unknown_score is wanted without one.
    """

    top: int
    with_unknown: bool
    with_score: bool = False

    @property
    def head(self) -> list[str]:
        ranks = ["", *(f"_{rank}" for rank in range(2, self.top + 1))]
        names = ["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))]
        names += ["best_guess"] if self.with_unknown else []
        return [*names, *(["unknown_score"] if self.with_unknown or self.with_score else [])]

    def row(self, prediction: Prediction) -> list[str]:
        """The cells of an image, in the order of `head`."""
        names = [prediction.class_name, *(guess.class_name for guess in prediction.top[1:])]
        guesses = zip(names, prediction.top, strict=True)
        cells = [cell for name, guess in guesses for cell in (name, f"{guess.probability:.6f}")]
        if self.with_unknown:
            cells.append(prediction.top[0].class_name)
        if self.with_unknown or self.with_score:
            cells.append(f"{prediction.unknown_score:.6f}")
        return [shown_path(prediction.path), *cells]

    def printed(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Print the table, each row as soon as it is known, and yield the predictions."""
        _print_bytes(_csv_line(self.head))
        for prediction in predictions:
            _print_bytes(_csv_line(self.row(prediction)))
            yield prediction

    def write(self, path: Path, predictions: Iterable[Prediction]) -> None:
        """Write the table to a file; OSError if that is not possible."""
        lines = [self.head, *map(self.row, predictions)]
        try:
            write_atomically(path, b"".join(map(_csv_line, lines)))
        except OSError as error:
            raise OSError(
                f"--csv={path}: cannot be written ({error.strerror}); name another file"
            ) from error


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode(errors="surrogateescape")


def _print_bytes(content: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def document(
    classifier: Classifier, predictions: Iterable[Prediction], broken: Iterable[UserError]
) -> dict[str, object]:
    """What --json prints.

    Args:
        classifier: The model.
        predictions: Its predictions.
        broken: The errors of images that could not be read.
    """
    artefact = classifier.artefact
    return {
        "classes": list(classifier.class_names),
        "tasks_done": artefact.tasks_done,
        "config_hash": artefact.config_hash,
        "images": [_entry(prediction) for prediction in predictions],
        "broken": [str(error) for error in broken],
    }


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
