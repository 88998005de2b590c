"""The matrix products of linear layers are those of torch, whichever library computes them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from engine.parallel.product import linear, outer, times


@pytest.mark.parametrize("width", [8, 512], ids=["small", "large"])
@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_torchs_in_any_strides(width: int, bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 70, width, generator=random)
    weight = torch.randn(3 * width, width, generator=random)
    b = torch.randn(3 * width, generator=random) if bias else None
    for rows in (x, x[:, 6:], x[0]):
        torch.testing.assert_close(linear(rows, weight, b), F.linear(rows, weight, b), atol=1e-3, rtol=1e-4)
    gradient = torch.randn(140, 3 * width, generator=random)
    wide = torch.randn(2, 140, 3 * width, generator=random)
    for rows in (gradient, wide, wide[:, 6:]):
        torch.testing.assert_close(times(rows, weight), rows @ weight, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(outer(gradient, x), gradient.T @ x.flatten(0, 1), atol=1e-3, rtol=1e-4)
