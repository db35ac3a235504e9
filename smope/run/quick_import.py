"""Import torch and timm in three quarters of the time that they take by themselves."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within it, imports are not interrupted by garbage collection, and timm imports no wandb.

    timm needs wandb for a training script of its own, and takes it as missing here.
    """
    if "timm" in sys.modules:
        yield
        return
    collects, hides_wandb = gc.isenabled(), "wandb" not in sys.modules
    gc.disable()
    if hides_wandb:
        sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType] (a missing module)
    try:
        import timm  # noqa: F401
    finally:
        if hides_wandb:
            del sys.modules["wandb"]
    try:
        yield
    finally:
        if collects:
            gc.enable()
