"""Each constraint at its ends, and the words that errors have for it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from smope.declare.constraint import Constraint
from smope.declare.ranges import (
    AtLeast,
    BlockNumbers,
    Channels,
    DifferentNames,
    NotNegative,
    OrderedPair,
    Positive,
    Range,
    Share,
    Sizes,
)
from smope.declare.texts import Device, FolderName, NameOf, PathTo

NAN, INF = math.nan, math.inf
CASES: list[tuple[Constraint, str, list[Any], list[Any]]] = [
    (AtLeast(1), "at least 1", [1, 10**9], [0, -5]),
    (Range(1, 100), "at least 1 and at most 100", [1, 100], [0, 101, NAN]),
    (NotNegative(), "a finite number, 0 or more", [0.0, 5], [-0.1, NAN, INF]),
    (Positive(), "a finite number above 0", [1e-9, 5], [0.0, -1, NAN, INF]),
    (Share(), "within 0..1", [0, 1], [-0.1, 1.1, NAN]),
    (Share(with_0=False), "above 0 and at most 1", [0.1, 1], [0, NAN]),
    (Share(with_1=False), "0 or more and below 1", [0, 0.9], [1]),
    (Share(with_0=False, with_1=False), "above 0 and below 1", [0.5], [0, 1]),
    (OrderedPair(-3, 3), "a,b with -3 <= a <= b <= 3", [[-3, 3], [1, 1]], [[1], [2, 1], [-4, 0]]),
    (OrderedPair(0, 1, with_low=False), "a,b with 0 < a <= b <= 1", [[0.1, 1]], [[0, 1], [NAN, 1]]),
    (BlockNumbers(), "a list of different block numbers", [[0], [3, 1]], [[], [1, 1], [-1]]),
    (Sizes(), "a list of sizes, each 1 or more", [[1, 2], "random"], [[], [0, 1]]),
    (DifferentNames(), "a list of different names", [["a", 1]], [[], ["1", 1]]),
    (Channels(), "three finite numbers", [[0, 0, 0]], [[1, 1], [1, 1, NAN]]),
    (Channels(positive=True), "three numbers above 0", [[1, 1, 1]], [[0, 1, 1]]),
    (PathTo(), "a path", ["x", ["no text"]], ["", "  "]),
    (PathTo(keywords=("hub", "random")), "hub, random or a path", ["hub"], [""]),
    (NameOf("model"), "the name of a model", ["x"], ["", " "]),
    (FolderName(), "usable as a folder's name", ["a b"], ["", "..", "a/b", "a\nb"]),
    (Device(), "auto, cpu, cuda, cuda:N or mps", ["auto", "cuda:1"], ["gpu", "cuda:", "CPU"]),
]


@pytest.mark.parametrize(("constraint", "text", "good", "bad"), CASES, ids=lambda case: str(case))
def test_constraint(constraint: Constraint, text: str, good: list[Any], bad: list[Any]) -> None:
    assert text in constraint.text
    assert constraint.example
    assert all(constraint.holds(value) for value in good)
    assert not any(constraint.holds(value) for value in bad)
