"""The highest point of things that come one behind the other, for many layouts at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


def joined(leaves: Real, tops: Real, several: Sequence[tuple[int, ...]]) -> tuple[Real, Real]:
    """What each of several rows of things leaves, and the most that it ever adds: (rows, n) each.

    `leaves`, `tops`: the same of each thing, (things, n), the first of which is nothing: so is what a row begins with.
    """
    things = np.array([thing for row in several for thing in (0, *row)])
    starts = np.cumsum([0, *(1 + len(row) for row in several)])
    own = leaves[things]
    after = own.cumsum(0)
    own -= tops[things]
    ends = after[starts[1:] - 1]
    before = np.concatenate([np.zeros((1, ends.shape[1])), ends[:-1]])
    return ends - before, np.maximum.reduceat(after - own, starts[:-1], axis=0) - before
