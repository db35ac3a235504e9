"""Reading every image of a data set once, decoding it as for training, and describing it.

findings.py says what is wrong or unusual; `smope data check` shows both.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
from PIL import ExifTags, Image
from tqdm import tqdm

from smope.errors import UserError
from smope.streams import folder
from smope.streams.layouts.listing import Listing
from smope.streams.layouts.splits import TEST_FRACTION
from smope.streams.partition import Partition
from smope.streams.pixels.bit_depth import ASSUMED
from smope.streams.pixels.cache import original_image
from smope.streams.pixels.decode import StoredImage, decode, open_image, read_encoded, reason
from smope.streams.pixels.preload import SPLITS, content_line, map_in_threads
from smope.streams.source import ImageSet, Source

# Everything that is not plain 8-bit RGB, and what decoding (pixels/decode.py) does with it.
TRAITS = {
    "grayscale": "the gray value becomes red, green and blue",
    "palette": "each pixel takes its colour from the palette",
    "alpha": "laid over white",
    "CMYK": "converted to RGB without a colour profile",
    "16-bit": "reduced to 8 bits a channel",
    "other-mode": "converted to RGB",
    "EXIF-rotated": "turned or mirrored as the camera noted",
    "animated or multi-page": "the first picture of the file counts",
}


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """One image.

    label: its class id.
    problem: why it cannot be read; the fields after it are then empty.
    content: SHA-256 (hex) of the encoded image.
    pixels: SHA-256 (hex) of size and decoded pixels.
    size: (width, height) of the decoded image.
    traits: keys of TRAITS.
    assumed_range: how values of more than 8 bits were understood, where that is a guess.
    """

    split: str
    name: str
    label: int
    problem: str = ""
    content: str = ""
    pixels: str = ""
    size: tuple[int, int] = (0, 0)
    traits: tuple[str, ...] = ()
    assumed_range: str = ""


@dataclass(frozen=True)
class TaskContents:
    """What a task holds: its classes in the order of their labels, and how many images."""

    name: str
    classes: tuple[str, ...]
    train: int
    test: int


@dataclass(frozen=True)
class Inspection:
    """What a data set holds.

    source: without the images that cannot be read.
    images: every image, those that cannot be read included.
    content_hash: of the images that can be read, as run.json records it.
    unused: names of files that lie beside the images and do not belong to the source.
    """

    source: Source
    images: tuple[InspectedImage, ...]
    content_hash: str
    unused: tuple[str, ...]

    @property
    def readable(self) -> list[InspectedImage]:
        return [image for image in self.images if not image.problem]

    def counts(self, split: str) -> list[int]:
        """How many readable images of a split each class has."""
        counts = [0] * len(self.source.class_names)
        for image in self.readable:
            counts[image.label] += image.split == split
        return counts


def inspect(source: Source, root: Path | None = None) -> Inspection:
    """Read and decode every image of `source`; what lies under `root` is named relative to it."""
    inspected, lines = [], []
    readable_index: dict[str, list[int]] = {split: [] for split in SPLITS}
    total = len(source.train) + len(source.test)
    with (
        warnings.catch_warnings(),
        tqdm(total=total, desc="reading images", leave=False, disable=None) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata, which is not used here
        for split in SPLITS:
            for index, image in enumerate(_inspect_split(source, split, root)):
                bar.update()
                inspected.append(image)
                if not image.problem:
                    readable_index[split].append(index)
                    lines.append(content_line(source, split, index, image.content))
    splits = {split: getattr(source, split).choose(readable_index[split]) for split in SPLITS}
    content_hash = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    unused = tuple(_unused_files(source, root))
    left_out = source.left_out.relative_to(root) if root else source.left_out
    source = replace(source, **splits, left_out=left_out)
    return Inspection(source, tuple(inspected), content_hash, unused)


def task_contents(source: Source, partition: Partition) -> list[TaskContents]:
    """What each task holds.

    Args:
        source: that `partition` divides.
        partition: the tasks as indices into it.
    """
    contents = []
    for index, (train, test) in enumerate(zip(partition.train, partition.test, strict=True)):
        present = {source.train.targets[image] for image in train}
        classes = tuple(
            source.class_names[target] for target in partition.order if target in present
        )
        name = source.task_names[index] if source.task_names else f"task {index + 1}"
        contents.append(TaskContents(name, classes, len(train), len(test)))
    return contents


def incomplete_folder(root: Path, exclude: Sequence[str] = ()) -> Source | None:
    """The images of class folders, also where classes lack images, so that all gaps of a folder
    that folder.load refuses can be reported.

    Args:
        root: the folder.
        exclude: patterns of files and folders that are left out.

    Returns:
        The images; None without class folders, or where a folder cannot be read.
    """
    try:
        return _incomplete_folder(root, Listing(root, exclude))
    except UserError:
        return None


def _incomplete_folder(root: Path, listing: Listing) -> Source | None:
    if folder.has_class_folders(root, listing):
        return folder.with_drawn_split(root, listing, TEST_FRACTION, split_seed=0)
    if not folder.has_layout(root):
        return None
    folders = {split: folder.named_folders(root / split, listing=listing) for split in SPLITS}
    names = list(folder.named_folders(*(root / split for split in SPLITS)))
    if not names:
        return None
    sets = {}
    for split in SPLITS:
        files = [
            [file for path in folders[split].get(name, []) for file in listing.image_files(path)]
            for name in names
        ]
        targets = [target for target, paths in enumerate(files) for _ in paths]
        sets[split] = ImageSet(targets, [path for paths in files for path in paths])
    return Source("folder", tuple(names), sets["train"], sets["test"], left_out=listing.left_out)


def _inspect_split(source: Source, split: str, root: Path | None) -> Iterator[InspectedImage]:
    """Each image of a split, in order."""
    images: ImageSet = getattr(source, split)

    def inspect_one(index: int) -> InspectedImage:
        blank = InspectedImage(split, _name(images, split, index, root), images.targets[index])
        return _describe(original_image(images.images[index]), blank)

    return map_in_threads(images, inspect_one)


def _name(images: ImageSet, split: str, index: int, root: Path | None) -> str:
    if images.names is None and not isinstance(images.images[index], Path):
        return f"{split} image {index}"
    return _relative(images.name(index), root)


def _relative(name: str, root: Path | None) -> str:
    return name.replace(f"{root}{os.sep}", "", 1) if root else name


def _describe(image: StoredImage, blank: InspectedImage) -> InspectedImage:
    """Complete `blank` with the description of the image, or with why it cannot be read."""
    try:
        content = read_encoded(image, blank.name)
        picture = decode(content, blank.name) if isinstance(content, bytes) else None
        pixels = content if isinstance(content, numpy.ndarray) else numpy.asarray(picture)
    except UserError as error:
        # without name and advice, which a list need not repeat
        return replace(blank, problem=reason(blank.name, error.__cause__))
    is_encoded = isinstance(content, bytes)
    return replace(
        blank,
        content=hashlib.sha256(content if is_encoded else content.tobytes()).hexdigest(),
        pixels=pixel_hash(pixels),
        size=(pixels.shape[1], pixels.shape[0]),
        traits=_traits(content) if is_encoded else (),
        assumed_range=picture.info.get(ASSUMED, "") if picture else "",
    )


def pixel_hash(pixels: numpy.ndarray) -> str:
    """SHA-256 (hex) of a picture's size and RGB pixels, (height, width, 3), whatever its file."""
    digest = hashlib.sha256(f"{pixels.shape[1::-1]}".encode())
    digest.update(numpy.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _traits(content: bytes) -> tuple[str, ...]:
    """What is unusual about an encoded image that can be decoded."""
    with open_image(content) as opened:
        base, _, depth = opened.mode.partition(";")
        base = base.rstrip("Aa")  # LA, PA, RGBA
        has = {
            "grayscale": base in ("1", "L", "I"),
            "palette": base == "P",
            "alpha": opened.has_transparency_data,
            "CMYK": base == "CMYK",
            # 16-bit colours are reduced while they are read; the mode is then RGB
            "16-bit": base == "I" or depth.startswith("16") or ";16" in str(opened.tile),
            "other-mode": base not in ("1", "L", "I", "P", "RGB", "CMYK"),
            "EXIF-rotated": opened.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1),
            "animated or multi-page": _has_more_pictures(opened),
        }
    return tuple(trait for trait in TRAITS if has[trait])


def _has_more_pictures(opened: Image.Image) -> bool:
    try:
        return getattr(opened, "is_animated", False)
    except Exception:  # something is wrong after the first picture, which can be decoded
        return True


def _unused_files(source: Source, root: Path | None) -> list[str]:
    """Files in the folders of the images that are none of the source's and not counted as left
    out, without service files.
    """
    used = {
        image
        for images in (source.train, source.test)
        for image in images.images
        if isinstance(image, Path)
    }
    counted = {*used, *source.left_out.unreadable, *source.left_out.excluded}
    beside = (
        Path(entry.path)
        for directory in {image.parent for image in used}
        for entry in Listing(directory).entries(directory)
        if entry.is_file()
    )
    return sorted(_relative(str(path), root) for path in beside if path not in counted)
