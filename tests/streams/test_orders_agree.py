"""A class order means the same in every form and for every stream of the user's own images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from smope.config.overrides import read_values
from smope.errors import UserError
from smope.streams import domains, folder, table
from smope.streams.partition import divide
from smope.streams.source import Source
from tests.streams.class_trees import write_classes

KINDS = {
    "from 0": [str(number) for number in range(12)],
    "from 1": [str(number) for number in range(1, 13)],
    "with zeros in front": [f"{number:02}" for number in range(1, 13)],
    "as pandas writes them": [f"{number}.0" for number in range(12)],
    "within text": [f"class {number}" for number in range(12)],
}


@pytest.fixture(scope="module", params=list(KINDS))
def data(request, tmp_path_factory) -> tuple[list[str], dict[str, Source]]:
    """Names of 12 classes, and each stream that has them."""
    class_names = KINDS[request.param]
    root = tmp_path_factory.mktemp("data")
    for split, numbers in {"train": (0, 1), "test": (2,)}.items():
        write_classes(root / "domains" / "photo" / split, class_names, numbers)
    (root / "domains" / "sketch").symlink_to(root / "domains" / "photo")
    files = sorted((root / "domains" / "photo").glob("*/*/*"))
    rows = [f"{file},{file.parent.name},{file.parents[1].name}" for file in files]
    (root / "images.csv").write_text("\n".join(["path,label,split", *reversed(rows)]))
    sources = {
        "folder": folder.load(f"{root}/domains/photo"),
        "domains": domains.load(f"{root}/domains"),
        "table": table.load(f"{root}/images.csv", root=f"{root}"),
    }
    return class_names, sources


def classes_in_order(source: Source, order: str | Path) -> list[str]:
    """The names of the classes, with an order as the command line has it."""
    value = read_values([f"order={order}"])["order"] if isinstance(order, str) else str(order)
    own_tasks = source.train.tasks is not None
    partition = divide(
        source,
        seed=0,
        num_tasks=None if own_tasks else 12,
        classes_per_task=None,
        class_order=value,
    )
    return [source.class_names[class_id] for class_id in partition.order]


def listed(items: Sequence[object]) -> str:
    return f"[{','.join(map(str, items))}]"


def test_sorted_is_natural_order_everywhere(data):
    class_names, sources = data
    for source in sources.values():
        assert classes_in_order(source, "sorted") == list(source.class_names) == class_names


def test_a_list_a_quoted_list_and_a_file_agree(data, tmp_path):
    class_names, sources = data
    first = int(float(class_names[0])) if class_names[0][0].isdigit() else 0
    numbers = [first + step for step in (5, 0, 11, 1, 10, 2, 3, 4, 6, 7, 8, 9)]
    expected = [class_names[number - first] for number in numbers]
    (tmp_path / "numbers").write_text("\n".join(map(str, numbers)))
    (tmp_path / "names").write_text("\n".join(expected))
    quoted = [listed([f"'{item}'" for item in items]) for items in (numbers, expected)]
    for source in sources.values():
        for order in (listed(numbers), *quoted, tmp_path / "numbers", tmp_path / "names"):
            assert classes_in_order(source, order) == expected


def test_numbers_from_0_are_refused_where_the_classes_are_called_1_to_12(data):
    class_names, sources = data
    for source in sources.values():
        if class_names[0] in ("1", "01"):
            with pytest.raises(UserError, match="exactly once, by name, got 0"):
                classes_in_order(source, listed(range(12)))
        else:
            assert classes_in_order(source, listed(range(12))) == class_names
