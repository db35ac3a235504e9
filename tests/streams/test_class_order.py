from __future__ import annotations

import random

import numpy
import pytest

from smope.errors import UserError
from smope.streams.class_order import divide_classes, resolve_class_order


def test_paper_order_is_pythons_seeded_shuffle():
    assert resolve_class_order("paper", 100, 0)[:5] == (23, 8, 11, 7, 48)
    for seed in (0, 1, 12345):
        expected = list(range(37))
        random.seed(seed)
        random.shuffle(expected)
        assert resolve_class_order("paper", 37, seed) == tuple(expected)


def test_pilot_order_has_its_own_seed():
    numpy.random.seed(1993)
    expected = tuple(numpy.random.permutation(100).tolist())
    assert resolve_class_order("pilot", 100, 0) == resolve_class_order("pilot", 100, 7) == expected
    assert all(type(i) is int for i in resolve_class_order("pilot", 100, 0))


def test_sorted_and_explicit_orders():
    assert resolve_class_order("sorted", 4, 3) == (0, 1, 2, 3)
    assert resolve_class_order([2, 0, 1], 3, 3) == (2, 0, 1)


def test_global_random_states_are_untouched():
    python, legacy = random.getstate(), numpy.random.get_state()[1].tobytes()
    for order in ("paper", "pilot"):
        resolve_class_order(order, 100, 0)
    assert random.getstate() == python and numpy.random.get_state()[1].tobytes() == legacy


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            "alphabetic",
            r"stream\.class_order must be paper, pilot, sorted or a list of .*'alphabetic'; choose",
        ),
        (
            [0, 1, 3],
            r"stream\.class_order must hold each class id 0\.\.2 exactly once, got 3; .*class_order=paper",
        ),
        ([0, 1, -1], r"exactly once, got -1"),
        ([0, 1, True], r"exactly once, got True"),
        ([0, 1, 2.0], r"exactly once, got 2\.0"),
        ([0, 1, 1], r"exactly once, got 1 more than once; remove one"),
        ([0, 2], r"exactly once, got 2 ids without 1; add the missing"),
        ([], r"got 0 ids without 0"),
    ],
)
def test_wrong_orders_are_refused(order, message):
    with pytest.raises(UserError, match=message):
        resolve_class_order(order, 3, 0)


def test_sizes():
    assert divide_classes(10, 5, None) == [2] * 5
    assert divide_classes(10, 1, None) == [10]
    assert divide_classes(10, 5, [4, 5, 1]) == [4, 5, 1]


@pytest.mark.parametrize(
    ("num_tasks", "classes_per_task", "message"),
    [
        (0, None, r"stream\.num_tasks must be in 1\.\.10, the number of classes, got 0; choose"),
        (11, None, r"must be in 1\.\.10, the number of classes, got 11"),
        (
            3,
            None,
            r"stream\.num_tasks=3 does not divide the 10 classes evenly; use one of 1, 2, 5, 10, "
            r"or say how with stream\.classes_per_task=\[4,3,3\]",
        ),
        (
            5,
            [],
            r"stream\.classes_per_task must be a list of whole numbers, each at least 1, got \[\]; correct",
        ),
        (5, [10, 0], r"each at least 1, got \[10,0\]"),
        (5, [5, 2.5, 2.5], r"whole numbers, each at least 1, got \[5,2\.5,2\.5\]"),
        (5, [4, 4], r"stream\.classes_per_task must add up to 10, .*got \[4,4\] which adds up to 8; correct"),
        (5, [6, 6], r"adds up to 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(num_tasks, classes_per_task, message):
    with pytest.raises(UserError, match=message):
        divide_classes(10, num_tasks, classes_per_task)
