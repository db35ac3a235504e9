"""InfLoRA's directions equal slow loops written from the paper, and what learns when."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods._shared.input_span import grown_span, input_products, leading_directions
from smope.methods.base import TaskSpan
from smope.methods.inflora import InfLoRA
from tests.tiny import tiny_backbone

BLOCKS = [0, 5]
WIDTH = 12


def make(**options: Any) -> InfLoRA:
    torch.manual_seed(0)
    return InfLoRA(tiny_backbone(), 4, 2, **{"rank": 3, "blocks": BLOCKS, **options}).double()


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=generator, dtype=torch.float64)


def products_of_task(seed: int) -> numpy.ndarray:
    """Of inputs that lie near a few directions, other ones in each task."""
    draw = numpy.random.default_rng(seed)
    inputs = draw.normal(size=(40, 4)) @ draw.normal(size=(4, WIDTH))
    inputs += 0.1 * draw.normal(size=inputs.shape)
    return inputs.T @ inputs


class DualGPM:
    """The memory of the paper, one task after the other: a basis of what inputs of earlier tasks
    take, or, once that is more than half of the space, of its complement.
    """

    def __init__(self) -> None:
        self.basis = numpy.zeros((WIDTH, 0))
        self.is_complement = False

    def without_old(self, matrix: numpy.ndarray) -> numpy.ndarray:
        inside = self.basis @ (self.basis.T @ matrix)
        return inside if self.is_complement else matrix - inside

    def add(self, matrix: numpy.ndarray, share: float) -> None:
        left, values, _ = numpy.linalg.svd(self.without_old(matrix))
        whole = sum(value**2 for value in numpy.linalg.svd(matrix)[1])
        held, count = whole - sum(value**2 for value in values), 0
        while held < share * whole:
            held += values[count] ** 2
            count += 1
        new = left[:, :count]
        if self.is_complement:
            rest = self.basis - new @ (new.T @ self.basis)
            self.basis = numpy.linalg.svd(rest)[0][:, : self.basis.shape[1] - count]
            return
        self.basis = numpy.concatenate([self.basis, new], axis=1)
        if self.basis.shape[1] > WIDTH / 2:
            self.basis = numpy.linalg.svd(self.basis)[0][:, self.basis.shape[1] :]
            self.is_complement = True

    def span(self) -> numpy.ndarray:
        inside = self.basis @ self.basis.T
        return numpy.eye(WIDTH) - inside if self.is_complement else inside


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, 0.99999])
def test_spans_and_directions_are_those_of_the_paper(share: float) -> None:
    memory, span, sizes = DualGPM(), torch.zeros(WIDTH, WIDTH).double(), []
    for task in range(4):
        matrix = products_of_task(task)
        products = torch.from_numpy(matrix)
        rows = leading_directions(products, span, 2)
        expected = numpy.linalg.svd(memory.without_old(matrix))[0][:, :2]
        torch.testing.assert_close(rows.T @ rows, torch.from_numpy(expected @ expected.T))
        assert (rows @ span).abs().max() < 1e-9
        memory.add(matrix, share)
        span = grown_span(products, span, share)
        torch.testing.assert_close(span, torch.from_numpy(memory.span()), rtol=0, atol=1e-8)
        sizes.append(round(float(span.trace())))
        if sizes[-1] > WIDTH - 2:
            break
    assert sizes == sorted(sizes) and sizes[-1] > sizes[0]
    assert memory.is_complement == (sizes[-1] > WIDTH / 2)


def test_products_are_those_of_every_token_of_every_image() -> None:
    method, batches = make(), [images(2), images(3, seed=1)]
    found = input_products(
        method, method._wrappers, lambda kind: iter([(b, torch.zeros(0)) for b in batches])
    )
    assert all(wrapper.observer is None for wrapper in method._wrappers)
    vit = tiny_backbone().double().vit
    expected = torch.zeros(2, 32, 32).double()
    for image in torch.cat(batches):
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed((image[None] - 0.5) / 0.5)))
        for number, block in enumerate(vit.blocks):
            if number in BLOCKS:
                for token in block.norm1(x)[0]:
                    expected[BLOCKS.index(number)] += torch.outer(token, token)
            x = block(x)
    torch.testing.assert_close(found, expected)


def test_the_change_of_the_task_learns_alone_and_reaches_keys_and_values() -> None:
    method = make().train()
    plain = method.features(images(2))
    for changes in method.changes:
        changes.down.normal_()
        changes.own[1] = True
        with torch.no_grad():
            changes.up.normal_()
    assert not torch.allclose(method.features(images(2)), plain)
    task = TaskSpan(1, 2, 4)
    method.losses(images(3), torch.tensor([2, 3, 2]), task)["cross_entropy"].backward()
    for wrapper, changes in zip(method._wrappers, method.changes, strict=True):
        assert not changes.up.grad[0].any() and changes.up.grad[1].any(1).all()
        x = torch.rand(1, 5, 32).double()
        queries, others = (wrapper(x) - wrapper.layer(x)).split([32, 64], -1)
        assert not queries.any()
        change = sum(up.T @ down for up, down in zip(changes.up, changes.down, strict=True))
        torch.testing.assert_close(others, x @ change.T)


def test_a_task_learns_where_inputs_of_earlier_ones_are_not(stream: Any, learn: Any) -> None:
    method = InfLoRA(tiny_backbone(), 4, 3, rank=3, blocks=BLOCKS, share=0.9)
    seen: list[list[Tensor]] = []
    end_task = method.end_task

    def noting(task: TaskSpan, batches: Any) -> None:
        seen.append([changes.up.detach().clone() for changes in method.changes])
        if task.index:
            for changes, span in zip(method.changes, method.span, strict=True):
                rows = changes.down[task.index]
                torch.testing.assert_close(rows @ rows.T, torch.eye(3) / 3, rtol=0, atol=1e-5)
                assert (rows @ span).abs().max() < 1e-5
        end_task(task, batches)

    method.end_task = noting
    learn(method, stream)
    for first, last in zip(seen[0], seen[-1], strict=True):
        assert torch.equal(first[0], last[0]) and last[: len(stream.tasks)].any(2).any(1).all()
    shares = method.span.diagonal(dim1=1, dim2=2).sum(1)
    assert (shares > 1).all() and math.isclose(
        float(shares[0]), round(float(shares[0])), abs_tol=1e-3
    )


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"method\.rank must be at most 32, the width of .*, got 33"
    ):
        make(rank=33)


def test_a_full_space_is_remarked() -> None:
    method = make()
    assert list(method.remarks()) == []
    method.span.copy_(torch.eye(32))
    assert "take 32 of 32 directions" in next(iter(method.remarks()))
