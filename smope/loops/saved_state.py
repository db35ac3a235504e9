"""What a learner's state_dict holds beside tensors, and tensors that have grown."""

from __future__ import annotations

import json
from typing import Any, Protocol

import torch
from torch import Tensor

from smope.methods.base import Method


class HasMethod(Protocol):
    """A module with a method inside."""

    method: Method


def as_tensor(record: dict[str, Any]) -> Tensor:
    """Plain values as JSON in a tensor (n,) uint8: files of safetensors hold nothing else."""
    return torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)


def from_tensor(state: Tensor) -> dict[str, Any]:
    """The values of as_tensor()."""
    return json.loads(bytes(state.tolist()))


def adopt_state(learner: HasMethod, state: dict[str, Any], prefix: str, *_arguments: Any) -> None:
    """Before a state is loaded: buffers that grow take their stored sizes.

    Args:
        learner: whose state it is.
        state: tensors by name; changed in place.
        prefix: of the learner's names in it.
    """
    inside = f"{prefix}method."
    own = {key: value for key, value in state.items() if key.startswith(inside)}
    for key in own:
        del state[key]
    adopted = learner.method.adopted({key.removeprefix(inside): own[key] for key in own})
    state |= {inside + key: value for key, value in adopted.items()}
