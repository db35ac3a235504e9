"""The benchmark of routing measures every router of conf/router."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import routing


def test_every_router_is_measured() -> None:
    found = routing.seconds(routing.Size(experts=6, chosen=2, tokens=3), rounds=1)
    assert set(found) == set(routing.ROUTERS)
    assert min(found.values()) > 0


def test_the_measured_step_reaches_the_keys(monkeypatch) -> None:
    """A router whose weights were cut from the keys would cost less than it does in training."""
    made = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **k: made.append(rand(*a, **k)) or made[-1])
    routing.routing("topk", routing.Size(experts=6, chosen=2, tokens=3))()
    (keys,) = (tensor for tensor in made if tensor.requires_grad)
    assert keys.grad is not None and keys.grad.any()
