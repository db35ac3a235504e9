"""A lesson: new images that a trained model will learn, checked and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smope.errors import UserError
from smope.run.artefact import Artefact
from smope.serving.class_folders import ClassFolders, known_names
from smope.streams.pixels.preload import preload_images
from smope.streams.source import ImageSet, Source

STREAM_NAME = "new images"
SKIP_BROKEN = "set stream.broken_images=skip"  # in the error of a stream
LEAVE_OUT = "leave it out with --skip-broken"


@dataclass(frozen=True)
class Lesson:
    """What a model will learn.

    Attributes:
        class_names: of the lesson, by class id.
        known: those of them that the model knows already; they get more images.
        images: with class ids.
        content_hash: SHA-256 (hex) of images and classes.
        validation: images of old and new classes that nothing is learned from, with labels of the
            model; None where there are none.
    """

    class_names: tuple[str, ...]
    known: tuple[str, ...]
    images: ImageSet
    content_hash: str
    validation: ImageSet | None = None

    @property
    def new(self) -> list[str]:
        """The names that are new to the model."""
        return [name for name in self.class_names if name not in self.known]

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each class."""
        targets = list(self.images.targets)
        return {name: targets.count(index) for index, name in enumerate(self.class_names)}


def prepare_lesson(
    artefact: Artefact,
    folders: ClassFolders,
    validation: ClassFolders | None = None,
    *,
    more_images: bool = False,
    broken_images: Literal["error", "skip"] = "error",
) -> Lesson:
    """Decode the images of a lesson.

    Args:
        artefact: the model that will learn.
        folders: a folder for each class.
        validation: the same, to measure accuracies before and after.
        more_images: whether images of classes that the model knows are welcome.
        broken_images: "error" refuses images that cannot be read, "skip" leaves them out.

    Raises:
        UserError: an image cannot be read, or a class is known or unknown that should not be.
    """
    known = known_names(folders, artefact.class_names, more_images)
    new = [name for name in folders.class_names if name not in known]
    held_out = None
    if validation is not None:
        names = [*artefact.class_names, *new]
        unknown = [name for name in validation.class_names if name not in names]
        if unknown:
            raise UserError(
                f"{validation.key}: the model will not know {unknown[0]}; remove its folder"
            )
        held_out, _ = decoded(validation, names, broken_images)
    images, content_hash = decoded(folders, folders.class_names, broken_images)
    missing = set(range(len(folders.class_names))) - set(images.targets)
    if missing:
        name = folders.class_names[min(missing)]
        raise UserError(f"{folders.key}: no image of {name} can be read; add some")
    return Lesson(tuple(folders.class_names), tuple(known), images, content_hash, held_out)


def decoded(
    folders: ClassFolders,
    class_names: Sequence[str],
    broken_images: Literal["error", "skip"] = "error",
) -> tuple[ImageSet, str]:
    """Decode the images of class folders.

    Args:
        folders: the folders.
        class_names: decide the number of each class.
        broken_images: "error" refuses images that cannot be read, "skip" leaves them out.

    Returns:
        The images, and the SHA-256 (hex) of images and classes.

    Raises:
        UserError: an image cannot be read.
    """
    number = {name: index for index, name in enumerate(class_names)}
    targets = [number[name] for name, files in folders.files.items() for _ in files]
    files = [file for files in folders.files.values() for file in files]
    names = None
    if folders.image_names is not None:
        names = [name for of_class in folders.files for name in folders.image_names[of_class]]
    images = ImageSet(targets, files, names)
    source = Source(STREAM_NAME, tuple(class_names), images, ImageSet([], []))
    try:
        preloaded = preload_images(source, broken_images)
    except UserError as error:
        text = str(error).removeprefix(f"stream {STREAM_NAME}: ")
        raise UserError(text.replace(SKIP_BROKEN, LEAVE_OUT)) from error
    return preloaded.source.train, preloaded.content_hash
