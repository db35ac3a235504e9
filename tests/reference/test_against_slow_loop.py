"""The vectorised product equals the slow loops of slow_smope.py to 1e-10, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smope.experts.attention import PromptedAttention
from smope.experts.bank import PrefixBank
from smope.losses.classification import task_cross_entropy
from smope.losses.prototype import find_prototypes, prototype_loss, prototype_mass_loss
from smope.losses.router import router_loss, router_mass_loss
from smope.methods.base import TaskSpan
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.routers.base import Routing, all_experts
from smope.routers.topk import TopK
from tests.tiny import tiny_vit

from . import slow_smope
from .conftest import CLASSES, EXPERTS, TOP_K
from .slow_smope import SlowExperts, SlowPass, SlowViT

FIRST, SECOND = TaskSpan(0, 0, 3), TaskSpan(1, 3, CLASSES)
LABELS = {0: torch.tensor([2, 0, 1]), 1: torch.tensor([3, 5, 5])}
LAYOUTS: dict[str, dict[str, Any]] = {
    "first blocks": {"blocks": (0, 1)},
    "blocks apart": {"blocks": (1, 3)},
    "last block first": {"blocks": (3, 0)},
    "qk_norm": {"blocks": (1, 3), "vit_options": {"qk_norm": True}},
    "registers": {
        "blocks": (1, 3),
        "vit_options": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5},
    },
    "registers with positions": {"blocks": (0, 1), "vit_options": {"reg_tokens": 2}},
    "input space": {"blocks": (0, 1), "expert_space": "input"},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def some_flags(blocks: int, seed: int = 0) -> Tensor:
    """Flags of every kind: a head without any, a head with all, some here and there."""
    frequent = torch.rand(blocks, 2, EXPERTS, generator=torch.Generator().manual_seed(seed)) < 0.4
    frequent[0, 1] = False
    frequent[1, 0] = True
    return frequent


def some_counts(blocks: int) -> Tensor:
    """Counts with unused experts, among them a head in which only one was ever used, and one with
    none.
    """
    counts = torch.randint(0, 3, (blocks, 2, EXPERTS), generator=torch.Generator().manual_seed(1))
    counts[0, 1] = 0
    counts[1, 1] = torch.tensor([0] * (EXPERTS - 1) + [9])
    return counts


def slow_stack(result: SlowPass, order: list[int]) -> Tensor:
    """Scores (blocks, B, H, E); the loop meets the blocks from the bottom, `order` is how the
    method lists them.
    """
    stacked = torch.stack(
        [torch.stack([torch.stack(heads) for heads in image]) for image in result.scores]
    )
    return stacked.transpose(0, 1)[[sorted(order).index(block) for block in order]]


def compare_forward(pair: Any, mode: str) -> SlowPass:
    """Features, scores and choices of one forward pass in `mode`; the router must be in the same
    mode already.
    """
    features = pair.method.features(pair.images)
    result = pair.slow.forward(pair.images, mode)
    order = list(pair.slow.experts)
    assert_equal(features, torch.stack(result.features))
    assert_equal(
        torch.stack([routing.scores for routing in pair.method.routings]), slow_stack(result, order)
    )
    for place, routing in zip(
        [sorted(order).index(block) for block in order], pair.method.routings, strict=True
    ):
        chosen = torch.tensor([image[place] for image in result.chosen])
        assert torch.equal(routing.expert_ids.sort(-1).values, chosen.sort(-1).values)
    return result


def backward_slow(pair: Any, mode: str, task: TaskSpan) -> dict[str, Tensor]:
    """Losses of the slow loop with gradients left in its leaves."""
    method, slow = pair.method, pair.slow
    result = slow.forward(pair.images, mode)
    logits = torch.stack(result.features) @ pair.weight.T + pair.bias
    losses = {
        "cross_entropy": slow_smope.task_cross_entropy(
            logits, LABELS[task.index], task.start, task.stop
        )
    }
    if mode != "dense":
        losses["router"] = 0.3 * slow_smope.router_loss(
            result, slow.epsilon, method.router_loss == "paper"
        )
    if task.index > 0:
        experts = slow.experts.values()
        paper = method.prototype_loss == "paper"
        new = [slow.keys_of(block) for block in slow.experts]
        old, frequent = [e.old_keys for e in experts], [e.frequent for e in experts]
        losses["prototype"] = 0.2 * slow_smope.prototype_loss(new, old, frequent, TOP_K, paper)
    sum(losses.values()).backward()
    return losses


def compare_training(pair: Any, mode: str, task: TaskSpan) -> None:
    """Every loss by name, and the gradient of every expert and of the classifier."""
    ours = pair.method.losses(pair.images, LABELS[task.index], task)
    sum(ours.values()).backward()
    theirs = backward_slow(pair, mode, task)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert_equal(value, theirs[name])
    for bank, experts in zip(pair.method.experts, pair.slow.experts.values(), strict=True):
        assert bank.keys.grad.abs().max() > 1e-6
        assert_equal(bank.keys.grad, experts.keys.grad)
        assert_equal(bank.values.grad, experts.values.grad)
    assert_equal(pair.method.classifier.weight.grad, pair.weight.grad)
    assert_equal(pair.method.classifier.bias.grad, pair.bias.grad)


@layouts
def test_dense_training(layout: dict[str, Any], make_pair: Any) -> None:
    pair = make_pair(**layout)
    pair.method.train()
    pair.method.dense = True
    compare_training(pair, "dense", FIRST)


@layouts
def test_sparse_training_of_the_second_task(layout: dict[str, Any], make_pair: Any) -> None:
    pair = make_pair(**layout)
    counts = some_counts(2)
    pair.set_counts(counts)
    pair.method.begin_task(SECOND)
    slow_smope.begin_second_task(pair.slow)
    for bank, experts in zip(pair.method.experts, pair.slow.experts.values(), strict=True):
        assert torch.equal(bank.frequent, torch.tensor(experts.frequent))
        assert_equal(bank.old_keys, experts.old_keys)
    pair.move_experts(seed=12)
    pair.method.train()
    compare_training(pair, "train", SECOND)


def test_flags_change_what_training_chooses(make_pair: Any) -> None:
    pair = make_pair()
    pair.method.train()
    free = compare_forward(pair, "train").chosen
    pair.set_flags(some_flags(2))
    flagged = compare_forward(pair, "train").chosen
    assert [image[0] for image in free] != [image[0] for image in flagged]


@pytest.mark.parametrize("exclude", [True, False])
@layouts
def test_evaluation(layout: dict[str, Any], exclude: bool, make_pair: Any) -> None:
    pair = make_pair(**layout, exclude_unused=exclude)
    pair.set_counts(some_counts(2))
    pair.set_flags(some_flags(2))
    pair.method.eval()
    with torch.no_grad():
        result = compare_forward(pair, "eval")
    # In the second block's second head the last expert alone was ever used: excluding others makes
    # it first for all.
    counts = list(pair.slow.experts.values())[1].counts[1]
    assert counts[-1] > 0 == sum(counts[:-1])
    place = sorted(pair.slow.experts).index(list(pair.slow.experts)[1])
    assert all((EXPERTS - 1) in image[place][1] for image in result.chosen) or not exclude


@pytest.mark.parametrize("loss", ["router_loss", "prototype_loss"])
def test_paper_losses_in_training(loss: str, make_pair: Any) -> None:
    pair = make_pair(**{loss: "paper"})
    pair.set_counts(some_counts(2))
    pair.method.begin_task(SECOND)
    slow_smope.begin_second_task(pair.slow)
    pair.move_experts(seed=12)
    pair.method.train()
    compare_training(pair, "train", SECOND)


def test_paper_frequent_rule_in_training(make_pair: Any) -> None:
    pair = make_pair(frequent_rule="paper")
    pair.set_flags(some_flags(2))
    pair.set_counts(some_counts(2))
    pair.method.begin_task(SECOND)
    slow_smope.begin_second_task(pair.slow, paper=True)
    pair.move_experts(seed=12)
    pair.method.train()
    compare_training(pair, "train", SECOND)


@pytest.mark.parametrize("mode", ["dense", "train", "eval"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_one_attention_alone(mode: str, qk_norm: bool) -> None:
    vit = tiny_vit(seed=4, img_size=16, embed_dim=8, depth=1, qk_norm=qk_norm).double()
    draw = torch.Generator().manual_seed(0)
    bank = PrefixBank(2, EXPERTS, 4).double()
    wrapped = PromptedAttention(vit.blocks[0].attn, bank, AdaptiveNoise(TOP_K, 0.7)).train(
        mode == "train"
    )
    wrapped.dense = mode == "dense"
    bank.frequent.copy_(some_flags(2)[1])
    bank.counts.copy_(some_counts(2)[0])
    experts = SlowExperts.fresh(
        bank.keys.detach().clone().requires_grad_(), bank.values.detach().requires_grad_()
    )
    experts.frequent, experts.counts = bank.frequent.tolist(), bank.counts.tolist()
    slow = SlowViT(dict(vit.state_dict()), 2, {0: experts}, TOP_K, 0.7)
    slow.weights = {
        name.replace("attn.layer.", "attn."): value for name, value in slow.weights.items()
    }
    x = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    out = wrapped(x)
    (ours,) = torch.autograd.grad((out * direction).sum(), x, retain_graph=True)
    (out * direction).sum().backward()
    x_slow = x.detach().clone().requires_grad_()
    expected = torch.stack([slow.attention(0, image, mode, [], []) for image in x_slow])
    (expected * direction).sum().backward()
    assert_equal(out, expected)
    assert_equal(ours, x_slow.grad)
    assert_equal(bank.keys.grad, experts.keys.grad)
    assert_equal(bank.values.grad, experts.values.grad)


def random_routings(blocks: int = 2, images: int = 4) -> tuple[list[Routing], SlowPass]:
    """The same scores and choices for both, each with leaves of its own."""
    draw = torch.Generator().manual_seed(2)
    scores = 3 * torch.randn(blocks, images, 2, EXPERTS, generator=draw, dtype=torch.float64)
    ids = torch.rand(scores.shape, generator=draw).topk(TOP_K, dim=-1).indices
    routings = [
        Routing(s.clone().requires_grad_(), i, s.gather(-1, i))
        for s, i in zip(scores, ids, strict=True)
    ]
    slow = SlowPass(features=[scores.new_zeros(1)])
    slow.scores = [
        [[s[b, h].clone().requires_grad_() for h in range(2)] for s in scores]
        for b in range(images)
    ]
    slow.chosen = [[i[b].tolist() for i in ids] for b in range(images)]
    return routings, slow


@pytest.mark.parametrize(("paper", "epsilon"), [(False, 0.0), (False, 0.7), (True, 0.0)])
def test_router_losses(paper: bool, epsilon: float) -> None:
    routings, slow = random_routings()
    ours = router_mass_loss(routings) if paper else router_loss(routings, epsilon)
    theirs = slow_smope.router_loss(slow, epsilon, paper)
    assert_equal(ours, theirs)
    ours.backward()
    theirs.backward()
    for block, routing in enumerate(routings):
        for image, heads in enumerate(slow.scores):
            assert_equal(
                routing.scores.grad[image], torch.stack([leaf.grad for leaf in heads[block]])
            )


@pytest.mark.parametrize("paper", [False, True])
def test_prototype_losses(paper: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    keys, old = torch.randn(2, 2, 2, EXPERTS, 4, generator=draw, dtype=torch.float64)
    ours_keys, slow_keys = keys.clone().requires_grad_(), keys.clone().requires_grad_()
    frequent = some_flags(2)
    ours = (prototype_mass_loss if paper else prototype_loss)(
        ours_keys, find_prototypes(old, frequent, TOP_K)
    )
    theirs = slow_smope.prototype_loss(list(slow_keys), list(old), frequent.tolist(), TOP_K, paper)
    assert_equal(ours, theirs)
    ours.backward()
    theirs.backward()
    assert_equal(ours_keys.grad, slow_keys.grad)


def test_task_cross_entropy() -> None:
    logits = torch.randn(
        3, CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    for index, task in enumerate((FIRST, SECOND)):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value = task_cross_entropy(ours, LABELS[index], task.classes)
        expected = slow_smope.task_cross_entropy(theirs, LABELS[index], task.start, task.stop)
        assert_equal(value, expected)
        value.backward()
        expected.backward()
        assert_equal(ours.grad, theirs.grad)


def test_count() -> None:
    scores = torch.randn(
        9, 2, EXPERTS, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    bank = PrefixBank(2, EXPERTS, 4)
    slow = SlowViT({}, 2, {0: SlowExperts.fresh(bank.keys, bank.values)}, TOP_K, 0.0)
    for part in (scores[:5], scores[5:]):
        bank.count(TopK(TOP_K).uses(all_experts(part)))
        slow_smope.add_counts(slow, SlowPass(scores=[[list(image)] for image in part]))
    assert bank.counts.tolist() == slow.experts[0].counts
    assert bank.counts.sum() == 9 * 2 * TOP_K


@pytest.mark.parametrize("paper", [False, True])
def test_flag_frequent(paper: bool) -> None:
    draw = torch.Generator().manual_seed(6)
    for _ in range(20):
        bank = PrefixBank(2, EXPERTS, 4)
        used_at_all = torch.randint(0, 2, (2, 1), generator=draw)
        bank.counts.copy_(torch.randint(0, 5, (2, EXPERTS), generator=draw) * used_at_all)
        before = torch.rand(2, EXPERTS, generator=draw) < 0.2
        bank.frequent.copy_(before)
        bank.flag_frequent(cumulative=not paper)
        pairs = zip(bank.counts.tolist(), before.tolist(), strict=True)
        assert bank.frequent.tolist() == [
            slow_smope.flags(counts, flags, paper) for counts, flags in pairs
        ]


def usage(pair: Any, batches: list[Tensor]) -> Tensor:
    """The counts (blocks, H, E) that the product adds over `batches`."""
    before = torch.stack([bank.counts.clone() for bank in pair.method.experts])
    pair.method.eval()
    pair.method.end_task(FIRST, lambda kind: iter([(batch, torch.empty(0)) for batch in batches]))
    return torch.stack([bank.counts for bank in pair.method.experts]) - before


def usage_batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(2, 3, 16, 16, generator=draw, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize(
    ("rule", "exclude"), [("running", True), ("running", False), ("order_free", True)], ids=str
)
def test_usage_pass_over_two_tasks(rule: str, exclude: bool, make_pair: Any) -> None:
    pair = make_pair(usage_count=rule, exclude_unused=exclude)
    for batches in (usage_batches()[:2], usage_batches()[2:]):
        usage(pair, batches)
        slow_smope.usage_pass(pair.slow, batches, order_free=rule == "order_free")
        for bank, experts in zip(pair.method.experts, pair.slow.experts.values(), strict=True):
            assert bank.counts.tolist() == experts.counts


def test_order_free_counts_do_not_depend_on_order(make_pair: Any) -> None:
    batches = usage_batches()
    single = [image.unsqueeze(0) for batch in batches for image in batch]
    orders = [batches, batches[::-1], [torch.cat(batches)], single[::-1]]
    pairs = {
        rule: [make_pair(usage_count=rule) for _ in orders] for rule in ("order_free", "running")
    }
    for pair in (pair for made in pairs.values() for pair in made):
        pair.set_counts(some_counts(2))
    free = [usage(pair, order) for pair, order in zip(pairs["order_free"], orders, strict=True)]
    running = [usage(pair, order) for pair, order in zip(pairs["running"], orders, strict=True)]
    assert all(torch.equal(counts, free[0]) for counts in free)
    assert not all(torch.equal(counts, running[0]) for counts in running), (
        "the test's images tell orders apart"
    )
