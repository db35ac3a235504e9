"""Names of classes, domains and tasks: as text, in order, by number, and which look alike.

All streams of the user's own images (folder, domains, table) use these rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction

WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,18})(\.0*)?")  # 1.0 too: some programs write 1 so
NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{0,18})?")
BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
MOST_SHOWN = 5  # groups of names that look alike in a warning


def as_text(name: str) -> str:
    """A name from disk in Unicode's composed form (NFC); bytes that are not UTF-8 become \\xNN."""
    if name.isascii():
        return name
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", text)


def is_utf8(name: str) -> bool:
    """Whether a name from disk is text; Python marks other bytes in it (surrogateescape)."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def in_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: digits count as numbers, so 2 is before 10, and img2 before img10.

    Letters are in the order of their Unicode numbers, capitals first. Where all names are numbers,
    their values decide, with signs and decimals.
    """
    ordered = sorted(names)
    if all(NUMBER.fullmatch(name) for name in ordered):
        return sorted(ordered, key=Fraction)
    return sorted(ordered, key=_natural_key)


def _natural_key(name: str) -> list[str | tuple[int, str]]:
    """Text and digits in turn, so that only like is compared with like."""
    parts = re.split(r"([0-9]+)", name)
    return [_digits_key(part) if index % 2 else part for index, part in enumerate(parts)]


def _digits_key(digits: str) -> tuple[int, str]:
    # no int: Python refuses thousands of digits
    significant = digits.lstrip("0")
    return len(significant), significant


class NameIndex:
    """Which of some names an item of a user's list means.

    are_numbers: every name is a whole number; a number then means the name of that value.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._by_text = {as_text(name): index for index, name in enumerate(names)}
        self._by_text |= {name: index for index, name in enumerate(names)}
        values = [_whole_number(name) for name in names]
        self.are_numbers = bool(values) and None not in values
        # 1 means nothing where 01 and 1.0 are names, unless 1 itself is one
        repeated = {value for value, count in Counter(values).items() if count > 1}
        self._by_value = {
            value: index
            for index, value in enumerate(values)
            if self.are_numbers and value not in repeated
        }

    def find(self, item: int | str) -> int | None:
        """The index of the name that `item` means, as a number or as text; None if it means
        none.
        """
        if isinstance(item, bool) or not isinstance(item, int | str):
            return None
        text = str(item)
        for spelling in (text, as_text(text), as_text(text).strip()):
            if spelling in self._by_text:
                return self._by_text[spelling]
        return self._by_value.get(_whole_number(text.strip()))


def _whole_number(text: str) -> int | None:
    match = WHOLE_NUMBER.fullmatch(text)
    return int(match[1]) if match else None


def number_from_0(item: int | str, count: int) -> int | None:
    """An item of a user's list as one of the numbers 0 to count - 1; None if it is none of them."""
    if isinstance(item, bool) or not isinstance(item, int | str):
        return None
    value = _whole_number(str(item).strip())
    return value if value is not None and 0 <= value < count else None


def look_alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces, invisible characters, or in how a number
    is written.
    """
    groups: dict[str, list[str]] = {}
    for name in in_order(names):
        groups.setdefault(_without_spelling(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _without_spelling(name: str) -> str:
    text = unicodedata.normalize("NFKC", name)
    visible = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    stripped = visible.strip()
    if NUMBER.fullmatch(stripped):
        return str(Fraction(stripped))
    return BETWEEN_WORDS.sub(" ", stripped).casefold()


def warning_of(names: Iterable[str], noun: str, new: Collection[str] | None = None) -> str:
    """A line about names that look alike; "" if there are none.

    Args:
        names: of the classes, say.
        noun: what they are, in the plural.
        new: the names of which somebody has to hear; None: all.
    """
    groups = look_alike(names)
    if new is not None:
        groups = [group for group in groups if not set(group).isdisjoint(new)]
    if not groups:
        return ""
    pairs = ", ".join(" and ".join(map(repr, group)) for group in groups[:MOST_SHOWN])
    more = f" and {len(groups) - MOST_SHOWN} more" if len(groups) > MOST_SHOWN else ""
    return (
        f"these names differ only in their spelling and are different {noun}: {pairs}{more}; "
        "give them one name if they are the same"
    )
