"""Products of matrices that are many and small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
_SMALL = 200_000  # multiplications


def multiplied(one: Real, other: Real) -> Real:
    """(a, b) · (b, c), some columns at a time: products so small are not shared out among threads, which would wait for work."""
    at_once = max(1, _SMALL // one.size)
    if at_once >= other.shape[1]:
        return one @ other
    return np.concatenate([one @ other[:, i : i + at_once] for i in range(0, other.shape[1], at_once)], axis=1)
