"""Experts beside the MLP and beside the qkv projection, and every router with every placement."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from smope.backbones.vit import load_backbone
from smope.backbones.wrapping import is_wrapped, without_wrappers
from smope.config.config import replaced
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.experts.adapter import Adapters
from smope.experts.inject import WRAPPERS, Placement, detach
from smope.experts.lora import LoRA
from smope.experts.routed import recorded
from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.metrics.cost import count_flops, count_parameters
from smope.routers.base import Routing
from smope.routers.topk import TopK
from smope.training.trainer import Trainer
from tests.contracts.conftest import ROUTERS, make_method, make_shallow_method
from tests.tiny import frozen, tiny_backbone, tiny_settings, tiny_stream, tiny_vit

PLACEMENTS = get_args(Placement)
CPU, TASK, LABELS = torch.device("cpu"), TaskSpan(0, 0, 2), torch.tensor([0, 1, 0, 1])
# of tests/tiny.py: tokens, width, prompted blocks; and experts, chosen ones, rank
N, C, BLOCKS, E, K, R = 17, 32, 6, 9, 3, 2
# (router, placement) that make no sense together; the error names both
CHOOSE_FOR_TOKENS = ("token", "expert_choice", "batch_priority")
REFUSED = {(router, placement) for router in CHOOSE_FOR_TOKENS for placement in ("mlp", "lora")}
beside = pytest.mark.parametrize("placement", ["mlp", "lora"])


def make(placement: str, blocks: list[int] | None = None, depth: int = 7, **options: Any) -> SMoPE:
    torch.manual_seed(0)
    settings = {"num_experts": E, "rank": R, "blocks": blocks, **options}
    return SMoPE(tiny_backbone(depth=depth), 4, TopK(K), placement=placement, **settings)


def with_values(method: SMoPE) -> SMoPE:
    """As if it had learned: experts add something."""
    for bank in method.experts:
        nn.init.normal_(bank.experts.up, std=2.0)
    return method


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_placement_has_a_wrapper() -> None:
    assert set(WRAPPERS) == set(PLACEMENTS)


@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("kind", [Adapters, LoRA])
def test_experts_of_low_rank_equal_a_loop(kind: Any, all_of_them: bool) -> None:
    """Any order of the chosen ones, and images that share an expert or do not."""
    torch.manual_seed(0)
    sizes = (4, 3, 5) if kind is Adapters else (4, 3, 5, 7)
    experts = kind(*sizes).double()
    nn.init.normal_(experts.up)
    tokens = torch.randn(2, 6, 5, dtype=torch.float64)
    ids = torch.tensor([[3, 1, 0, 2], [0, 3, 2, 1]] if all_of_them else [[3, 1], [0, 3]])
    shares = torch.rand(ids.shape, dtype=torch.float64)
    given = experts(tokens, ids, shares)
    for image in range(2):
        expected = torch.zeros(6, sizes[-1], dtype=torch.float64)
        for expert, share in zip(ids[image], shares[image], strict=True):
            hidden = tokens[image] @ experts.down[expert].T
            hidden = hidden.clamp(min=0) if kind is Adapters else hidden
            expected += 0.1 * share * hidden @ experts.up[expert]
        torch.testing.assert_close(given[image], expected)


@beside
@pytest.mark.parametrize("blocks", [None, [1, 4], [5, 0]], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_attached_they_change_nothing_to_the_bit(
    placement: str, blocks: list[int] | None, training: bool
) -> None:
    plain = tiny_backbone()(images())
    method = make(placement, blocks).train(training)
    assert torch.equal(method.features(images()), plain)
    assert not torch.equal(with_values(method).features(images()), plain)
    assert is_wrapped(method.backbone.vit) and not method.features_are_the_backbones
    with without_wrappers(method.backbone.vit):
        assert torch.equal(method.backbone(images()), plain)
    assert not torch.equal(method.features(images()), plain)
    detach(method.backbone.vit)
    assert not is_wrapped(method.backbone.vit)
    assert torch.equal(method.backbone(images()), plain)


@beside
def test_in_the_last_block_all_tokens_are_read(placement: str) -> None:
    """The class token alone would be another query."""
    method = with_values(make(placement, [6]).double())
    given = images().double()
    fast = method.features(given)
    scores = method.routings[0].scores
    method.backbone.whole_last_block = True
    torch.testing.assert_close(fast, method.features(given))
    torch.testing.assert_close(scores, method.routings[0].scores)


@beside
def test_the_first_step_trains_what_experts_add_and_later_ones_all(placement: str) -> None:
    method = make(placement, router_loss_weight=0.0).train()

    def gradients() -> list[tuple[bool, ...]]:
        method.zero_grad()
        method.losses(images(), LABELS, TASK)["cross_entropy"].backward()
        return [
            tuple(bool(p.grad.any()) for p in (bank.keys, bank.experts.down, bank.experts.up))
            for bank in method.experts
        ]

    assert gradients() == [(False, False, True)] * BLOCKS
    with_values(method)
    assert gradients() == [(True, True, True)] * BLOCKS


@beside
def test_gradient_reaches_the_chosen_experts_alone(placement: str) -> None:
    method = with_values(make(placement, router_loss_weight=0.0)).train()
    method.losses(images(), LABELS, TASK)["cross_entropy"].backward()
    for bank, routing in zip(method.experts, method.routings, strict=True):
        chosen = torch.zeros(E, dtype=torch.bool)
        chosen[routing.expert_ids.flatten()] = True
        assert not chosen.all()
        for gradient in (bank.keys.grad[0], bank.experts.down.grad, bank.experts.up.grad):
            assert torch.equal(gradient.flatten(1).any(-1), chosen)
    own = {id(parameter) for parameter in method.prompt_parameters()}
    backbone = [p for p in method.backbone.parameters() if id(p) not in own]
    assert len(backbone) == len(list(tiny_vit().parameters()))
    assert all(parameter.grad is None for parameter in backbone)


def test_compiled_it_takes_the_same_step() -> None:
    """Without a break in the graph."""
    method = with_values(make("lora", [0], depth=3).double()).train()
    given = images().double()

    def step() -> list[Tensor]:
        method.zero_grad()
        sum(method.losses(given, LABELS, TASK).values()).backward()
        return [parameter.grad.clone() for parameter in method.prompt_parameters()]

    before = step()
    torch.compiler.reset()
    method.backbone.compile(backend="aot_eager", fullgraph=True)
    for ours, expected in zip(step(), before, strict=True):
        torch.testing.assert_close(ours, expected)


@beside
def test_recomputing_changes_no_step(placement: str) -> None:
    method, gradients = with_values(make(placement)).train(), []
    for recompute in (False, True):
        method.backbone.recompute = recompute
        method.zero_grad()
        sum(method.losses(images(), LABELS, TASK).values()).backward()
        gradients.append([p.grad.clone() for p in method.prompt_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@beside
def test_in_half_precision_experts_are_chosen_in_float32(placement: str) -> None:
    method = with_values(make(placement))
    method.backbone.hold(torch.bfloat16)
    exact = method.features(images())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method.features(images())
    assert {routing.scores.dtype for routing in method.routings} == {torch.float32}
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.2)


@pytest.mark.parametrize(("placement", "parts"), [("mlp", 2), ("lora", 4)])
def test_parameters_and_operations_by_hand(placement: str, parts: int) -> None:
    """A key of C numbers, and r numbers for each of C channels down and C or 3C up."""
    method = make(placement)
    assert count_parameters(method)["prompt"] == BLOCKS * E * C * (1 + parts * R)
    flops = count_flops(method, TASK)
    scores, products = 2 * E * C, 2 * parts * N * K * R * C
    assert flops["beyond_plain"]["torch"] * 1e9 == pytest.approx(BLOCKS * (scores + products))
    assert flops["beyond_plain"]["paper_convention"] == 0


def test_ten_adapters_of_rank_2_or_lora_of_rank_1_are_25_prefixes() -> None:
    """What the documentation says about a comparison at equal parameters, on a ViT-B/16."""
    sizes = {"prefix": (25, 4), "mlp": (10, 2), "lora": (10, 1)}
    backbone = load_backbone("vit_base_patch16_224", "random", "none", image_size=32)
    for placement, (experts, rank) in sizes.items():
        options: dict[str, Any] = {"placement": placement, "num_experts": experts, "rank": rank}
        method = SMoPE(backbone, 200, TopK(2), **options)
        assert count_parameters(method)["prompt"] == 230_400
        detach(backbone.vit)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_trains_two_tasks(router: str, placement: str) -> None:
    name = f"smope placement={placement}"
    if (router, placement) in REFUSED:
        with pytest.raises(UserError, match=rf"router={router}.*method\.placement={placement}"):
            make_shallow_method(name, router=router)
        return
    method = make_shallow_method(name, router=router)
    settings = tiny_settings(epochs=2, alignment_epochs=1)
    trainer = Trainer(method, tiny_stream(), settings, seed=0, device=CPU)
    (first,), final = trainer.fit().accuracy_matrix
    assert first > 0.7 and len(final) == 2, "two classes: chance is 0.5"
    assert trainer.history.expert_use is not None or not method.routers[0].sparse
    fresh = make_shallow_method(name, seed=1, router=router)
    fresh.load_trained_state(method.trained_state())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images()), method.eval()(images()))


@beside
@pytest.mark.parametrize("router", ["switch", "softmax_topk", "topk_softmax", "topk"])
def test_shares_are_the_gates(placement: str, router: str) -> None:
    """Also of a single expert, whose gate would otherwise have no gradient."""
    method = make_method(f"smope placement={placement}", tiny_backbone(), 4, router=router)
    with recorded(method._wrappers) as routings:
        method.eval()(images())
    for wrapper, routing in zip(method._wrappers, routings, strict=True):
        logits = routing.scores * C**-0.5
        gates = logits.softmax(-1).gather(-1, routing.expert_ids)
        if router.startswith("topk"):
            gates = gates / gates.sum(-1, keepdim=True)
        torch.testing.assert_close(wrapper._shares(routing), gates)


@beside
def test_an_expert_that_is_not_chosen_after_all_has_no_share(placement: str) -> None:
    """Nor has an image without experts; gradients are numbers."""
    wrapper = make(placement, [0])._wrappers[0]
    scores = torch.randn(2, 1, E, requires_grad=True)
    ids = torch.arange(K).expand(2, 1, K)
    out = torch.tensor([[[False, True, False]], [[True, True, True]]])
    weights = scores.gather(-1, ids).masked_fill(out, -torch.inf)
    shares = wrapper._shares(Routing(scores, ids, weights))
    assert shares[1].eq(0).all() and shares[0, 0, 1] == 0
    torch.testing.assert_close(shares[0].sum(), torch.tensor(1.0))
    shares.square().sum().backward()
    assert scores.grad.isfinite().all() and scores.grad[0].any()


@beside
def test_experts_that_no_task_has_used_are_drawn_again(placement: str) -> None:
    bank = with_values(make(placement, [0])).experts[0]
    bank.counts[0, 2:] = 1
    before = copy.deepcopy(dict(bank.named_parameters()))
    bank.reinitialise_unused()
    for name, now in bank.named_parameters():
        rows, old = (x[0] if name == "keys" else x for x in (now, before[name]))
        assert torch.equal(rows[2:], old[2:]) and not torch.equal(rows[:2], old[:2])
    assert not bank.experts.up[:2].any()


def refusal(make: Callable[[], object]) -> str:
    """What is refused, in words; "" for nothing."""
    try:
        make()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("router", ROUTERS)
def test_the_command_line_refuses_what_python_refuses(router: str) -> None:
    """In the same words, for every placement, with and without the loss that compares values."""
    config = compose(read_overrides([f"router={router}", "backbone=glyph_vit"]))
    for placement in PLACEMENTS:
        for weight in (0.0, 1.0):
            options = {"placement": placement, "similarity_loss_weight": weight}
            words = {f"method.{key}": value for key, value in options.items()}
            written = refusal(lambda words=words: replaced(config, words))
            made = refusal(
                lambda options=options: make_method(
                    "smope", tiny_backbone(), 4, router=router, **options
                )
            )
            assert bool(written) == bool(made), (options, written, made)
            assert weight or written == made
            assert weight or bool(made) == ((router, placement) in REFUSED)


@beside
def test_similar_values_are_of_prefixes(placement: str) -> None:
    with pytest.raises(
        UserError, match=rf"similarity_loss_weight compares .*placement={placement}"
    ):
        make(placement, similarity_loss_weight=1.0)


@beside
def test_smope_plus_trains_them_on_the_first_task(placement: str) -> None:
    method = make_method(f"smope_plus placement={placement}", tiny_backbone(), 4)
    fresh = make_method(f"smope_plus placement={placement}", tiny_backbone(), 4)
    states: list[list[Tensor]] = []

    def remember() -> None:
        states.append([p.detach().clone() for p in method.prompt_parameters()])

    trainer = Trainer(method, tiny_stream(), tiny_settings(epochs=1), seed=0, device=CPU)
    final = trainer.fit(remember).accuracy_matrix[-1]
    assert sum(final) / 2 > 0.6, "four classes: chance is 0.25"
    untrained = list(fresh.prompt_parameters())
    assert not any(torch.equal(a, b) for a, b in zip(states[0], untrained, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize(
    ("part", "stand_in", "placement", "message"),
    [
        ("qkv", nn.Identity(), "lora", "the qkv projection of block 1 is a Identity; LoRA experts"),
        ("attn", nn.Identity(), "lora", "the attention of block 1 is a Identity; prompts need"),
        ("mlp", None, "mlp", "the MLP of block 1 is a Block; experts beside an MLP need a block"),
    ],
)
def test_blocks_without_such_a_part(
    part: str, stand_in: nn.Module | None, placement: str, message: str
) -> None:
    vit = tiny_vit()
    block = vit.blocks[1]
    if stand_in is None:
        delattr(block, part)
    else:
        setattr(block.attn if part == "qkv" else block, part, stand_in)
    with pytest.raises(UserError, match=message):
        SMoPE(frozen(vit), 4, TopK(3), placement=placement)
    assert not is_wrapped(vit)


@beside
def test_a_part_that_has_experts_already(placement: str) -> None:
    backbone = tiny_backbone()
    SMoPE(backbone, 4, TopK(3), blocks=[1], placement=placement)
    with pytest.raises(UserError, match=r"of block 1 is a ExpertsBeside; (LoRA )?experts"):
        SMoPE(backbone, 4, TopK(3), blocks=[0, 1], placement=placement)
