"""Texts that stand for something: paths, names, devices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from smope.declare.constraint import Constraint


@dataclass(frozen=True)
class PathTo(Constraint):
    """A path, given as text. An annotation `pathlib.Path` says the same and passes a Path.

    The configuration keeps it as an absolute path, with ~ expanded. On the command line it needs no
    quotes. A run that is resumed may find the file elsewhere, and runs that differ in the path
    alone count as repeats, unless a keyword can stand in its place.

    Attributes:
        noun: What is there, such as "folder of images".
        keywords: Words that may stand in place of a path.
    """

    noun: str = "path"
    example: str = "..."
    keywords: tuple[str, ...] = ()
    free_text = True

    def __post_init__(self) -> None:
        text = f"{', '.join(self.keywords)} or a path" if self.keywords else "a path"
        self._set(text, self.example)

    def holds(self, value: Any) -> bool:
        return not isinstance(value, str) or bool(value.strip())


@dataclass(frozen=True)
class PathObject(PathTo):
    """What an annotation `pathlib.Path` stands for: the argument is passed as a Path."""


@dataclass(frozen=True)
class NameOf(Constraint):
    """The name of something that is looked up later, such as a model."""

    noun: str = "thing"
    example: str = "..."

    def __post_init__(self) -> None:
        self._set(f"the name of a {self.noun}", self.example)

    def holds(self, value: str) -> bool:
        return bool(value.strip())


@dataclass(frozen=True)
class FolderName(Constraint):
    """The name of one folder."""

    text = "usable as a folder's name, without / or \\"
    example = "first_try"
    free_text = True

    def holds(self, value: str) -> bool:
        forbidden = value in (".", "..") or re.search(r"[/\\\0\n]", value)
        return bool(value.strip()) and not forbidden


@dataclass(frozen=True)
class Device(Constraint):
    """What torch computes on."""

    text = "auto, cpu, cuda, cuda:N or mps"
    example = "auto"

    def holds(self, value: str) -> bool:
        return bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value))


ImageFolder = Annotated[str, PathTo("folder of images", "~/photos")]
ClassOrder = Annotated[str, PathTo("file of classes", "paper", ("paper", "pilot", "sorted"))]
WeightFile = Annotated[str, PathTo("file or folder", "hub", ("embedded", "hub", "random"))]
