"""SMoPE+: what it adds to SMoPE is what its parts are by themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smope.methods._shared.drift import moved
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


@pytest.fixture(scope="module")
def learned_on() -> tuple[Trainer, list[SMoPEPlus]]:
    """A trainer whose experts learned in both tasks, and copies of the method after each."""
    method = make(later_epochs_factor=1, stored_features=5, drift_penalty=0.2)
    settings = tiny_settings(precision="float32")
    trainer = Trainer(method, tiny_stream(), settings, seed=0, device=torch.device("cpu"))
    snapshots: list[SMoPEPlus] = []
    trainer.fit(on_task_end=lambda: snapshots.append(copy.deepcopy(trainer.method).eval()))
    return trainer, snapshots


def plain_images(trainer: Trainer, task: int) -> tuple[Tensor, Tensor]:
    images = trainer.stream.tasks[task].train_plain
    return torch.stack([images[n][0] for n in range(len(images))]), torch.tensor(images.targets)


def test_experts_that_learn_on_have_a_classifier_of_stored_features_that_moved(
    learned_on: tuple[Trainer, list[SMoPEPlus]],
) -> None:
    trainer, (first, last) = learned_on
    assert not torch.equal(first.banks[0].values, last.banks[0].values)
    (old, old_labels), (new, new_labels) = (plain_images(trainer, task) for task in (0, 1))
    with torch.no_grad():
        before, after = first.features(new).double(), last.features(new).double()
        stored = moved(first.features(old).double(), before, after, 0.2)
    expected, labels = [], []
    for label in range(4):
        rows = (stored[old_labels == label], after[new_labels == label])[label >= 2]
        chosen = [rows[number * len(rows) // 5] for number in range(5)]
        expected += chosen
        labels += [label] * 5
    features, found = last.stored.all()
    assert found.tolist() == labels
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-3, atol=1e-4)
    hidden = (features @ last.ridge.projection.double()).relu()
    system = hidden.T @ hidden + float(last.ridge.sums.penalty) * torch.eye(64)
    targets = F.one_hot(found, 4).double()
    weight = torch.linalg.solve(system, hidden.T @ targets).T
    torch.testing.assert_close(last.ridge.weight.double(), weight, rtol=1e-4, atol=1e-5)


def test_they_learn_on_at_a_lower_rate_in_a_phase_of_their_own() -> None:
    method = make(later_epochs_factor=2, later_rate_factor=0.1, expert_rate_factor=4.0)
    [later] = method.phases(TaskSpan(1, 2, 4), 3)
    assert (later.name, later.epochs) == ("continued", 6)
    for phase, rate in ((method.phases(TaskSpan(0, 0, 2), 3)[-1], 8.0), (later, 0.8)):
        method.begin_phase(phase)
        assert [group["lr"] for group in method.parameter_groups(2.0)] == pytest.approx([rate, 2.0])


def test_a_class_is_forgotten_without_its_images(
    learned_on: tuple[Trainer, list[SMoPEPlus]],
) -> None:
    method = copy.deepcopy(learned_on[1][-1])
    other = copy.deepcopy(method)
    method.withdraw(1, None)
    features, labels = other.stored.all()
    other.ridge.refit([(features[labels != 1], labels[labels != 1])])
    assert torch.equal(method.ridge.weight, other.ridge.weight)
    assert not method.ridge.weight[1].any()
