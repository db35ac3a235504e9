"""Image files in class folders: root/train/<class>/ and root/test/<class>/, or root/<class>/
alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

from smope.declare.ranges import AtLeast, Share
from smope.declare.texts import ImageFolder
from smope.errors import UserError
from smope.streams.layouts.listing import (
    LeftOut,
    Listing,
    subdirectories,
    unreadable_text,
    visible,
)
from smope.streams.layouts.names import as_text, in_order, is_utf8, warning_of
from smope.streams.layouts.splits import TEST_FRACTION, draw_split
from smope.streams.pixels import formats
from smope.streams.source import ImageSet, Source

SPLITS = ("train", "test")
LAYOUT = "train/<class>/ and test/<class>/ with image files, or folders <class>/ alone"
READABLE = os.R_OK | os.X_OK
OTHER_TEST_NAMES = ("val", "valid", "validation", "eval", "testing")
_log = logging.getLogger(__name__)


def load(
    root: ImageFolder,
    exclude: list[str] | None = None,
    test_fraction: Annotated[float, Share(with_0=False, with_1=False)] = 0.2,
    split_seed: Annotated[int, AtLeast(0)] = 0,
) -> Source:
    """The images under `root`, classes in natural order of their folders' names.

    Images may lie in nested folders of their class (links to folders are not followed). Service
    files and folders of other programs and files without an image suffix are skipped.

    Args:
        root: holds folders train and test with a folder for each class, or the folders of the
            classes themselves. Then test images are drawn, and `facts` have a hash of the split.
        exclude: patterns of files and folders that are left out, see `Listing`.
        test_fraction: part of each class that is drawn, at least one image and not all.
        split_seed: draws them.

    Raises:
        UserError: names stream.root and what is wrong with it.
    """
    directory = existing_directory(root)
    listing = Listing(directory, exclude or (), f"stream.root={root}")
    listing.entries(directory)  # so that service files beside train and test are counted
    if has_layout(directory):
        if test_fraction != TEST_FRACTION:
            text = "stream.test_fraction=%s is not used: %s has folders train and test"
            _log.warning(text, test_fraction, root)
        return _with_split_folders(root, directory, listing)
    if not has_class_folders(directory, listing):
        raise UserError(f"stream.root={root} must hold {LAYOUT}; {_describe(directory)}")
    source = with_drawn_split(directory, listing, test_fraction, split_seed)
    _report_unused(root, directory, listing, source)
    _require_test_images(root, source)
    return source


def _with_split_folders(root: str, directory: Path, listing: Listing) -> Source:
    class_names = _class_names(root, directory, listing)
    folders = named_folders(*(directory / split for split in SPLITS), listing=listing)
    warn_of_names(root, [path for paths in folders.values() for path in paths], "classes")
    extra = in_order(set(named_folders(directory / "test", listing=listing)) - set(class_names))
    if extra:
        _log.warning(
            "stream.root=%s: test folders without a training folder are left out: %s",
            root,
            shortened(extra),
        )
    train, test = (
        class_images(root, [directory / split], class_names, listing) for split in SPLITS
    )
    return Source("folder", class_names, train, test, left_out=listing.left_out)


def with_drawn_split(
    directory: Path, listing: Listing, test_fraction: float, split_seed: int
) -> Source:
    """The images of the class folders in `directory`, a part of each class drawn for testing.

    Folders without images are left out. A class with a single image has no test image.

    Args:
        directory: holds the class folders.
        listing: finds the files.
        test_fraction: see `load`, as is `split_seed`.
    """
    files = {
        name: [file for path in paths for file in listing.image_files(path)]
        for name, paths in named_folders(directory, listing=listing).items()
    }
    class_names = tuple(name for name in files if files[name])
    images = [file for name in class_names for file in files[name]]
    targets = [target for target, name in enumerate(class_names) for _ in files[name]]
    paths = [file.relative_to(directory).as_posix() for file in images]
    # as stream table groups its rows, by label and task, so that both draw the same images
    groups = [(class_names[target], "") for target in targets]
    split = draw_split(paths, groups, test_fraction, split_seed)
    whole = ImageSet(targets, images)
    train, test = whole.choose(split.train), whole.choose(split.test)
    return Source("folder", class_names, train, test, facts=split.facts, left_out=listing.left_out)


def _report_unused(root: str, directory: Path, listing: Listing, source: Source) -> None:
    """Log what of a folder of class folders is not used, and which classes look alike."""
    folders = named_folders(directory, listing=listing)
    warn_of_names(root, [path for paths in folders.values() for path in paths], "classes")
    empty = [name for name in folders if name not in source.class_names]
    if empty:
        text = "stream.root=%s: folders without image files are left out: %s"
        _log.warning(text, root, shortened(empty))
    names = [entry.name for entry in listing.entries(directory)]
    beside = [name for name in names if formats.is_readable(name) and name not in folders]
    if beside:
        text = "stream.root=%s: image files beside the class folders are left out: %s"
        _log.warning(text, root, shortened(beside))


def _require_test_images(root: str, source: Source) -> None:
    tested = set(source.test.targets)
    single = [name for target, name in enumerate(source.class_names) if target not in tested]
    if single:
        raise UserError(
            f"stream.root={root}: a class needs two images or more, one of them for testing, and "
            f"these have one: {shortened(single)}; add images or remove the class"
        )


def existing_directory(root: str, layout: str = LAYOUT) -> Path:
    """Check that a directory exists and is not empty.

    Args:
        root: what the user gave as stream.root; ~ is expanded.
        layout: what it should hold, for the error of an empty directory.

    Returns:
        The directory.

    Raises:
        UserError: it is missing, a file, empty or may not be read.
    """
    directory = Path(root).expanduser()
    if not directory.exists():
        raise UserError(
            f"stream.root={root} does not exist (looked in {directory.absolute()}); give an "
            "existing directory"
        )
    if not directory.is_dir():
        raise UserError(
            f"stream.root={root} is a file, not a directory; give the directory it unpacks to"
        )
    if not os.access(directory, READABLE):
        raise UserError(
            f"stream.root={root} may not be read; change its permissions or give another directory"
        )
    if not visible(directory):
        raise UserError(f"stream.root={root} is empty; give a directory that holds {layout}")
    return directory


def has_layout(directory: Path) -> bool:
    """True if `directory` has folders train and test."""
    return os.path.isdir(directory / "train") and os.path.isdir(directory / "test")


def has_class_folders(directory: Path, listing: Listing | None = None) -> bool:
    """True if `directory` has class folders itself: two or more folders with image files in them.

    False for what belongs to a layout with folders train and test: one of its folders, the folder
    above it, or folders train and val.

    Args:
        directory: the folder.
        listing: says which folders are left out; None for service folders alone.
    """
    absolute = directory.absolute()
    inside = any(
        has_layout(parent) and absolute.relative_to(parent).parts[0] in SPLITS
        for parent in list(absolute.parents)[:3]
    )
    folders = (listing or Listing(directory)).subdirectories(directory)
    lower = {name.lower() for name in folders}
    is_split = "train" in lower and bool(lower & {"test", *OTHER_TEST_NAMES})
    if inside or is_split or any(has_layout(directory / name) for name in folders):
        return False
    return sum(_has_image_files(directory / name) for name in folders) > 1


def holds_domains(directory: Path) -> bool:
    """True if `directory` has several folders and each of them has folders train and test."""
    names = subdirectories(directory)
    return len(names) > 1 and all(has_layout(directory / name) for name in names)


def named_folders(*directories: Path, listing: Listing | None = None) -> dict[str, list[Path]]:
    """The folders in these directories by their name as text (NFC), in natural order.

    A name has several folders where it is in several directories, or is there in different forms
    of Unicode.

    Args:
        directories: their folders are named.
        listing: says which are left out; None for service folders alone.
    """
    folders: dict[str, list[Path]] = {}
    for directory in directories:
        listed = listing or Listing(directory)
        for name in listed.subdirectories(directory):
            folders.setdefault(as_text(name), []).append(directory / name)
    return {name: folders[name] for name in in_order(folders)}


def warn_of_names(root: str, folders: Iterable[Path], noun: str) -> None:
    """Log which names of folders look alike, and which are not text.

    Args:
        root: what the user gave as stream.root.
        folders: of the classes or domains.
        noun: what they are, in the plural.
    """
    raw_names = sorted({path.name for path in folders})
    warning = warning_of({as_text(name) for name in raw_names}, noun)
    if warning:
        _log.warning("stream.root=%s: %s", root, warning)
    called = [
        f"{os.fsencode(name)!r} as {as_text(name)}" for name in raw_names if not is_utf8(name)
    ]
    if called:
        text = "names of folders are not UTF-8 and are read as text"
        _log.warning("stream.root=%s: %s: %s", root, text, shortened(called))


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names as text, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def better_root(directory: Path, looks_right: Callable[[Path], bool]) -> str:
    """Propose another root, as the end of an error's text.

    Args:
        directory: the directory that is not right.
        looks_right: tells which directories are.

    Returns:
        Text naming directories one level below or up to three above that look right; "" if there
        are none.
    """
    absolute = directory.absolute()

    def is_right(path: Path) -> bool:
        try:
            return os.access(path, READABLE) and looks_right(path)
        except UserError:  # something near cannot be read, or is being removed
            return False

    near = [absolute / name for name in subdirectories(directory)] + list(absolute.parents)[:3]
    right = [str(path) for path in near if is_right(path)]
    return f"; stream.root={' or '.join(right[:3])} looks right" if right else ""


def _describe(directory: Path) -> str:
    """What a directory of the wrong layout holds, and what to do about it."""
    names = subdirectories(directory)
    holds = f"it holds {shortened(visible(directory))}"
    proposal = better_root(directory, has_layout)
    if proposal and holds_domains(directory):
        return f"{holds}{proposal}; stream=domains takes all of them"
    if proposal:
        return f"{holds}{proposal}"
    by_lower_case = {name.lower(): name for name in names}
    if "train" not in by_lower_case:
        if any(_has_image_files(directory / name) for name in names):
            return f"{holds}, and only one folder has images; make a folder for each class"
        absolute = directory.absolute()
        below = better_root(
            directory, lambda path: path.parent == absolute and has_class_folders(path)
        )
        if below:
            return f"{holds}{below}"
        return (
            f"{holds}; give the directory above the train and test folders, or above the class "
            "folders"
        )
    test_names = [name for name in ("test", *OTHER_TEST_NAMES) if name in by_lower_case]
    if not test_names:
        train = directory / by_lower_case["train"]
        way_out = (
            f", or have test images drawn: stream.root={train}" if has_class_folders(train) else ""
        )
        return f"{holds} but no test folder; add one{way_out}"
    renamings = [(by_lower_case["train"], "train"), (by_lower_case[test_names[0]], "test")]
    wrong = [f"{name} to {right_name}" for name, right_name in renamings if name != right_name]
    return f"{holds}; rename {' and '.join(wrong)}"


def _has_image_files(directory: Path) -> bool:
    return any(formats.is_readable(name) for name in visible(directory))


def _class_names(root: str, directory: Path, listing: Listing) -> tuple[str, ...]:
    class_names = tuple(named_folders(directory / "train", listing=listing))
    if not class_names:
        raise UserError(
            f"stream.root={root} must hold {LAYOUT}; its train folder has no class folders, add "
            "one a class"
        )
    tested = named_folders(directory / "test", listing=listing)
    absent = [name for name in class_names if name not in tested]
    if absent:
        raise UserError(
            f"stream.root={root}: every class needs a test folder, there is none for "
            f"{shortened(absent)}; add {directory / 'test' / absent[0]} with images or remove the "
            "class from train"
        )
    return class_names


def class_images(
    root: str, splits: Sequence[Path], class_names: Sequence[str], listing: Listing
) -> ImageSet:
    """The images of one split, class by class and sorted by path within a class.

    Args:
        root: what the user gave as stream.root.
        splits: the folders of one split that hold class folders; usually one.
        class_names: by class id.
        listing: finds the files.

    Raises:
        UserError: a class folder has no image files.
    """
    targets, files = [], []
    folders = named_folders(*splits, listing=listing)
    for target, name in enumerate(class_names):
        class_files = [file for path in folders.get(name, []) for file in listing.image_files(path)]
        if not class_files:
            not_read = listing.left_out.below(splits[0] / name)
            raise UserError(
                f"stream.root={root}: class folder {splits[0] / name} has no image files "
                f"({formats.COMMON_SUFFIXES}){_not_read(not_read)}; add images or remove the class"
            )
        targets += [target] * len(class_files)
        files += class_files
    return ImageSet(targets, files)


def _not_read(left_out: LeftOut) -> str:
    """How many pictures are in formats that are not read, for an error."""
    return f", {unreadable_text(left_out.suffix_counts)}" if left_out.unreadable else ""
