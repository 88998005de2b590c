"""Parity: a sharded run's gradients held against those of the same model unsharded, parameter by parameter."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

PARITY_LIMIT = 1e-5  # in fp32, relative to the largest entry of the same tensor


def parity_row(name: str, sharded: list[Tensor], whole: Tensor) -> dict[str, Any]:
    """The worst of several copies (one a replica, all put together from slices) against the unsharded gradient."""
    largest = float(whole.abs().max())
    worst = max(float((copy - whole).abs().max()) for copy in sharded)
    relative = worst / largest if largest else (0.0 if worst == 0 else math.inf)
    return {"parameter": name, "max_abs": worst, "max_rel": relative}
