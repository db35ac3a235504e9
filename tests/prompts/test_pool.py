"""Picking prompts from a pool; the published faults leak between images, and nothing does without
them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smope.methods._shared.prefix_method import PrefixMethod
from smope.methods.base import TaskSpan
from smope.methods.hide import HiDePrompt
from smope.prompts.pool import best, mixed_up, pick, pull, similarities, vote
from tests.contracts.conftest import make_method
from tests.tiny import tiny_backbone

IMAGES = torch.rand(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
FAULTY = ("l2p", "deep_l2p", "dualprompt", "hide", "norga")


def test_best_keys_and_their_pull() -> None:
    keys = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    scores = similarities(torch.tensor([[1.0, 0.0], [-1.0, 0.1]]), keys)
    ids = best(scores, 2)
    assert ids.tolist() == [[0, 1], [2, 1]]
    assert pull(scores, ids).item() == pytest.approx(
        ((1 - 1) + (1 - 0) + (2 - scores[1, [2, 1]].sum().item())) / 2
    )


def test_each_image_gets_its_own_prompts() -> None:
    prompts = torch.randn(3, 2, 5, 4, 6)
    ids = torch.tensor([[0, 4], [3, 1]])
    rows = pick(prompts, ids)
    assert rows.shape == (3, 2, 2, 8, 6)
    for image in range(2):
        for place in range(2):
            expected = prompts[:, :, ids[image, place]]
            assert torch.equal(rows[:, :, image, 4 * place : 4 * place + 4], expected)


def test_the_reshape_hands_images_each_others_rows() -> None:
    """Keys 1..4 then values 1..4: image i is given numbers 2i and 2i + 1 of that row."""
    picked = torch.arange(8.0).view(1, 2, 4, 1, 1)  # keys 0..3, values 4..7
    mixed = mixed_up(picked).view(2, 4)
    assert mixed[0].tolist() == [0, 2, 4, 6] and mixed[1].tolist() == [1, 3, 5, 7]
    assert torch.equal(mixed_up(picked[:, :, :1]), picked[:, :, :1]), (
        "one image alone is as it should be"
    )


def test_a_vote_is_of_the_whole_batch() -> None:
    ids = torch.tensor([[0, 1], [2, 1], [2, 1], [3, 2]])
    assert vote(ids, 5)[0].tolist() in ([1, 2], [2, 1])
    assert (vote(ids, 5) == vote(ids, 5)[0]).all()


def make(name: str, **changes: Any) -> PrefixMethod:
    """A method that has seen two tasks, and whose images do not all choose the same prompts."""
    method = make_method(name, tiny_backbone(), 4, **changes).double().eval()
    assert isinstance(method, PrefixMethod)
    for span in (TaskSpan(0, 0, 2), TaskSpan(1, 2, 4)):
        method.begin_task(span)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        queries = method.query(IMAGES)
        for parameter in method.prompt_parameters():
            parameter += torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        if isinstance(method, HiDePrompt):
            middle = queries[:, 0].median()
            method.identity.forward = lambda query: (query[:, 0] > middle).long()
        else:
            keys = getattr(method, "keys")  # noqa: B009 (of several classes)
            keys[: len(queries)] = queries[: len(keys)]
    return method


def alone(method: PrefixMethod) -> Tensor:
    return torch.cat([method(image.unsqueeze(0)) for image in IMAGES])


@pytest.mark.parametrize("name", FAULTY)
def test_by_default_nothing_leaks_between_images(name: str) -> None:
    method = make(name)
    with torch.no_grad():
        torch.testing.assert_close(method(IMAGES), alone(method), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bug", ["reshape", "vote", "reshape_and_vote"])
@pytest.mark.parametrize("name", FAULTY)
def test_the_published_faults_leak_between_images(name: str, bug: str) -> None:
    method = make(name, authors_bug=bug)
    with torch.no_grad():
        together, single = method(IMAGES), alone(method)
        assert (together - single).abs().max() > 1e-3
        torch.testing.assert_close(single, alone(make(name)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["dualprompt", "hide"])
def test_the_reshape_is_in_training_as_well(name: str) -> None:
    sound, faulty = (make(name, authors_bug=bug).train() for bug in ("none", "reshape"))
    with torch.no_grad():
        assert not torch.allclose(sound(IMAGES), faulty(IMAGES))
