"""How far the probabilities of runs can be trusted, and whether their logits want another scale.

    python benchmarks/calibration.py RUN...

A RUN is a run directory, or a folder of them, trained with stream.validation_fraction=0.2, so that
nothing is chosen on test images. Prints a Markdown table of the evaluation after the last task: the
mean probability of the predicted class, ECE and the mean negative log-likelihood (NLL, in nats);
then the temperature that has the smallest NLL if all logits are divided by it as well, with its ECE
and NLL. A temperature of 1 says that the logits are right as they are.
"""

from __future__ import annotations

import argparse

import numpy
from gpu_tables import table
from numpy.typing import NDArray
from scipy.special import log_softmax

from smope.analysis import Run, load_runs
from smope.analysis.calibration import expected_calibration_error

TEMPERATURES = 10 ** numpy.arange(-2, 2.51, 0.05)
HEAD = "method, classes, images, accuracy, confidence, ECE, NLL, T, ECE at T, NLL at T"


def scores(logits: NDArray, labels: NDArray, temperature: float) -> tuple[float, float, float]:
    """Mean confidence and ECE in percent, and the mean NLL.

    Args:
        logits: (M, C).
        labels: (M,).
        temperature: Divides the logits.
    """
    logarithms = log_softmax(logits / temperature, axis=1)
    confidence = numpy.exp(logarithms.max(1))
    error = expected_calibration_error(confidence, logits.argmax(1) == labels)
    nll = -logarithms[numpy.arange(len(labels)), labels].mean()
    return 100 * confidence.mean(), 100 * error, nll


def row(run: Run) -> list[str]:
    """The cells of one run; UserError where only the largest logits were recorded."""
    snapshot = run.snapshots.last
    logits, labels = snapshot.logits[snapshot.seen].astype(float), snapshot.labels[snapshot.seen]
    confidence, error, nll = scores(logits, labels, 1.0)
    best = min(TEMPERATURES, key=lambda temperature: scores(logits, labels, temperature)[2])
    _, best_error, best_nll = scores(logits, labels, best)
    accuracy = 100 * (logits.argmax(1) == labels).mean()
    numbers = [f"{value:.1f}" for value in (accuracy, confidence, error)]
    after = [f"{nll:.2f}", f"{best:.2g}", f"{best_error:.1f}", f"{best_nll:.2f}"]
    return [run.label, str(logits.shape[1]), str(len(labels)), *numbers, *after]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    print(table(HEAD.split(", "), map(row, load_runs(*parser.parse_args().runs))))


if __name__ == "__main__":
    main()
