"""Our methods in Avalanche: `smope.avalanche.MethodStrategy`.

Importing this package imports no Avalanche. `import avalanche` is Avalanche itself, here too, since
imports are absolute.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smope.avalanche.strategy import MethodStrategy

__all__ = ["MethodStrategy"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # from a dependency of Avalanche, about strategies that are not used here
        warnings.filterwarnings("ignore", message="no QP solver found")
        from smope.avalanche import strategy
    return getattr(strategy, name)
