"""run.json has the values of the json module, in fewer lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from smope.storage.readable_json import WIDTH, readable_json

VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
    max_leaves=20,
)


@settings(max_examples=50)
@given(VALUES)
def test_it_is_what_json_reads(value: Any) -> None:
    assert json.loads(readable_json(value)) == value


def test_a_row_is_a_line_and_long_lists_are_wrapped() -> None:
    text = readable_json(
        {"matrix": [[0.5, None], [0.25, 1.0]], "names": [f"class {n}" for n in range(10_000)]}
    )
    assert "\n  [0.5, null],\n  [0.25, 1.0]\n" in text
    assert max(map(len, text.splitlines())) <= WIDTH + len('"names": ')
    assert len(text.splitlines()) < 10_000 / 5


def test_a_number_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        readable_json({"loss": [float("nan")]})
