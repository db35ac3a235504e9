"""Drawing the test images of a data set that comes without a split, and hashing a split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterable, Sequence

from smope.seeding import stable_seed

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


def split_hash(pairs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) of a split, from pairs of an image's path below the data set's folder (such as
    <class>/<file>) and its split. Sorted lines "<split><tab><path>" are hashed.
    """
    lines = sorted(f"{split}\t{path}\n" for path, split in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
