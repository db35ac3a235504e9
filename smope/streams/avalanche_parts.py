"""The parts of Avalanche that carry a stream, imported without all the others.

Importing any module of Avalanche first runs the `__init__` of `avalanche` and of
`avalanche.benchmarks`, which import every part: training, metrics, models, loggers, and with them
torchmetrics, scipy.signal, matplotlib and gdown. A stream needs the datasets and scenarios alone.
So these two packages are entered into sys.modules before their `__init__` has run, and it runs
later, when somebody asks for more of Avalanche: at the first import of another of its modules, or
the first use of a name that is not there yet. A program that uses Avalanche sees no difference.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec

import torch

# In the order in which Avalanche itself completes them.
PACKAGES = ("avalanche.benchmarks", "avalanche")


class _Unfinished(types.ModuleType):
    """A package whose `__init__` has not run yet; it runs at the first name that is missing."""

    def __getattr__(self, name: str) -> object:
        _finish()
        return getattr(self, name)


class _Finished(importlib.abc.Loader):
    """Gives an import the module that has been imported in the meantime."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self.module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec  # the import has put its own in its place


class _Watcher(importlib.abc.MetaPathFinder):
    """Finishes the packages when a module of Avalanche is imported that a stream does not need."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("avalanche."):
            return None
        _finish()
        module = sys.modules.get(fullname)
        return module and ModuleSpec(fullname, _Finished(module))


_watcher = _Watcher()


@contextmanager
def needed_parts_alone() -> Iterator[None]:
    """Within it, importing a module of Avalanche imports what that module needs and no more.

    Afterwards the rest of Avalanche is imported as soon as somebody asks for it. If Avalanche was
    imported before, nothing is changed.
    """
    if "avalanche" in sys.modules:
        yield
        return
    for name in reversed(PACKAGES):
        _enter(name)
    try:
        yield
    finally:
        sys.meta_path.insert(0, _watcher)


def _enter(name: str) -> None:
    """A package in sys.modules, whose `__init__` has not run."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = importlib.util.module_from_spec(spec)
    package.__class__ = _Unfinished
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


def _finish() -> None:
    """Run the `__init__` of the packages. Torch's generator, from which that draws, is left as it
    was.
    """
    if _watcher in sys.meta_path:
        sys.meta_path.remove(_watcher)
    packages = [sys.modules[name] for name in PACKAGES]
    unfinished = [package for package in packages if isinstance(package, _Unfinished)]
    for package in unfinished:
        package.__class__ = types.ModuleType  # pyright: ignore[reportAttributeAccessIssue]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # from a dependency of Avalanche, about strategies that are not used here
        warnings.filterwarnings("ignore", message="no QP solver found")
        for package in unfinished:
            assert package.__spec__ is not None and package.__spec__.loader is not None
            package.__spec__.loader.exec_module(package)
