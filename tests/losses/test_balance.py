"""The losses against uneven use: three experts by hand, and loops written from the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smope.losses.balance import cv_squared, router_z_loss, switch_balance_loss, variation_loss

LN = math.log


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_variation_of_three_experts() -> None:
    """Totals 1, 2, 3: mean 2, squares of the differences sum to 2."""
    totals = torch.tensor([1.0, 2.0, 3.0])
    assert cv_squared(totals).item() == close(2 / 3 / 4)
    assert cv_squared(totals, correction=1).item() == close(2 / 2 / 4)
    assert cv_squared(torch.full((3,), 7.0)).item() == 0


def test_variation_where_nothing_varies_is_0_and_has_a_gradient() -> None:
    for totals in (torch.ones(2, 1), torch.zeros(2, 3)):
        totals.requires_grad_()
        value = cv_squared(totals, correction=1)
        assert value.tolist() == [0, 0]
        value.sum().backward()
        assert totals.grad is not None and not totals.grad.isnan().any()


def test_the_sum_over_images_varies_not_each_image() -> None:
    """Three images, each with an expert of its own, are in balance."""
    assert variation_loss(torch.eye(3).unsqueeze(1)).item() == 0
    one_for_all = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 1, 3)
    assert variation_loss(one_for_all).item() == close(2)


@pytest.mark.parametrize("correction", [0, 1])
def test_experts_that_are_not_available_do_not_count(correction: int) -> None:
    """The losses are those of the other experts by themselves, head by head."""
    available = torch.tensor([[True, False, True, True], [True, True, False, False]])
    amounts = random(5, 2, 4).square() * available
    ids = torch.tensor([[[0], [1]]]).expand(5, 2, 1)
    probabilities = amounts / amounts.sum(-1, keepdim=True)
    variation, balance = [], []
    for head, of_head in enumerate(available):
        alone = amounts[:, head : head + 1, of_head]
        variation.append(variation_loss(alone, correction))
        chances = probabilities[:, head : head + 1, of_head]
        balance.append(switch_balance_loss(chances, ids[:, head : head + 1]))
    found = variation_loss(amounts, correction, available)
    torch.testing.assert_close(found, torch.stack(variation).mean())
    found = switch_balance_loss(probabilities, ids, available)
    torch.testing.assert_close(found, torch.stack(balance).mean())
    one = torch.tensor([True, False, False])
    assert cv_squared(torch.tensor([3.0, 9.0, 1.0]), correction, one).item() == 0


def test_balance_of_three_experts() -> None:
    """Four images, experts 0, 0, 0 and 1; mean probabilities 1/2, 3/10, 1/5."""
    probabilities = torch.tensor(
        [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.5, 0.2, 0.3], [0.3, 0.5, 0.2]]
    ).unsqueeze(1)
    ids = torch.tensor([0, 0, 0, 1]).view(4, 1, 1)
    assert switch_balance_loss(probabilities, ids).item() == close(3 * (0.75 * 0.5 + 0.25 * 0.3))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_balance_is_1_for_even_use_however_many_are_chosen(top_k: int) -> None:
    ids = torch.tensor([[[(image + k) % 3 for k in range(top_k)]] for image in range(3)])
    assert switch_balance_loss(torch.full((3, 1, 3), 1 / 3), ids).item() == close(1)
    everywhere = torch.zeros(3, 1, 3)
    everywhere[..., 0] = 1
    assert switch_balance_loss(everywhere, torch.zeros(3, 1, 1, dtype=torch.int64)).item() == 3


def test_mixtures_are_balanced_each_by_itself() -> None:
    """Two blocks that prefer different experts are not in balance because their sum is."""
    amounts = torch.zeros(4, 2, 1, 2)
    amounts[:, 0, :, 0] = amounts[:, 1, :, 1] = 1
    ids = amounts.argmax(-1, keepdim=True)
    assert switch_balance_loss(amounts, ids).item() == close(2)
    assert variation_loss(amounts).item() == close(1)


def test_the_shares_of_the_balance_loss_have_no_gradient() -> None:
    """The gradient of a probability is E/B times the share of choices of its expert."""
    probabilities = torch.full((2, 1, 3), 1 / 3, requires_grad=True)
    switch_balance_loss(probabilities, torch.tensor([[[0, 1]], [[0, 2]]])).backward()
    torch.testing.assert_close(
        probabilities.grad, (3 / 2 * torch.tensor([0.5, 0.25, 0.25])).expand(2, 1, 3)
    )


def test_z_loss_of_three_experts() -> None:
    logits = torch.tensor([[[LN(1), LN(2), LN(3)]], [[0.0, 0.0, 0.0]]])
    assert router_z_loss(logits).item() == close((LN(6) ** 2 + LN(3) ** 2) / 2)


def test_slow_loops() -> None:
    images, heads, experts, top_k = 5, 2, 3, 2
    logits = random(images, heads, experts)
    probabilities = logits.softmax(-1)
    ids = random(images, heads, experts, seed=1).topk(top_k).indices
    variation = balance = z = 0.0
    for head in range(heads):
        totals = [sum(float(probabilities[i, head, e]) for i in range(images)) for e in range(3)]
        mean = sum(totals) / 3
        variation += sum((total - mean) ** 2 for total in totals) / 2 / (mean**2 + 1e-10)
        for e in range(experts):
            choices = sum(ids[i, head].tolist().count(e) for i in range(images))
            balance += experts * choices / (images * top_k) * totals[e] / images
        z += sum(
            LN(sum(math.exp(value) for value in logits[i, head].tolist())) ** 2
            for i in range(images)
        )
    assert variation_loss(probabilities, correction=1).item() == close(variation / heads)
    assert switch_balance_loss(probabilities, ids).item() == close(balance / heads)
    assert router_z_loss(logits).item() == close(z / images / heads)
