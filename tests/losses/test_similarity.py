"""SimSMoE's loss against loops over pairs, and where nothing may break."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from smope.losses.similarity import kernel_cka, similarity_loss


def slow_cka(first: list[float], second: list[float]) -> float:
    """trace(K H L H), written out."""
    size = len(first)

    def centred(row: list[float]) -> list[list[float]]:
        kernel = [[math.exp(-((a - b) ** 2) / (2 * 0.8**2)) for b in row] for a in row]
        means = [sum(line) / size for line in kernel]
        total = sum(means) / size
        return [
            [kernel[a][b] - means[a] - means[b] + total for b in range(size)] for a in range(size)
        ]

    def hsic(one: list[list[float]], other: list[list[float]]) -> float:
        return sum(one[a][b] * other[b][a] for a in range(size) for b in range(size))

    one, other = centred(first), centred(second)
    return hsic(one, other) / math.sqrt(hsic(one, one) * hsic(other, other))


@pytest.fixture
def values() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, 6, generator=draw, dtype=torch.float64)
    rows[1, 3] = rows[1, 0] + 0.05 * rows[1, 3]
    return rows


def test_cka_of_each_pair(values: Tensor) -> None:
    table = kernel_cka(values)
    for head in range(2):
        for i in range(5):
            for j in range(5):
                expected = slow_cka(values[head, i].tolist(), values[head, j].tolist())
                assert table[head, i, j].item() == pytest.approx(expected, rel=1e-9)
    assert table.diagonal(dim1=-2, dim2=-1).tolist() == [[pytest.approx(1.0)] * 5] * 2


@pytest.mark.parametrize("top_k", [2, 3, 5])
def test_the_loss_is_a_mean_over_pairs_that_were_chosen_together(
    values: Tensor, top_k: int
) -> None:
    draw = torch.Generator().manual_seed(1)
    ids = torch.rand(4, 2, 5, generator=draw).topk(top_k).indices
    chosen = torch.zeros(4, 2, 5).scatter_(-1, ids, 1).bool()
    total, number = 0.0, 0
    for image in range(4):
        for head in range(2):
            for i, j in combinations(ids[image, head].tolist(), 2):
                alike = slow_cka(values[head, i].tolist(), values[head, j].tolist())
                total += alike if alike > 0.5 else 0.0
                number += 1
    assert similarity_loss(values, chosen, top_k).item() == pytest.approx(total / number)
    halves = [similarity_loss(values, part, top_k) for part in chosen.split(2)]
    assert sum(halves).item() / 2 == pytest.approx(total / number)


def test_only_the_alike_are_pushed_apart(values: Tensor) -> None:
    values.requires_grad_()
    chosen = torch.ones(1, 2, 5).bool()
    similarity_loss(values, chosen, 5).backward()
    table = kernel_cka(values.detach()) > 0.5
    moved = values.grad.abs().sum(-1) > 1e-12
    assert torch.equal(moved, table.sum(-1) > 1)
    before = kernel_cka(values.detach())[1, 0, 3]
    after = kernel_cka(values.detach() - 0.1 * values.grad)[1, 0, 3]
    assert after < before


@pytest.mark.parametrize("start", [torch.zeros(1, 3, 4), torch.ones(1, 3, 4)])
def test_values_that_are_all_equal_have_a_finite_gradient(start: Tensor) -> None:
    start.requires_grad_()
    value = similarity_loss(start, torch.ones(2, 1, 3).bool(), 2)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(start.grad).all()
