"""The same classes in changing domains, one task for each domain: root/<domain>/train/<class>/ and
root/<domain>/test/<class>/.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from smope.declare.ranges import DifferentNames
from smope.declare.texts import ImageFolder
from smope.errors import UserError
from smope.streams import folder
from smope.streams.layouts.listing import Listing, visible
from smope.streams.layouts.names import NameIndex, in_order
from smope.streams.source import ImageSet, Source

LAYOUT = "<domain>/train/<class>/ and <domain>/test/<class>/ with image files"
SPLITS = ("train", "test")


def load(
    root: ImageFolder,
    domains: Annotated[list[int | str] | None, DifferentNames()] = None,
    exclude: list[str] | None = None,
) -> Source:
    """The images of several domains, with one task for each.

    Every domain must hold the same classes, each with training and test images, in folders as those
    of stream `folder`.

    Args:
        root: the folder that holds the domains.
        domains: their names in the order of the tasks; None takes every folder, in natural order.
            Where all names are whole numbers, a number means the name of that value.
        exclude: patterns of files and folders that are left out, see `Listing`.

    Raises:
        UserError: names stream.root or stream.domains, the domain, and what is wrong with it.
    """
    directory = folder.existing_directory(root, LAYOUT)
    listing = Listing(directory, exclude or (), f"stream.root={root}")
    folders = folder.named_folders(directory, listing=listing)
    chosen = _domains(root, directory, folders, domains)
    splits = {
        (name, split): [path / split for path in folders[name]]
        for name in chosen
        for split in SPLITS
    }
    class_names = _class_names(root, splits, listing)
    train, test = (
        _joined(
            [
                folder.class_images(root, splits[name, split], class_names, listing)
                for name in chosen
            ]
        )
        for split in SPLITS
    )
    return Source(
        "domains", class_names, train, test, task_names=tuple(chosen), left_out=listing.left_out
    )


def _joined(domains: Sequence[ImageSet]) -> ImageSet:
    return ImageSet(
        targets=[target for images in domains for target in images.targets],
        images=[image for images in domains for image in images.images],
        tasks=[task for task, images in enumerate(domains) for _ in range(len(images))],
    )


def _domains(
    root: str,
    directory: Path,
    folders: Mapping[str, Sequence[Path]],
    wanted: Sequence[int | str] | None,
) -> list[str]:
    """The names of the domains in the order of the tasks."""
    names = list(folders)
    complete = [name for name in names if all(map(folder.has_layout, folders[name]))]
    if folder.has_layout(directory) or not complete:
        raise UserError(f"stream.root={root} must hold {LAYOUT}; {_describe(directory)}")
    chosen = names if wanted is None else _chosen(root, names, wanted)
    for name in chosen:
        if name not in complete:
            absent = [
                split
                for split in SPLITS
                if not all((path / split).is_dir() for path in folders[name])
            ]
            proposal = folder.better_root(directory, folder.holds_domains)
            raise UserError(
                f"stream.root={root}: domain {name} has no folder "
                f"{' and no folder '.join(absent)}; add it, or choose domains with "
                f"stream.domains={_listed(complete)}{proposal}"
            )
    folder.warn_of_names(root, [path for name in chosen for path in folders[name]], "domains")
    return chosen


def _chosen(root: str, names: Sequence[str], wanted: Sequence[int | str]) -> list[str]:
    """The names of the domains that the user's list means."""
    index = NameIndex(names)
    chosen = []
    for item in wanted:
        position = index.find(item)
        if position is None:
            similar = difflib.get_close_matches(str(item), names, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise UserError(
                f"stream.domains: {root} has no domain {item}, it has {', '.join(names)}{hint}"
            )
        chosen.append(names[position])
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(
            f"stream.domains must name each domain once, got {_listed(chosen)}; choose from "
            f"{_listed(names)}"
        )
    return chosen


def _class_names(
    root: str, splits: Mapping[tuple[str, str], Sequence[Path]], listing: Listing
) -> tuple[str, ...]:
    """The classes, which must be the same in every domain, in training and in testing.

    Args:
        root: what the user gave as stream.root.
        splits: the folders that hold class folders, by domain and split.
        listing: finds the folders.
    """
    classes_of = {
        key: folder.named_folders(*paths, listing=listing) for key, paths in splits.items()
    }
    folders = [
        path for classes in classes_of.values() for paths in classes.values() for path in paths
    ]
    folder.warn_of_names(root, folders, "classes")
    class_names = in_order({name for classes in classes_of.values() for name in classes})
    if not class_names:
        raise UserError(
            f"stream.root={root} must hold {LAYOUT}; its domains have no class folders, add one a "
            "class"
        )
    for name in class_names:
        for (domain, split), names in classes_of.items():
            if name not in names:
                other, split_of_other = next(key for key in classes_of if name in classes_of[key])
                raise UserError(
                    f"stream.root={root}: every domain must hold the same classes in train and "
                    f"test, but domain {domain} has no {split}/{name} and domain {other} has "
                    f"{split_of_other}/{name}; add it with images, remove class {name} from all "
                    "domains, or choose domains with stream.domains"
                )
    return tuple(class_names)


def _listed(names: Sequence[str]) -> str:
    return f"[{','.join(names)}]"


def _describe(directory: Path) -> str:
    """What a directory without domains holds, and what to do about it."""
    holds = f"it holds {folder.shortened(visible(directory))}"
    proposal = folder.better_root(directory, folder.holds_domains)
    if folder.has_layout(directory):
        return f"{holds} as a single domain does, and stream=folder takes that{proposal}"
    way_out = (
        "; give the directory above the domains, or divide the images of each into train and test"
    )
    return f"{holds}, no folder with train and test in it{proposal or way_out}"
