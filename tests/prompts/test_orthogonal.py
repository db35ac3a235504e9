"""New components are orthogonal to earlier ones as far as there is room."""

from __future__ import annotations

import pytest
import torch

from smope.prompts.orthogonal import orthogonal_to


@pytest.mark.parametrize(("earlier", "number", "width"), [(0, 4, 9), (5, 4, 9), (3, 2, 40)])
def test_orthonormal_and_apart_from_the_earlier(earlier: int, number: int, width: int) -> None:
    torch.manual_seed(0)
    old = torch.randn(earlier, width, dtype=torch.float64)
    new = orthogonal_to(old, number)
    torch.testing.assert_close(
        new @ new.T, torch.eye(number, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert earlier == 0 or (new @ old.T).abs().max() < 1e-12


def test_unit_vectors_where_there_is_no_room() -> None:
    torch.manual_seed(0)
    old = torch.randn(7, 8)
    new = orthogonal_to(old, 4)
    torch.testing.assert_close(new.norm(dim=1), torch.ones(4))
    assert (new[0] @ old.T).abs().max() < 1e-5 and new.dtype == old.dtype
    assert torch.linalg.matrix_rank(orthogonal_to(torch.randn(9, 8), 3)) == 3
