"""What methods with prompt experts have in common, for those who record or count experts.

SMoPE and SMoPE+ meet this protocol. No other part of the contract in methods/base.py knows experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from smope.experts.bank import ExpertBank
from smope.methods.base import Method
from smope.routers.base import Routing


@runtime_checkable
class RoutedMethod(Protocol):
    """A method whose router chooses experts for each image.

    Attributes:
        dense_epochs: epochs of a warm-up before the first task in which all experts are used; the
            trainer sets it from trainer.dense_epochs.
    """

    dense_epochs: int

    @property
    def experts(self) -> Sequence[ExpertBank]:
        """The experts of each prompted block."""
        ...

    @property
    def routings(self) -> Sequence[Routing]:
        """The choices of the last forward pass, one for each prompted block, without gradient."""
        ...


def experts_of(method: Method) -> Sequence[ExpertBank]:
    """The experts of each prompted block; empty for a method without experts."""
    return method.experts if isinstance(method, RoutedMethod) else ()


def routings_of(method: Method) -> Sequence[Routing]:
    """The choices of the last forward pass, one for each prompted block; empty without experts."""
    return method.routings if isinstance(method, RoutedMethod) else ()
