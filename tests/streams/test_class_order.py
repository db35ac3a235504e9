from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy
import pytest

from smope.errors import UserError
from smope.streams.class_order import divide_classes, resolve_class_order


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def test_paper_order_is_pythons_seeded_shuffle():
    assert resolve_class_order("paper", names(100), 0)[:5] == (23, 8, 11, 7, 48)
    for seed in (0, 1, 12345):
        expected = list(range(37))
        random.seed(seed)
        random.shuffle(expected)
        assert resolve_class_order("paper", names(37), seed) == tuple(expected)


def test_pilot_order_has_its_own_seed():
    numpy.random.seed(1993)
    expected = tuple(numpy.random.permutation(100).tolist())
    assert (
        resolve_class_order("pilot", names(100), 0)
        == resolve_class_order("pilot", names(100), 7)
        == expected
    )
    assert all(type(i) is int for i in resolve_class_order("pilot", names(100), 0))


def test_sorted_and_explicit_orders():
    assert resolve_class_order("sorted", names(4), 3) == (0, 1, 2, 3)
    assert resolve_class_order([2, 0, 1], names(3), 3) == (2, 0, 1)


def test_orders_by_name_and_from_files(tmp_path):
    assert resolve_class_order(["dog", "cat", 2], ["cat", "dog", "fox"], 0) == (1, 0, 2)
    path = tmp_path / "order.txt"
    path.write_bytes("\ufefffox\r\n\r\n1\r\n cat \r\n".encode())
    assert resolve_class_order(str(path), ["cat", "dog", "fox"], 0) == (2, 1, 0)
    path.write_text("2\n1\n0\n")
    assert resolve_class_order(str(path), ["2", "0", "1"], 0) == (0, 2, 1), (
        "a class called 2 is meant by its name"
    )
    path.write_text("fox\ndog\n")
    with pytest.raises(
        UserError,
        match=r"stream\.class_order=.*order\.txt must hold .*, got 2 without 0 \(cat\); add",
    ):
        resolve_class_order(str(path), ["cat", "dog", "fox"], 0)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"order\.txt: cannot be read as text"):
        resolve_class_order(str(path), ["cat"], 0)
    path.write_bytes("fox\ncafé".encode("latin1"))
    with pytest.raises(UserError, match=r"as text \(line 2: b'caf\\xe9' is not UTF-8 text\)"):
        resolve_class_order(str(path), ["cat"], 0)
    path.write_bytes("café\r\nfox".encode("utf-16"))
    assert resolve_class_order(str(path), ["fox", "café"], 0) == (1, 0)


def every_form(order: list[int], path: Path) -> dict[str, Any]:
    """The ways to write a list of numbers as stream.class_order."""
    path.write_text("".join(f"{number}\n" for number in order))
    return {"list": order, "quoted list": [str(number) for number in order], "file": str(path)}


@pytest.mark.parametrize(
    "class_names",
    [
        ["0", "1", "10", "11", *"23456789"],
        [str(number) for number in range(12)],
        [f"{number:02}" for number in range(12)],
        [f"{number}.0" for number in range(12)],
    ],
)
def test_numbers_are_names_where_all_names_are_numbers(class_names, tmp_path):
    values = [int(float(name)) for name in class_names]
    expected = tuple(values.index(number) for number in range(12))
    for order in every_form(list(range(12)), tmp_path / "order.txt").values():
        assert resolve_class_order(order, class_names, 0) == expected


@pytest.mark.parametrize("form", ["list", "quoted list", "file"])
def test_a_number_is_no_id_where_all_names_are_numbers(form, tmp_path):
    twelve = [str(number) for number in range(1, 13)]
    order = every_form(list(range(12, 0, -1)), tmp_path / "order.txt")[form]
    assert resolve_class_order(order, twelve, 0) == tuple(range(11, -1, -1))
    order = every_form(list(range(12)), tmp_path / "order.txt")[form]
    with pytest.raises(UserError, match=r"each of the 12 classes exactly once, by name, got '?0"):
        resolve_class_order(order, twelve, 0)


