"""TUNA: merge, choice and penalty equal slow loops, and its passes are counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from smope.methods.base import TaskSpan
from smope.methods.tuna import TUNA, likeness, merged
from smope.metrics.cost import count_flops
from tests.tiny import tiny_backbone

SPANS = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4), TaskSpan(2, 4, 6)


def images(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(number, 3, 32, 32, generator=generator, dtype=torch.float64)


def learned(tasks: int) -> TUNA:
    """A method whose adapters have weights of their own, after so many tasks of three."""
    torch.manual_seed(0)
    method = TUNA(tiny_backbone(), 6, 3, rank=3).double().eval()
    for modules in method.adapters:
        nn.init.normal_(modules.up, std=2.0)
    for span in SPANS[:tasks]:
        method.begin_task(span)
        method.end_task(span, lambda _: iter([]))
    return method


def features_with(method: TUNA, number: int, image: Tensor) -> Tensor:
    """The feature (C,) of an image in a network that has one of the adapters and no other."""
    single = TUNA(tiny_backbone(), 6, 1, rank=3).double().eval()
    single.begin_task(SPANS[0])
    with torch.no_grad():
        for own, modules in zip(single.adapters, method.adapters, strict=True):
            own.down[1], own.up[1] = modules.down[number], modules.up[number]
        return single.features(image.unsqueeze(0))[0]


def test_the_universal_adapter_is_merged_as_a_loop_says() -> None:
    weights = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    weights[:, 0, 0] = torch.tensor([0.5, -2.0, 1.0, 1.0])
    expected = torch.zeros(5, 3)
    for i in range(5):
        for j in range(3):
            values = weights[:, i, j].tolist()
            sign = math.copysign(1, sum(values))
            expected[i, j] = sign * max(abs(value) for value in values if value * sign > 0)
    assert expected[0, 0] == 1.0, "the largest of all has the other sign"
    torch.testing.assert_close(merged(weights), expected)
    for parameter in learned(tasks=2).adapters.parameters():
        assert torch.equal(parameter[0], merged(parameter[1:3])), "of the tasks so far"


def test_an_image_chooses_its_most_confident_adapter_as_a_loop_says() -> None:
    method, chosen, expected = learned(tasks=2), [], []
    for image in images(12):
        probabilities = []
        for number in (1, 2, 0):
            feature = features_with(method, number, image)
            rows = method.classifier.weight.detach()[:4]  # of the classes of both tasks
            cosines = [torch.cosine_similarity(feature, row, dim=0) for row in rows]
            probabilities.append((20 * torch.stack(cosines)).softmax(0))
        entropies = [-sum(p * math.log(p) for p in row.tolist()) for row in probabilities[:2]]
        chosen.append(entropies.index(min(entropies)))
        expected.append((probabilities[chosen[-1]] + probabilities[2]) / 2)
    assert set(chosen) == {0, 1}, "some images choose the first, some the second"
    with torch.no_grad():
        found = method(images(12)).softmax(-1)
    torch.testing.assert_close(found[:, :4], torch.stack(expected))
    assert found[:, 4:].max() < 1e-12, "a class that no task had"


def test_up_projections_are_kept_apart_as_a_loop_says() -> None:
    generator = torch.Generator().manual_seed(0)
    ups = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)  # 2 blocks, 3 tasks
    total = torch.zeros(())
    for earlier in range(2):
        for block in range(2):
            new, old = ups[block, 2].T, ups[block, earlier].T.detach()
            products = [(a / a.norm()) @ (b / b.norm()) for a in new for b in old]
            total = total + torch.stack(products).mean().abs() / 2
    torch.testing.assert_close(likeness(ups), total)
    [expected] = torch.autograd.grad(total, ups)
    [found] = torch.autograd.grad(likeness(ups), ups)
    torch.testing.assert_close(found, expected)
    assert not found[:, :2].any(), "earlier adapters stay"


def test_its_weight_falls_with_tasks() -> None:
    method = learned(tasks=3)
    labels = {span.index: torch.tensor(span.classes) for span in SPANS}
    assert method.losses(images(2), labels[0], SPANS[0]).keys() == {"cosface"}
    for span in SPANS[1:]:
        ups = torch.stack([modules.up[1 : span.index + 2] for modules in method.adapters])
        torch.testing.assert_close(
            method.losses(images(2), labels[span.index], span)["orthogonality"],
            1e-3 * math.exp(-(span.index + 1)) * likeness(ups),
        )


def test_a_task_trains_its_own_adapter_alone() -> None:
    method = learned(tasks=2)
    sum(method.losses(images(2), torch.tensor([2, 3]), SPANS[1]).values()).backward()
    for parameter in method.adapters.parameters():
        assert parameter.grad is not None and parameter.grad[2].any()
        assert not parameter.grad[[0, 1, 3]].any()
    decays = [group.get("weight_decay") for group in method.parameter_groups(0.1)]
    assert decays[0] == 0.0, "it would change all of them"


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_passes_at_test_grow_with_tasks(tasks: int) -> None:
    method = learned(tasks)
    passes = 1 if tasks == 1 else tasks + 1
    assert method.features(images(2)).shape == (2, passes * 32)
    fresh = TUNA(tiny_backbone(), 6, 3, rank=3).double()
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.eval()(images(2)), method(images(2)))


def test_four_passes_are_counted_for_three_tasks() -> None:
    flops = count_flops(TUNA(tiny_backbone(), 6, 3, rank=3), SPANS[0])
    plain = flops["infer_gflops"]["torch"] - flops["beyond_plain"]["torch"]
    assert 4 * plain < flops["infer_gflops"]["torch"] < 4.5 * plain
    assert flops["train_gflops"]["torch"] < 3.5 * plain


def test_images_are_near_to_classes_in_the_features_of_their_task() -> None:
    method = learned(tasks=2)
    means = torch.randn(3, 32, generator=torch.Generator().manual_seed(3)).double()
    for label, mean in enumerate(means):
        method.statistics.record(label, mean.unsqueeze(0))
    with torch.no_grad():
        cosines = method.class_cosines(method.features(images(4)))
    assert cosines is not None
    for row, image in zip(cosines, images(4), strict=True):
        for label, number in ((0, 1), (1, 1), (2, 2)):
            feature = features_with(method, number, image)
            torch.testing.assert_close(
                row[label], torch.cosine_similarity(feature, means[label], dim=0)
            )
        assert (row[3:] == -math.inf).all()


def test_a_class_that_comes_again_is_described_with_the_new_adapter_alone() -> None:
    method = learned(tasks=1)
    method.statistics.record(0, torch.ones(3, 32, dtype=torch.float64))
    again = TaskSpan(1, 0, 2)
    method.begin_task(again)
    method.end_task(again, lambda _: iter([]))
    pixels = images(4)
    features = method.task_features(pixels, again).detach()
    assert torch.equal(features, method.features_with(pixels, 2))
    method.statistics.record(0, features)
    torch.testing.assert_close(method.statistics.mean[0, 0], features.mean(0))
    torch.testing.assert_close(method.statistics.variance[0, 0], features.T.cov(correction=0))
