"""Parity: a sharded run's gradients compared with those of the unsharded model, parameter by parameter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PARITY_LIMIT = 1e-5  # in fp32, relative to the largest entry of the same tensor


def parity_row(name: str, sharded: list[Tensor], whole: Tensor) -> dict[str, Any]:
    """The largest error of several copies of a gradient, one a replica, against the unsharded one."""
    largest = float(whole.abs().max())
    assert all(copy.shape == whole.shape for copy in sharded), name  # subtraction would broadcast the smaller one
    worst = float(torch.stack([(copy - whole).abs().max() for copy in sharded]).max())  # keeps NaN, unlike Python's max
    relative = worst / largest if largest else (0.0 if worst == 0 else math.inf)
    return {"parameter": name, "max_abs": worst, "max_rel": relative}
