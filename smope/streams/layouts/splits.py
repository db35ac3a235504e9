"""Drawing the test images of a data set that comes without a split, and hashing a split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from smope.seeding import stable_seed
from smope.streams.layouts.names import as_text

TEST_FRACTION = 0.2  # of a data set that comes without a split


def held_out(groups: Sequence[Hashable], fraction: float, seed: int) -> list[int]:
    """Draw a part of the items of each group, so that every group is in both parts.

    What is drawn for a group depends only on `seed`, on the group's place in sorted order and on
    its size.

    Args:
        groups: the group of each item, usually its class.
        fraction: round(fraction·n) of a group's n items are drawn, at least one and not all; of a
            single item none.
        seed: of the draw.

    Returns:
        Indices of the drawn items, ascending.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    drawn = []
    for number, group in enumerate(sorted(members, key=repr)):
        items = members[group]
        count = min(max(round(fraction * len(items)), 1), len(items) - 1)
        drawn += random.Random(stable_seed(seed, "held out", number)).sample(items, count)
    return sorted(drawn)


class DrawnSplit(NamedTuple):
    """Indices of the training and of the test images, ascending, and what run.json records."""

    train: list[int]
    test: list[int]
    facts: dict[str, Any]


def draw_split(
    paths: Sequence[str], groups: Sequence[Hashable], fraction: float, seed: int
) -> DrawnSplit:
    """Draw the test images of a data set that comes without a split.

    The order of the images does not matter: they are drawn in the order of their paths.

    Args:
        paths: of each image below the data set's folder, with / between folders.
        groups: of each image, see `held_out`, as are `fraction` and `seed`.

    Returns:
        The split; `facts` hold its hash (`split_hash`).
    """
    by_path = sorted(range(len(paths)), key=lambda index: as_text(paths[index]))
    drawn = held_out([groups[index] for index in by_path], fraction, seed)
    test = sorted(by_path[position] for position in drawn)
    train = sorted(set(by_path) - set(test))
    pairs = [(paths[index], "train") for index in train] + [
        (paths[index], "test") for index in test
    ]
    facts = {
        "split": "drawn",
        "split_seed": seed,
        "test_fraction": fraction,
        "split_hash": split_hash(pairs),
    }
    return DrawnSplit(train, test, facts)


def describe_split(facts: Mapping[str, Any]) -> str:
    """A line about a split that was drawn, from the facts of a stream; "" where none was."""
    if facts.get("split") != "drawn":
        return ""
    return (
        f"test images: {facts.get('test_fraction', TEST_FRACTION):.3g} of each class, drawn with "
        f"stream.split_seed={facts['split_seed']} (split {facts['split_hash'][:12]})"
    )


def split_hash(pairs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) of a split, from pairs of an image's path below the data set's folder (such as
    <class>/<file>) and its split. Sorted lines "<split><tab><path>" are hashed, paths as text
    (`names.as_text`).
    """
    lines = sorted(f"{split}\t{as_text(path)}\n" for path, split in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
