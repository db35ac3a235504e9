"""`router=centred` by hand: one head, three experts of width 1, the best one of three."""

from __future__ import annotations

import torch
from torch import Tensor

from smope.routers.base import ExpertState
from smope.routers.centred import Centred

STATE = ExpertState(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.bool))
KEYS = torch.tensor([[[3.0], [1.0], [-1.0]]])


def built(momentum: float = 0.5, **options: str) -> Centred:
    router = Centred(1, momentum, **options)  # pyright: ignore[reportArgumentType]
    router.build(1, 3, 1)
    return router


def queries(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def test_the_mean_by_hand() -> None:
    router = built().train()
    # scores (3, 1, -1) and (9, 3, -3): the first expert is best for both
    assert router(queries(1, 3), KEYS, STATE).expert_ids.flatten().tolist() == [0, 0]
    router.end_step()
    assert router.mean.tolist() == [[6.0, 2.0, -2.0]]
    # above their means: (-3, -1, 1) and (3, 1, -1)
    assert router(queries(1, 3), KEYS, STATE).expert_ids.flatten().tolist() == [2, 0]
    router.end_step()
    router(queries(1), KEYS, STATE)
    router.end_step()
    assert router.mean.tolist() == [[4.5, 1.5, -1.5]]  # half of (6, 2, -2), half of (3, 1, -1)


def test_parts_of_a_batch_are_one_step() -> None:
    whole, parts = built().train(), built().train()
    values = torch.randn(7, 1, 1, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        whole(values, KEYS, STATE)
        for part in values.tensor_split(3):
            parts(part, KEYS, STATE)
        whole.end_step()
        parts.end_step()
    torch.testing.assert_close(parts.mean, whole.mean)
    assert parts.steps == whole.steps == 3


def test_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, router = torch.randn(2, 3, 4, generator=generator), Centred(2, 0.9)
    router.build(2, 3, 4)
    state = ExpertState(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3).bool())
    mean = [[0.0] * 3, [0.0] * 3]
    for step in range(5):
        query = torch.randn(6, 2, 4, generator=generator)
        ids = router.train()(query, keys, state).expert_ids
        for head in range(2):
            scores = [[float(query[i, head] @ keys[head, e]) for e in range(3)] for i in range(6)]
            for image, row in enumerate(scores):
                order = sorted(range(3), key=lambda e, row=row: row[e] - mean[head][e])
                assert ids[image, head].tolist() == [order[2], order[1]]
            for expert in range(3):
                new = sum(row[expert] for row in scores) / 6
                old = mean[head][expert]
                mean[head][expert] = new if step == 0 else 0.9 * old + 0.1 * new
        router.end_step()
        torch.testing.assert_close(router.mean, torch.tensor(mean))


def test_a_step_without_a_choice_changes_nothing() -> None:
    router = built().train()
    router(queries(1), KEYS, STATE)
    router.end_step()
    router.end_step()
    assert (router.mean.tolist(), int(router.steps)) == ([[3.0, 1.0, -1.0]], 1)


def test_the_next_task_keeps_the_mean_or_replaces_it() -> None:
    for next_task, expected in (("keep", [4.5, 1.5, -1.5]), ("reset", [3.0, 1.0, -1.0])):
        router = built(next_task=next_task).train()
        for value in (2.0, 1.0):
            router(queries(value), KEYS, STATE)
            router.end_step()
            router.begin_task()
        assert router.mean.flatten().tolist() == expected
