"""LayUP equals ridge regression written out on the class tokens of the last blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from smope.backbones.forward import cls_of_last_blocks
from smope.methods.layup import LayUP
from tests.tiny import tiny_backbone, tiny_vit


class Whole(VisionTransformer):
    """A ViT with a forward pass of its own, so that it is called as a whole."""

    def forward_features(self, *arguments, **options):
        return super().forward_features(*arguments, **options)


@pytest.mark.parametrize("kind", [VisionTransformer, Whole])
def test_rows_are_those_of_each_block(kind):
    vit = tiny_vit().eval()
    vit.__class__ = kind
    pixels = torch.rand(3, 3, 32, 32)
    outputs = []
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
        for block in vit.blocks:
            x = block(x)
            outputs.append(x[:, 0])
        rows = cls_of_last_blocks(vit, pixels, 4)
    torch.testing.assert_close(rows, torch.stack(outputs[-4:], 1), rtol=1e-4, atol=1e-4)
    assert not any(block._forward_hooks for block in vit.blocks)


def test_weights_are_those_of_one_fit_to_all_images(stream, learn, all_features):
    method = LayUP(tiny_backbone(), 4, layers=3)
    learn(method, stream)
    features, labels = all_features(method, stream)
    assert features.shape[1] == 3 * 32
    penalty = float(method.classifier.sums.penalty)
    system = features.T @ features + penalty * torch.eye(96)
    expected = torch.linalg.solve(system, features.T @ F.one_hot(labels, 4).double())
    torch.testing.assert_close(method.classifier.weight.double(), expected.T, rtol=1e-3, atol=1e-5)


def test_a_backbone_with_fewer_blocks_gives_all_of_them():
    method = LayUP(tiny_backbone(), 4, layers=20)
    assert method.features(torch.rand(2, 3, 32, 32)).shape == (2, 7 * 32)
