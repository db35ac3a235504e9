"""One's own images: root/train/<class>/ and root/test/<class>/ hold the image files of each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from smope.errors import UserError
from smope.streams.base import ImageSet, Source, hash_images
from smope.streams.images import KEPT_BYTES, SUFFIXES, FileImages

LAYOUT = "train/<class>/ and test/<class>/ with image files"
READABLE = os.R_OK | os.X_OK
OTHER_TEST_NAMES = ("val", "valid", "validation", "eval", "testing")
_log = logging.getLogger(__name__)


def load(root: str) -> Source:
    """The images under `root`, classes in the order of their folder names under root/train.

    A class's images may lie in nested folders (links to folders are not followed); hidden files and files
    without an image suffix are skipped. Sources of up to 256 MB decoded are kept in memory, others are read
    when needed. UserError naming stream.root and what is wrong with it, or the file that is no image.
    """
    place = existing_directory(root)
    if not has_layout(place):
        raise UserError(f"stream.root={root} must hold {LAYOUT}; {_what_is_there(place)}")
    class_names = _class_names(root, place)
    extra = sorted(set(subdirectories(place / "test")) - set(class_names))
    if extra:
        _log.warning("stream.root=%s: test folders without a training folder are left out: %s", root, shortened(extra))
    train, test = (_labelled_files(root, place / split, class_names) for split in ("train", "test"))
    train_files, test_files = (
        FileImages([path for path, _ in files], f"stream.root={root}") for files in (train, test)
    )
    keep = train_files.decoded_bytes() + test_files.decoded_bytes() <= KEPT_BYTES
    return Source(
        name="folder",
        class_names=class_names,
        train=_image_set(train, train_files, keep),
        test=_image_set(test, test_files, keep),
        content_hash=hash_images(
            {
                split: ((class_names[target], path.read_bytes()) for path, target in files)
                for split, files in (("train", train), ("test", test))
            }
        ),
    )


def _image_set(files: list[tuple[Path, int]], images: FileImages, keep: bool) -> ImageSet:
    load = images.kept().load if keep else images.load
    return ImageSet([target for _, target in files], load, [str(path) for path, _ in files])


def existing_directory(root: str) -> Path:
    """`root` as a path (~ is expanded); UserError unless it is a directory that holds something."""
    place = Path(root).expanduser()
    if not place.exists():
        raise UserError(f"stream.root={root} does not exist (looked in {place.absolute()}); give an existing directory")
    if not place.is_dir():
        raise UserError(f"stream.root={root} is a file, not a directory; give the directory it unpacks to")
    if not os.access(place, READABLE):
        raise UserError(f"stream.root={root} may not be read; change its permissions or give another directory")
    if not visible(place):
        raise UserError(f"stream.root={root} is empty; give a directory that holds {LAYOUT}")
    return place


def has_layout(place: Path) -> bool:
    """Whether `place` has folders train and test."""
    return os.path.isdir(place / "train") and os.path.isdir(place / "test")


def visible(place: Path) -> list[str]:
    """Names in `place`, sorted, without hidden ones."""
    return sorted(name for name in os.listdir(place) if not name.startswith("."))


def subdirectories(place: Path) -> list[str]:
    """Names of the folders in `place`, sorted, without hidden ones."""
    return [name for name in visible(place) if (place / name).is_dir()]


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first few names as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def better_root(place: Path, looks_right: Callable[[Path], bool]) -> str:
    """Text naming the directories one level below or up to two above `place` that look right, if any do."""
    whole = place.absolute()
    near = [whole / name for name in subdirectories(place)] + list(whole.parents)[:2]
    right = [str(there) for there in near if os.access(there, READABLE) and looks_right(there)]
    return f"; stream.root={' or '.join(right[:3])} looks right" if right else ""


def _what_is_there(place: Path) -> str:
    """What a directory of the wrong layout holds, and which directory nearby looks right."""
    found = f"it holds {shortened(visible(place))}"
    right = better_root(place, has_layout)
    if right:
        return found + right
    names = subdirectories(place)
    if "train" in names:
        other = next((name for name in names if name.lower() in OTHER_TEST_NAMES), None)
        return f"{found} but no test folder; " + (f"rename {other} to test" if other else "add one")
    return f"{found}; give the directory above the train and test folders"


def _class_names(root: str, place: Path) -> tuple[str, ...]:
    names = subdirectories(place / "train")
    if not names:
        raise UserError(
            f"stream.root={root} must hold {LAYOUT}; its train folder has no class folders, add one a class"
        )
    absent = [name for name in names if not (place / "test" / name).is_dir()]
    if absent:
        raise UserError(
            f"stream.root={root}: every class needs a test folder, there is none for {shortened(absent)}; "
            f"add {place / 'test' / absent[0]} with images or remove the class from train"
        )
    return tuple(names)


def _labelled_files(root: str, split: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(image file, class id) of a split, class by class and sorted by path within a class."""
    files = []
    for target, name in enumerate(class_names):
        paths = sorted(_image_files(split / name), key=lambda path: path.relative_to(split).parts)
        if not paths:
            raise UserError(
                f"stream.root={root}: class folder {split / name} has no image files "
                f"({', '.join(SUFFIXES)}); add images or remove the class"
            )
        files += [(path, target) for path in paths]
    return files


def _image_files(directory: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place, name)
