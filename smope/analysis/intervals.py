"""95 % intervals of the final average accuracy: over test images, and over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from scipy.stats import norm, t

from smope.analysis.run import Run

CONFIDENCE = 0.95
Interval = tuple[float, float]


def wilson_interval(right: float, images: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927); it lies within 0 and 1.

    Args:
        right: The measured share.
        images: Of how many images.
    """
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    centre = (right + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * sqrt(right * (1 - right) / images + (z / (2 * images)) ** 2) / (1 + z**2 / images)
    return max(0.0, centre - half), min(1.0, centre + half)


def over_images(run: Run) -> Interval | None:
    """Where the final average accuracy of a run could lie with other test images.

    Wilson's intervals of the tasks, combined as independent (Zou and Donner 2008): the distances
    of their ends from the accuracies add up as squares.

    Returns:
        Low and high, fractions; None if the run did not record how many test images it had.
    """
    row = run.matrix[-1]
    images = [task.get("test") for task in run.record.get("tasks", [])][: len(row)]
    if len(images) < len(row) or not all(images):
        return None
    mean = sum(row) / len(row)
    ends = [wilson_interval(value, count) for value, count in zip(row, images, strict=True)]
    below = sum((value - low) ** 2 for value, (low, _) in zip(row, ends, strict=True))
    above = sum((high - value) ** 2 for value, (_, high) in zip(row, ends, strict=True))
    return mean - sqrt(below) / len(row), mean + sqrt(above) / len(row)


def over_seeds(values: Sequence[float]) -> Interval | None:
    """The interval of the mean of fractions over seeds.

    Returns:
        Low and high; None for fewer than three values, whose interval would say nothing.
    """
    return student_interval(values, 1.0) if len(values) > 2 else None


def student_interval(values: Sequence[float], highest: float) -> Interval | None:
    """The interval of a mean: mean ± t(n - 1) s / sqrt(n), s with ddof 1.

    It is cut to 0..highest, where the mean must be: values outside cannot be it, so the interval
    holds it as often as before (Mandelkern 2002, Statistical Science 17(2), on bounded parameters).

    Args:
        values: n measurements, between 0 and `highest`.
        highest: 1 for fractions, 100 for percent.

    Returns:
        Low and high; None for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    error = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return max(0.0, mean - half), min(highest, mean + half)
