from __future__ import annotations

import unicodedata

import pytest

from smope.streams.layouts.names import NameIndex, as_text, in_order, look_alike, warning_of

ORDERS = [
    ["1", "9", "10"],
    ["-10", "-9", "0", "01", "1"],
    ["0.0", "1.0", "2.0", "10.0"],
    ["0.25", "0.5", "1"],
    ["9", "10", "a"],
    ["img2", "img10", "img10a", "img10b"],
    ["class 2 of 3", "class 2 of 12", "class 10 of 3"],
    ["B", "a", "b"],
    ["1", "²"],
    ["1", "9" * 5000],
    ["n01443537", "n01484850", "n02051845"],
    [],
]


@pytest.mark.parametrize("ordered", ORDERS)
def test_natural_order(ordered: list[str]) -> None:
    assert in_order(ordered) == in_order(reversed(ordered)) == ordered


def test_text_is_composed_and_valid() -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    assert as_text(decomposed) == as_text("café") == "café" != decomposed
    raw = b"caf\xe9".decode(errors="surrogateescape")
    assert as_text(raw) == "caf\\xe9"
    as_text(raw).encode()


@pytest.mark.parametrize(
    ("names", "items", "indices"),
    [
        (["2", "0", "1"], [0, "0", " 1", "1.0", 2, 3, "x"], [1, 1, 2, 2, 0, None, None]),
        (["01", "02"], [1, "2", "02", 3], [0, 1, 1, None]),
        (["0.0", "1.0"], [0, 1, "1", "1.0"], [0, 1, 1, 1]),
        (["1", "01", "cat"], [1, "01", "1.0"], [0, 1, None]),
        (["01", "1.0", "2"], [1, 2, "01"], [None, 2, 0]),
        (["cat", "7"], [7, "7", 0, True, 7.0, "cat "], [1, 1, None, None, None, 0]),
        (["cat ", "cat"], ["cat", "cat "], [1, 0]),
        ([unicodedata.normalize("NFD", "é")], ["é"], [0]),
    ],
)
def test_numbers_and_texts_mean_names(names: list[str], items: list, indices: list) -> None:
    assert [NameIndex(names).find(item) for item in items] == indices


@pytest.mark.parametrize(
    "group",
    [
        ["0", "0.0", "00"],
        ["A", "a"],
        ["cat", "cat "],
        [" cat", "cat"],
        ["cat", "c\u200bat"],
        ["\ufeffcat", "cat"],
        ["red fox", "red\xa0fox", "red  fox", "red_fox", "red-fox"],
        ["ﬁsh", "fish"],
        ["straße", "STRASSE"],
    ],
)
def test_names_that_look_alike(group: list[str]) -> None:
    assert [sorted(names) for names in look_alike([*group, "dog", "10"])] == [sorted(group)]
    warning = warning_of([*group, "dog"], "classes")
    assert all(repr(name) in warning for name in group) and "dog" not in warning


def test_different_names_do_not_look_alike() -> None:
    assert look_alike(["1", "10", "-1", "0.1", "a", "b", "A+", "A-", "a b", "ab", "e", "é"]) == []
    assert warning_of(["cat", "dog"], "classes") == ""
