"""SMoPE+: what it adds to SMoPE is what its parts are by themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smope.methods.base import TaskSpan
from smope.methods.smope_plus import SMoPEPlus
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream


def make(**options: Any) -> SMoPEPlus:
    torch.manual_seed(0)
    return SMoPEPlus(tiny_backbone(), 4, AdaptiveNoise(), **{"width": 64, **options})


@pytest.fixture(scope="module")
def trained() -> tuple[Trainer, list[dict[str, Tensor]]]:
    """A trainer after both tasks, and the method's state after each."""
    trainer = Trainer(make(), tiny_stream(), tiny_settings(), seed=0, device=torch.device("cpu"))
    snapshots: list[dict[str, Tensor]] = []
    trainer.fit(on_task_end=lambda: snapshots.append(copy.deepcopy(trainer.method.trained_state())))
    return trainer, snapshots


def test_experts_counts_and_linear_classifier_stay_as_the_first_task_left_them(
    trained: tuple[Trainer, list[dict[str, Tensor]]],
) -> None:
    trainer, (first, last) = trained
    kept = [key for key in first if not key.startswith("ridge.")]
    assert any(key.endswith("values") for key in kept) and any(
        key.endswith("counts") for key in kept
    )
    assert all(torch.equal(first[key], last[key]) for key in kept)
    assert not torch.equal(first["ridge.weight"], last["ridge.weight"])
    assert sum(int(bank.counts.sum()) for bank in trainer.method.experts) > 0


def test_the_classifier_is_one_fit_to_the_features_of_all_tasks(
    trained: tuple[Trainer, list[dict[str, Tensor]]],
) -> None:
    trainer, _ = trained
    method = trainer.method.eval()
    assert isinstance(method, SMoPEPlus)
    images = [
        torch.stack([task.train_plain[n][0] for n in range(len(task.train_plain))])
        for task in trainer.stream.tasks
    ]
    labels = torch.tensor(
        [label for task in trainer.stream.tasks for label in task.train_plain.targets]
    )
    with torch.no_grad():
        features = method.features(torch.cat(images)).double()
    assert method.ridge.projection is not None
    hidden = (features @ method.ridge.projection.double()).relu()
    system = hidden.T @ hidden + float(method.ridge.sums.penalty) * torch.eye(64)
    expected = torch.linalg.solve(system, hidden.T @ F.one_hot(labels, 4).double()).T
    torch.testing.assert_close(method.ridge.weight.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_first_task_takes_the_epochs_of_the_others_as_well() -> None:
    first, second = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4)
    method = make(epochs_factor=3)
    method.dense_epochs = 1
    assert [(phase.name, phase.epochs) for phase in method.phases(first, 2)] == [
        ("dense", 3),
        ("sparse", 6),
    ]
    method.dense_epochs = 0
    assert [phase.name for phase in method.phases(first, 2)] == ["sparse"]
    assert method.phases(second, 2) == []


def test_values_start_at_zero_and_keys_apart() -> None:
    banks = make().experts
    assert all(
        not bank.values.any() and bank.keys.min() >= 0 and bank.keys.std() > 0.2 for bank in banks
    )
    assert all(bank.values.any() for bank in make(expert_init="uniform").experts)


def test_the_readout_is_the_cls_feature_and_the_mean_patch_token_before_the_last_block() -> None:
    method = make().eval()
    images = torch.rand(3, 3, 32, 32)
    vit = method.backbone.vit
    seen: list[Tensor] = []
    with torch.no_grad():
        features = method.features(images)
        with vit.blocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            plain = vit.forward_features((images - method.backbone.mean) / method.backbone.std)[
                :, 0
            ]
    patches = seen[0][:, 1:].mean(1)
    expected = (patches - patches.mean(1, keepdim=True)) / (
        patches.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(features, torch.cat([plain, expected], 1), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            make(readout="cls").eval().features(images), plain, rtol=1e-4, atol=1e-5
        )


def test_a_vit_that_is_not_taken_apart_reads_out_the_same() -> None:
    backbone, images = tiny_backbone(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images, with_tokens=True)
        backbone.vit.fc_extra = torch.nn.Identity()  # a part that nobody here knows
        torch.testing.assert_close(
            backbone(images, with_tokens=True), expected, rtol=1e-4, atol=1e-5
        )
