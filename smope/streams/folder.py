"""One's own images: root/train/<class>/ and root/test/<class>/ hold the image files of each class."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from smope.errors import UserError
from smope.streams.pixels.decode import SUFFIXES
from smope.streams.source import ImageSet, Source

LAYOUT = "train/<class>/ and test/<class>/ with image files"
READABLE = os.R_OK | os.X_OK
OTHER_TEST_NAMES = ("val", "valid", "validation", "eval", "testing")
_log = logging.getLogger(__name__)


def load(root: str) -> Source:
    """The images under `root`, classes in the order of their folder names under root/train.

    A class's images may lie in nested folders (links to folders are not followed); hidden files and
    files without an image suffix are skipped. UserError naming stream.root and what is wrong with
    it.
    """
    place = existing_directory(root)
    if not has_layout(place):
        raise UserError(f"stream.root={root} must hold {LAYOUT}; {_what_is_there(place)}")
    class_names = _class_names(root, place)
    extra = sorted(set(subdirectories(place / "test")) - set(class_names))
    if extra:
        _log.warning(
            "stream.root=%s: test folders without a training folder are left out: %s",
            root,
            shortened(extra),
        )
    train, test = (class_images(root, place / split, class_names) for split in ("train", "test"))
    return Source("folder", class_names, train, test)


def existing_directory(root: str, layout: str = LAYOUT) -> Path:
    """`root` as a path (~ is expanded); UserError unless it is a directory that holds something,
    `layout` if asked.
    """
    place = Path(root).expanduser()
    if not place.exists():
        raise UserError(
            f"stream.root={root} does not exist (looked in {place.absolute()}); give an existing "
            "directory"
        )
    if not place.is_dir():
        raise UserError(
            f"stream.root={root} is a file, not a directory; give the directory it unpacks to"
        )
    if not os.access(place, READABLE):
        raise UserError(
            f"stream.root={root} may not be read; change its permissions or give another directory"
        )
    if not visible(place):
        raise UserError(f"stream.root={root} is empty; give a directory that holds {layout}")
    return place


def has_layout(place: Path) -> bool:
    """Whether `place` has folders train and test."""
    return os.path.isdir(place / "train") and os.path.isdir(place / "test")


def holds_domains(place: Path) -> bool:
    """Whether each of several folders in `place` has folders train and test."""
    names = subdirectories(place)
    return len(names) > 1 and all(has_layout(place / name) for name in names)


def visible(place: Path) -> list[str]:
    """Names in `place`, sorted, without hidden ones."""
    return sorted(name for name in os.listdir(place) if not name.startswith("."))


def subdirectories(place: Path) -> list[str]:
    """Names of the folders in `place`, sorted, without hidden ones."""
    return [name for name in visible(place) if (place / name).is_dir()]


def by_name(names: Iterable[str]) -> list[str]:
    """Names in alphabetical order; by value where all of them are whole numbers."""
    ordered = sorted(names)
    return (
        sorted(ordered, key=int)
        if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in ordered)
        else ordered
    )


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first few names as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def better_root(place: Path, looks_right: Callable[[Path], bool]) -> str:
    """Text naming the directories one level below or up to three above `place` that look right, if
    any do.
    """
    whole = place.absolute()
    near = [whole / name for name in subdirectories(place)] + list(whole.parents)[:3]
    right = [str(there) for there in near if os.access(there, READABLE) and looks_right(there)]
    return f"; stream.root={' or '.join(right[:3])} looks right" if right else ""


def _what_is_there(place: Path) -> str:
    """What a directory of the wrong layout holds, and the way out: which directory nearby looks
    right, if one does.
    """
    names = subdirectories(place)
    found = f"it holds {shortened(visible(place))}"
    right = better_root(place, has_layout)
    if right:
        return (
            found + right + ("; stream=domains takes all of them" if holds_domains(place) else "")
        )
    small = {name.lower(): name for name in names}
    if "train" not in small:
        if any(
            name.lower().endswith(SUFFIXES) for inner in names for name in visible(place / inner)
        ):
            return f"{found}; move the class folders into train and some images of each class into test/<class>"
        return f"{found}; give the directory above the train and test folders"
    test = next((small[name] for name in ("test", *OTHER_TEST_NAMES) if name in small), None)
    if test is None:
        return f"{found} but no test folder; add one"
    wrong = [
        f"{name} to {wanted}"
        for name, wanted in ((small["train"], "train"), (test, "test"))
        if name != wanted
    ]
    return f"{found}; rename {' and '.join(wrong)}"


def _class_names(root: str, place: Path) -> tuple[str, ...]:
    names = subdirectories(place / "train")
    if not names:
        raise UserError(
            f"stream.root={root} must hold {LAYOUT}; its train folder has no class folders, add "
            "one a class"
        )
    absent = [name for name in names if not (place / "test" / name).is_dir()]
    if absent:
        raise UserError(
            f"stream.root={root}: every class needs a test folder, there is none for "
            f"{shortened(absent)}; add {place / 'test' / absent[0]} with images or remove the "
            "class from train"
        )
    return tuple(names)


def class_images(root: str, split: Path, class_names: Sequence[str]) -> ImageSet:
    """The images of a split, class by class and sorted by path within a class."""
    targets, files = [], []
    for target, name in enumerate(class_names):
        found = image_files(split / name)
        if not found:
            raise UserError(
                f"stream.root={root}: class folder {split / name} has no image files "
                f"({', '.join(SUFFIXES)}); add images or remove the class"
            )
        targets += [target] * len(found)
        files += found
    return ImageSet(targets, files)


def image_files(directory: Path) -> list[Path]:
    """The image files in `directory` and below, sorted, without hidden ones."""
    found = []
    for place, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and name[0] != "."
        ]
    return sorted(found, key=lambda path: path.relative_to(directory).parts)
