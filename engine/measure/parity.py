"""Parity: a sharded run's gradients held against those of the same model unsharded, parameter by parameter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PARITY_LIMIT = 1e-5  # in fp32, relative to the largest entry of the same tensor


def parity_row(name: str, sharded: list[Tensor], whole: Tensor) -> dict[str, Any]:
    """The worst of several copies (one a replica, all put together from slices) against the unsharded gradient."""
    largest = float(whole.abs().max())
    assert all(copy.shape == whole.shape for copy in sharded), name  # subtracting would stretch the smaller one
    worst = float(
        torch.stack([(copy - whole).abs().max() for copy in sharded]).max()
    )  # which keeps NaN, as Python's max does not
    relative = worst / largest if largest else (0.0 if worst == 0 else math.inf)
    return {"parameter": name, "max_abs": worst, "max_rel": relative}
