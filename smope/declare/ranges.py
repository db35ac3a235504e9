"""Ranges of numbers and of lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smope.declare.constraint import Constraint


@dataclass(frozen=True)
class AtLeast(Constraint):
    """A whole number from `minimum` on."""

    minimum: int
    example: str = ""

    def __post_init__(self) -> None:
        self._set(f"at least {self.minimum}", self.example or str(self.minimum))

    def holds(self, value: float) -> bool:
        return value >= self.minimum


@dataclass(frozen=True)
class OrAuto(Constraint):
    """A value, or the word auto, which the run replaces before anything reads it."""

    text = "a value or auto"
    example = "auto"
    word = "auto"

    def holds(self, value: Any) -> bool:
        return True


@dataclass(frozen=True)
class Range(Constraint):
    """A number from `minimum` to `maximum`, both included.

    Sizes that take memory or processes have a maximum, so that a typing error ends in a message and
    not in a machine that runs out of memory.
    """

    minimum: float
    maximum: float
    example: str = ""

    def __post_init__(self) -> None:
        text = f"at least {self.minimum} and at most {self.maximum}"
        self._set(text, self.example or str(self.minimum))

    def holds(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum


@dataclass(frozen=True)
class Share(Constraint):
    """A number from 0 to 1, with or without each end."""

    with_0: bool = True
    with_1: bool = True
    names_null = True

    def __post_init__(self) -> None:
        low = "0 or more" if self.with_0 else "above 0"
        high = "at most 1" if self.with_1 else "below 1"
        text = "within 0..1" if self.with_0 and self.with_1 else f"{low} and {high}"
        self._set(text, "0.2")

    def holds(self, value: float) -> bool:
        above = value >= 0 if self.with_0 else value > 0
        below = value <= 1 if self.with_1 else value < 1
        return above and below


@dataclass(frozen=True)
class NotNegative(Constraint):
    """A finite number, 0 or more."""

    text = "a finite number, 0 or more"
    example = "0.0"

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class Positive(Constraint):
    """A finite number above 0."""

    text = "a finite number above 0"
    example = "1.0"

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and value > 0


@dataclass(frozen=True)
class OrderedPair(Constraint):
    """Two numbers a,b with low <= a <= b <= high; low itself is left out unless `with_low`."""

    low: float
    high: float
    with_low: bool = True
    names_null = True

    def __post_init__(self) -> None:
        sign = "<=" if self.with_low else "<"
        text = f"two numbers a,b with {self.low} {sign} a <= b <= {self.high}"
        self._set(text, f"[{self.high},{self.high}]")

    def holds(self, value: Sequence[float]) -> bool:
        if len(value) != 2:
            return False
        first, second = value
        above = first >= self.low if self.with_low else first > self.low
        return above and first <= second <= self.high


@dataclass(frozen=True)
class BlockNumbers(Constraint):
    """Different blocks of a transformer, counted from 0."""

    text = "a list of different block numbers, each 0 or more"
    example = "[0,1,2,3,4]"

    def holds(self, value: Sequence[int]) -> bool:
        return bool(value) and min(value) >= 0 and len(set(value)) == len(value)


@dataclass(frozen=True)
class Sizes(Constraint):
    """A list of sizes; a word that the type allows instead passes."""

    text = "a list of sizes, each 1 or more"
    example = "[4,3,3]"

    def holds(self, value: Sequence[int] | str) -> bool:
        return isinstance(value, str) or (bool(value) and min(value) >= 1)


@dataclass(frozen=True)
class DifferentNames(Constraint):
    """A list in which no name comes twice; numbers count as their digits."""

    text = "a list of different names"
    example = "[photo,sketch]"

    def holds(self, value: Sequence[Any]) -> bool:
        return bool(value) and len(set(map(str, value))) == len(value)


@dataclass(frozen=True)
class Channels(Constraint):
    """Three finite numbers, one for each colour channel; above 0 if `positive`."""

    positive: bool = False

    def __post_init__(self) -> None:
        text = "three numbers above 0" if self.positive else "three finite numbers"
        self._set(text, "[0.5,0.5,0.5]")

    def holds(self, value: Sequence[float]) -> bool:
        if len(value) != 3 or not all(map(math.isfinite, value)):
            return False
        return not self.positive or min(value) > 0
