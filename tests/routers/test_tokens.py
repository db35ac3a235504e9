"""Routers that read the queries of all tokens, against slow loops: `token` and `soft`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.backbones.attention import heads, project
from smope.experts.attention import PromptedAttention, attend_by_token
from smope.experts.bank import PrefixBank
from smope.routers.base import ExpertState, Router
from smope.routers.dense import Dense
from smope.routers.soft import Soft
from smope.routers.token import Token
from tests.tiny import tiny_vit

HEADS, EXPERTS, WIDTH, TOKENS = 2, 6, 16, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


STATE = ExpertState(
    torch.zeros(HEADS, EXPERTS, dtype=torch.int64), torch.zeros(HEADS, EXPERTS).bool()
)


def block(router: Router) -> PromptedAttention:
    """A prompted attention of the tiny ViT, in float64."""
    torch.manual_seed(0)
    attention = tiny_vit().blocks[0].attn
    bank = PrefixBank(HEADS, EXPERTS, WIDTH)
    router.build(HEADS, EXPERTS, WIDTH)
    return PromptedAttention(attention, bank, router).double()


def slow_attention(wrapper: PromptedAttention, x: Tensor, top_k: int) -> Tensor:
    """Every token scores the experts and attends to its best K and to all tokens, one by one."""
    q, k, v = heads(wrapper.attention, x)
    keys, values = wrapper.bank()
    out = torch.zeros_like(q)
    for image in range(len(q)):
        for head in range(HEADS):
            for row in range(q.shape[2]):
                query = q[image, head, row]
                scores = [float(query @ keys[head, expert]) for expert in range(EXPERTS)]
                best = sorted(range(EXPERTS), key=lambda e, s=scores: -s[e])[:top_k]
                logits = [scores[expert] / math.sqrt(WIDTH) for expert in best]
                logits += [float(query @ key) / math.sqrt(WIDTH) for key in k[image, head]]
                rows = torch.cat([values[head, best], v[image, head]])
                out[image, head, row] = torch.tensor(logits, dtype=torch.float64).softmax(0) @ rows
    return project(wrapper.attention, x, out)


@pytest.mark.parametrize("top_k", [1, 3, EXPERTS])
def test_a_token_attends_to_its_own_experts(top_k: int) -> None:
    wrapper, x = block(Token(top_k)), draw(3, TOKENS, 32)
    with torch.no_grad():
        torch.testing.assert_close(wrapper(x), slow_attention(wrapper, x, top_k), rtol=1e-9, atol=0)
        wrapper.dense = True
        all_of_them = slow_attention(wrapper, x, EXPERTS)
        torch.testing.assert_close(wrapper(x), all_of_them, rtol=1e-9, atol=0)
    assert wrapper.routing is not None and wrapper.routing.tokens == TOKENS


def test_a_mean_over_tokens_of_token_scores_is_the_proxy_score() -> None:
    query, keys = draw(3, HEADS, TOKENS, WIDTH), draw(HEADS, EXPERTS, WIDTH, seed=1)
    scores = Token(2)(query, keys, STATE).scores.unflatten(0, (3, TOKENS)).mean(1)
    torch.testing.assert_close(scores, Dense(2)(query.mean(2), keys, STATE).scores)


def test_tokens_that_are_alike_are_routed_as_their_mean() -> None:
    """Then per-token attention and SMoPE's aggregation are the same."""
    x = draw(3, 1, 32).expand(3, TOKENS, 32)
    from smope.routers.topk import TopK

    with torch.no_grad():
        torch.testing.assert_close(block(Token(2))(x), block(TopK(2))(x))


def test_gradients_of_attention_by_token() -> None:
    q, k, v = (draw(2, HEADS, 4, WIDTH, seed=seed).requires_grad_() for seed in range(3))
    keys, values = (draw(HEADS, EXPERTS, WIDTH, seed=seed).requires_grad_() for seed in (3, 4))

    def attended(*inputs: Tensor) -> Tensor:
        q, k, v, keys, values = inputs
        return attend_by_token(q, k, v, 0.25, Token(2)(q, keys, STATE), values)

    assert torch.autograd.gradcheck(attended, (q, k, v, keys, values))


def soft(scale: float = 1.0, experts: int = EXPERTS) -> Soft:
    router = Soft(2, scale)
    router.build(HEADS, experts, WIDTH)
    return router.double()


def test_slots_by_a_slow_loop() -> None:
    query, keys = draw(3, HEADS, TOKENS, WIDTH), draw(HEADS, EXPERTS, WIDTH, seed=1)
    router = soft(2.5)
    router.scale.data[1] = 0.7
    routing = router(query, keys, STATE)
    for image in range(3):
        for head in range(HEADS):
            for expert in range(EXPERTS):
                key = keys[head, expert]
                rows = query[image, head]
                logits = [
                    router.scale[head] * (row @ key) / (row.norm() * key.norm()) for row in rows
                ]
                total = sum(logit.exp() for logit in logits)
                slot: Any = sum(
                    logit.exp() / total * row for logit, row in zip(logits, rows, strict=True)
                )
                torch.testing.assert_close(routing.scores[image, head, expert], slot @ key)
    assert torch.equal(routing.weights, routing.scores)


def test_one_expert_whose_slot_weighs_tokens_alike_sees_the_mean_token() -> None:
    query, keys = draw(3, HEADS, TOKENS, WIDTH), draw(HEADS, 1, WIDTH, seed=1)
    scores = soft(0.0, experts=1)(query, keys, STATE).scores
    torch.testing.assert_close(
        scores[..., 0], torch.einsum("bhd,hd->bh", query.mean(2), keys[:, 0])
    )


def test_with_a_scale_of_0_it_is_dense() -> None:
    x = draw(3, TOKENS, 32)
    with torch.no_grad():
        torch.testing.assert_close(block(Soft(2, 0.0))(x), block(Dense(2))(x))
        assert (block(Soft(2, 1.0))(x) - block(Dense(2))(x)).abs().max() > 1e-6


def test_the_warm_up_has_the_same_slots() -> None:
    wrapper, x = block(Soft(2)), draw(3, TOKENS, 32)
    with torch.no_grad():
        before = wrapper(x)
        wrapper.dense = True
        assert torch.equal(wrapper(x), before)


def test_the_scale_learns() -> None:
    wrapper = block(Soft(2))
    wrapper(draw(3, TOKENS, 32)).square().sum().backward()
    assert wrapper.router.scale.grad.abs().min() > 0


@pytest.mark.parametrize("made", [Token, Soft])
def test_an_image_alone_is_what_it_is_in_a_batch(made: Any) -> None:
    wrapper, x = block(made(2)), draw(4, TOKENS, 32)
    with torch.no_grad():
        together = wrapper(x)
        for image in range(4):
            torch.testing.assert_close(wrapper(x[image : image + 1])[0], together[image])
