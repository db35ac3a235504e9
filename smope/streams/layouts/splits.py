"""Dividing images into two parts by chance, class by class, so that every class is in both; and
naming a division.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterable, Sequence

from smope.seeding import stable_seed

TEST_FRACTION = 0.2  # of a data set that comes without a split


def held_out(groups: Sequence[Hashable], fraction: float, seed: int) -> list[int]:
    """Sorted indices of a random part: of each group round(fraction·n) items, at least one and not
    all.

    groups: one label an item, usually its class. A group of a single item gives none. What is drawn
    for a group depends on `seed`, the group's place in sorted order and its size alone.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    chosen = []
    for number, group in enumerate(sorted(members, key=repr)):
        items = members[group]
        count = min(max(round(fraction * len(items)), 1), len(items) - 1)
        chosen += random.Random(stable_seed(seed, "held out", number)).sample(items, count)
    return sorted(chosen)


def split_hash(pairs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) of the sorted lines "<split><tab><place>", each with a line end, of (place,
    split) pairs.

    The place of an image is its path below the data set's folder, such as <class>/<file>.
    """
    return hashlib.sha256(
        "".join(sorted(f"{split}\t{place}\n" for place, split in pairs)).encode()
    ).hexdigest()
