"""Features beyond the bound of memory go to disk, and leave space there for others."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from smope.training.feature_store import FeatureStore


def test_at_most_half_of_the_free_space_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore()
    store.directory, store.bytes_in_memory = tmp_path, 40
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200))
    batches = [torch.randn(5, 2) for _ in range(3)]  # of 40 bytes: in memory, and two on disk
    stored = [store.keep(batch) for batch in batches]
    with pytest.raises(OSError, match="No space left"):
        store.keep(torch.randn(6, 2))
    for batch, there in zip(batches, stored, strict=True):
        assert torch.equal(there.read(), batch)
        assert torch.equal(there.row(3), batch[3])
