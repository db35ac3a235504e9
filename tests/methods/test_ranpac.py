"""RanPAC's first session: a prompt that learns the first task and starts from the backbone's own
features.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from smope.methods.base import TaskSpan
from smope.methods.ranpac import RanPAC
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream


def make(**options: Any) -> RanPAC:
    torch.manual_seed(0)
    return RanPAC(tiny_backbone(), 4, **{"width": 64, **options})


def test_the_prompt_learns_in_the_first_task_alone() -> None:
    method, snapshots = make(), list[dict[str, Tensor]]()
    start = method.prompt.detach().clone()
    assert not start[:, 1].any() and start[:, 0].std() > 0.3
    trainer = Trainer(method, tiny_stream(), tiny_settings(), seed=0, device=torch.device("cpu"))
    trainer.fit(on_task_end=lambda: snapshots.append(copy.deepcopy(method.trained_state())))
    first, last = snapshots
    assert not torch.equal(first["prompt"], start)
    assert torch.equal(first["prompt"], last["prompt"])
    assert not torch.equal(first["ridge.weight"], last["ridge.weight"])
    assert method.phases(TaskSpan(1, 2, 4), 3) == []


def test_with_values_of_zero_a_prompt_takes_attention_away_and_adds_nothing() -> None:
    """How much it takes depends on its key; with a key of zero it is a little."""
    method, images = make(length=1).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain = tiny_backbone()(images)
        assert not torch.allclose(method.features(images), plain)
        far = copy.deepcopy(method)
        far.prompt[:, 0] = 0
        shifted = (far.features(images) - plain).norm() / plain.norm()
        assert 0 < shifted < 0.5


def test_it_predicts_with_the_ridge_classifier() -> None:
    method, images = make().eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(method(images), method.ridge(method.features(images)))
        method.ridge.weight.normal_()
        assert method(images).abs().sum() > 0