@pytest.mark.parametrize("form", ["list", "quoted list", "file"])
def test_numbers_are_ids_among_other_names_unless_a_class_is_called_so(form, tmp_path):
    order = every_form([2, 0, 1], tmp_path / "order.txt")[form]
    assert resolve_class_order(order, ["cat", "dog", "fox"], 0) == (2, 0, 1)
    order = every_form([2, 7, 0], tmp_path / "order.txt")[form]
    assert resolve_class_order(order, ["cat", "7", "fox"], 0) == (2, 1, 0)


def test_names_with_spaces_around_and_in_other_forms_of_unicode(tmp_path):
    decomposed = unicodedata.normalize("NFD", "é")
    path = tmp_path / "order.txt"
    path.write_text(f"cat \ncat\n{decomposed}\n", encoding="utf-8")
    assert resolve_class_order(str(path), ["cat", "cat ", "é"], 0) == (1, 0, 2)


def test_global_random_states_are_untouched():
    python, legacy = random.getstate(), numpy.random.get_state()[1].tobytes()
    for order in ("paper", "pilot"):
        resolve_class_order(order, names(100), 0)
    assert random.getstate() == python and numpy.random.get_state()[1].tobytes() == legacy


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            "alphabetic",
            r"stream\.class_order=alphabetic: no such file; write paper, pilot, sorted, a list of "
            r"class ids or",
        ),
        (
            [0, 1, 3],
            r"stream\.class_order must hold each of the 3 classes exactly once, by name or .*, "
            r"got 3; .*=paper",
        ),
        ([0, 1, -1], r"exactly once, .*got -1"),
        ([0, 1, True], r"exactly once, .*got True"),
        ([0, 1, 2.0], r"exactly once, .*got 2\.0"),
        (["cat", "dog"], r"exactly once, .*got 'cat'; remove it"),
        ([0, 1, 1], r"exactly once, .*got 1 \(class 1\) more than once; remove one"),
        ([0, "class 0"], r"exactly once, .*got 0 \(class 0\) more than once; remove one"),
        ([0, 2], r"exactly once, .*got 2 without 1 \(class 1\); add the missing"),
        ([], r"got 0 without 0"),
    ],
)
def test_wrong_orders_are_refused(order, message):
    with pytest.raises(UserError, match=message):
        resolve_class_order(order, names(3), 0)


def test_sizes():
    assert divide_classes(10, 5, None) == [2] * 5
    assert divide_classes(10, 1, None) == [10]
    assert divide_classes(10, 5, [4, 5, 1]) == [4, 5, 1]


def test_random_sizes_leave_no_task_and_no_class_out():
    drawn = {seed: divide_classes(10, 4, "random", seed) for seed in range(50)}
    assert all(len(sizes) == 4 and sum(sizes) == 10 and min(sizes) >= 1 for sizes in drawn.values())
    assert len({tuple(sizes) for sizes in drawn.values()}) > 10
    assert drawn[7] == divide_classes(10, 4, "random", 7)
    assert divide_classes(3, 3, "random", 0) == [1, 1, 1] and divide_classes(3, 1, "random", 0) == [
        3
    ]


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
            r"stream\.classes_per_task must be a list of whole numbers, each at least 1, got "
            r"\[\]; correct",
        ),
        (5, [10, 0], r"each at least 1, got \[10,0\]"),
        (5, [5, 2.5, 2.5], r"whole numbers, each at least 1, got \[5,2\.5,2\.5\]"),
        (
            5,
            [4, 4],
            r"stream\.classes_per_task must add up to 10, .*got \[4,4\] which adds "
            r"up to 8; correct",
        ),
        (5, [6, 6], r"adds up to 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(num_tasks, classes_per_task, message):
    with pytest.raises(UserError, match=message):
        divide_classes(10, num_tasks, classes_per_task)
