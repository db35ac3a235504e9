"""Stored features: which ones stay, and how they move."""

from __future__ import annotations

import torch
from torch import Tensor

from smope.methods._shared.drift import moved
from smope.methods._shared.stored_features import StoredFeatures


def numbered(first: int, count: int) -> Tensor:
    """Features (count, 2) that tell their number."""
    return torch.arange(first, first + count, dtype=torch.float64)[:, None].expand(-1, 2)


def numbers_of(stored: StoredFeatures, label: int) -> list[int]:
    features, labels = stored.all()
    return features[labels == label, 0].int().tolist()


def test_all_features_stay_while_there_is_room_class_after_class() -> None:
    stored = StoredFeatures(num_classes=3, per_class=4, width=2)
    assert [len(rows) for rows in stored.all()] == [0, 0]
    stored.add(numbered(0, 4), torch.tensor([2, 0, 2, 0]))
    stored.add(numbered(4, 1), torch.tensor([0]))
    features, labels = stored.all()
    assert labels.tolist() == [0, 0, 0, 2, 2]
    assert features[:, 0].int().tolist() == [1, 3, 4, 0, 2]
    assert features.dtype == torch.float64 and stored.counts.tolist() == [3, 0, 2]


def test_of_many_images_evenly_spaced_ones_stay_also_of_a_class_that_comes_again() -> None:
    stored = StoredFeatures(num_classes=1, per_class=4, width=2)
    stored.add(numbered(0, 8), torch.zeros(8, dtype=torch.int64))
    assert numbers_of(stored, 0) == [0, 2, 4, 6]
    stored.add(numbered(8, 8), torch.zeros(8, dtype=torch.int64))
    assert numbers_of(stored, 0) == [0, 4, 8, 12], "half of the room for half of the images"
    stored.add(numbered(16, 1), torch.zeros(1, dtype=torch.int64))
    assert numbers_of(stored, 0) == [0, 4, 8, 12], "one image of 17 is not worth a fourth"
    assert stored.images.tolist() == [17]


def test_every_number_of_images_fills_the_room() -> None:
    for first in range(1, 9):
        for second in range(1, 9):
            stored = StoredFeatures(num_classes=1, per_class=4, width=2)
            stored.add(numbered(0, first), torch.zeros(first, dtype=torch.int64))
            stored.add(numbered(100, second), torch.zeros(second, dtype=torch.int64))
            numbers = numbers_of(stored, 0)
            assert len(numbers) == len(set(numbers)) == min(4, first + second)


def test_they_move_as_the_images_of_a_task_did_and_a_class_can_be_removed() -> None:
    stored = StoredFeatures(num_classes=2, per_class=3, width=2)
    rows = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double()
    stored.add(rows, torch.tensor([0, 0, 1, 1]))
    before, after = rows.flip(0) * 2, rows.flip(0) * 3 + 1
    stored.carry(before, after, 0.5)
    torch.testing.assert_close(stored.all()[0].float(), moved(rows, before, after, 0.5).float())
    stored.remove(0)
    assert stored.all()[1].tolist() == [1, 1]
    assert not stored.features[0].any() and not stored.features[1, 2].any(), "unused rows stay 0"
