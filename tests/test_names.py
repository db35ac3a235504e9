"""Variables and arguments say what they hold: words that could mean anything are not used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import smope

ROOT = Path(smope.__file__).parent
BANNED = {
    "found", "place", "places", "kept", "said", "told", "asked", "odd", "mine", "there", "them",
    "here", "who", "stuff", "things", "tmp", "foo",
}  # fmt: skip


def names(source: str) -> Iterator[tuple[str, int]]:
    """Every variable that is assigned and every argument, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def test_names_are_read_from_the_source() -> None:
    source = "def double(found):\n    kept = 2 * found\n    return kept\n"
    assert list(names(source)) == [("found", 1), ("kept", 2)]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_no_banned_names(path: Path) -> None:
    used = [f"line {line}: {name}" for name, line in names(path.read_text()) if name in BANNED]
    assert not used
