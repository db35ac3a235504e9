"""Modules beside frozen layers that all images use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smope.backbones.wrapping import unwrap
from smope.experts.shared import SharedModules, add_adapters, add_lora
from tests.tiny import frozen, tiny_vit


def learned(wrappers: list[SharedModules]) -> list[SharedModules]:
    for wrapper in wrappers:
        nn.init.normal_(wrapper.modules_beside.up, std=0.5)
    return wrappers


def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_new_modules_add_nothing_and_come_out_again() -> None:
    plain, vit = tiny_vit(), tiny_vit()
    expected = plain(images())
    wrappers = add_adapters(vit, [0, 3], 2, 4, 0.1)
    wrappers += add_lora(vit, [1, 2], ["attn.qkv", "mlp.fc1", "mlp.fc2"], 2, 3, 0.8)
    assert len(wrappers) == 8
    torch.testing.assert_close(vit(images()), expected)
    learned(wrappers)
    assert (vit(images()) - expected).abs().max() > 0.01
    unwrap(vit)
    assert torch.equal(vit(images()), expected)


def test_lora_is_a_change_of_the_weight() -> None:
    plain, vit = tiny_vit(), tiny_vit()
    for part, name in (("attn.qkv", "attn.qkv"), ("mlp.fc2", "mlp.fc2")):
        [wrapper] = learned(add_lora(vit, [4], [part], 2, 3, 0.8))
        down, up = wrapper.modules_beside.down, wrapper.modules_beside.up
        change = sum(0.8 * up[m].T @ down[m] for m in range(2))
        with torch.no_grad():
            plain.blocks[4].get_submodule(name).weight += change
    torch.testing.assert_close(vit(images()), plain(images()), rtol=1e-4, atol=1e-4)


def test_the_last_block_may_compute_its_class_token_alone() -> None:
    vit = tiny_vit()
    learned(add_adapters(vit, [5, 6], 1, 4, 0.1) + add_lora(vit, [4], ["mlp.fc1"], 1, 2, 0.8))
    backbone = frozen(vit)
    short = backbone(images())
    backbone.whole_last_block = True
    torch.testing.assert_close(short, backbone(images()))
    unwrap(vit)
    assert (short - backbone(images())).abs().max() > 0.01


def test_of_several_modules_those_in_use_add_up() -> None:
    vit = tiny_vit()
    [wrapper] = learned(add_adapters(vit, [6], 3, 4, 0.1))
    x = torch.randn(2, 5, 32)
    added = []
    for used in (slice(0, 1), slice(1, 3), slice(None)):
        wrapper.used = used
        added.append(wrapper(x) - wrapper.layer(x))
    torch.testing.assert_close(added[0] + added[1], added[2])
    down, up = wrapper.modules_beside.down[0], wrapper.modules_beside.up[0]
    torch.testing.assert_close(added[0], 0.1 * (x @ down.T).relu() @ up, rtol=1e-4, atol=1e-5)
