"""EASE: prototypes, their synthesis and the ensemble of subspaces equal slow loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smope.methods.base import Batches, TaskSpan
from smope.methods.ease import EASE, synthesise
from smope.metrics.cost import count_flops
from tests.tiny import tiny_backbone

SPANS = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4), TaskSpan(2, 4, 6)


def images(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, 3, 32, 32, generator=generator, dtype=torch.float64)


def labels(span: TaskSpan) -> Tensor:
    return torch.tensor([*span.classes, *span.classes, span.classes[0]])


def of_task(span: TaskSpan) -> Batches:
    return lambda _: iter([(images(5, span.index), labels(span))])


def learned(spans: tuple[TaskSpan, ...] = SPANS, **settings: Any) -> EASE:
    """A method whose adapters have weights of their own, after some tasks."""
    torch.manual_seed(0)
    method = EASE(tiny_backbone(), 6, 3, rank=3, **settings).double().eval()
    for modules in method.adapters:
        nn.init.normal_(modules.up, std=2.0)
    for span in spans:
        method.begin_task(span)
        method.end_task(span, of_task(span))
    return method


def subspace(method: EASE, number: int, given: Tensor) -> Tensor:
    """Features (B, C) of images in a network that has one of the adapters and no other."""
    single = EASE(tiny_backbone(), 6, 1, rank=3).double().eval()
    with torch.no_grad():
        for own, modules in zip(single.adapters, method.adapters, strict=True):
            own.down[0], own.up[0] = modules.down[number], modules.up[number]
        return single.features(given)


def slow_prototypes(method: EASE) -> dict[tuple[int, int], Tensor]:
    """By class and subspace, as the paper's section 3.3 says, from the classes of all tasks from
    that of the subspace on.
    """
    made: dict[tuple[int, int], Tensor] = {}
    for span in SPANS:
        for space in range(span.index + 1):
            rows = subspace(method, space, images(5, span.index))
            for label in span.classes:
                made[label, space] = rows[labels(span) == label].mean(0)
    for old in SPANS:
        for space in range(old.index + 1, 3):
            later = [label for span in SPANS[space:] for label in span.classes]
            for label in old.classes:
                near = [
                    math.exp(torch.cosine_similarity(made[label, old.index], made[j, old.index], 0))
                    for j in later
                ]
                made[label, space] = sum(
                    (
                        share / sum(near) * made[j, space]
                        for share, j in zip(near, later, strict=True)
                    ),
                    torch.zeros(32).double(),
                )
    return made


def test_prototypes_are_means_or_synthesised_as_a_loop_says() -> None:
    method = learned()
    made = slow_prototypes(method)
    assert len(made) == 18
    for (label, space), expected in made.items():
        torch.testing.assert_close(method.prototypes[label, space], expected)


@pytest.mark.parametrize("old_weight", [0.0, 0.1])
def test_subspaces_are_weighed_as_a_loop_says(old_weight: float) -> None:
    method, given = learned(old_weight=old_weight), images(3, seed=9)
    spaces = [subspace(method, number, given) for number in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(method.features(given), torch.cat(spaces, -1))
        logits = method(given)
    for image in range(3):
        for span in SPANS:
            for label in span.classes:
                cosines = [
                    torch.cosine_similarity(spaces[s][image], method.prototypes[label, s], 0)
                    for s in range(3)
                ]
                others = sum(cosine for s, cosine in enumerate(cosines) if s != span.index)
                expected = 20 * (cosines[span.index] + old_weight * others / 2)
                torch.testing.assert_close(logits[image, label], expected)


def test_after_one_task_it_is_nearest_class_mean_in_its_subspace() -> None:
    method, given = learned(SPANS[:1]), images(3, seed=9)
    rows = subspace(method, 0, given)
    for label in (0, 1):
        cosines = torch.cosine_similarity(rows, method.prototypes[label, 0].unsqueeze(0))
        torch.testing.assert_close(method(given)[:, label], 20 * cosines)


def test_a_class_that_comes_again_has_the_mean_of_all_its_images() -> None:
    again = TaskSpan(1, 2, 2, (0, 1))
    method = learned((SPANS[0], again))
    both = torch.cat([images(5, 0), images(5, 1)])
    known = torch.cat([labels(SPANS[0]), labels(again)])
    for label in (0, 1):
        first, second = (subspace(method, number, both) for number in range(2))
        expected = first[known == label].mean(0)
        torch.testing.assert_close(method.prototypes[label, 0], expected)
        of_later = second[5:][labels(again) == label].mean(0)
        torch.testing.assert_close(method.prototypes[label, 1], of_later)
    assert method.task.tolist()[:2] == [1, 1]


def test_prototypes_with_images_are_not_written() -> None:
    prototypes = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[2, 0, 0], [2, 2, 0], [3, 3, 3], [0, 0, 0]])
    before = prototypes.clone()
    synthesise(prototypes, counts, torch.tensor([0, 1, 2, 0]))
    kept = (counts > 0) | (counts.sum(-1, keepdim=True) == 0)
    assert torch.equal(prototypes[kept], before[kept])
    for label, space in ((0, 2), (1, 2)):  # one class has images there
        torch.testing.assert_close(prototypes[label, space], before[2, space])


def test_what_it_remembers_of_a_class_it_recognises() -> None:
    method = learned(SPANS[:2])
    recollection = method.recollect(1)
    assert recollection is not None and recollection.labels.tolist() == [0, 1, 2, 3]
    assert recollection.logits.argmax(-1).tolist() == [0, 1, 2, 3]
    cosines = method.class_cosines(method.prototypes[:4, :2].flatten(1))
    assert cosines is not None and cosines.argmax(-1).tolist() == [0, 1, 2, 3]
    assert (cosines[:, 4:] == -math.inf).all()


def test_three_passes_are_counted_for_three_tasks() -> None:
    flops = count_flops(EASE(tiny_backbone(), 6, 3, rank=3), SPANS[0])
    plain = flops["infer_gflops"]["torch"] - flops["beyond_plain"]["torch"]
    assert 3 * plain < flops["infer_gflops"]["torch"] < 3.5 * plain
    assert flops["train_gflops"]["torch"] < 3.5 * plain
