"""The highest point of things that come one behind the other, and which rows can be highest, for many layouts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def undominated(rows: Any, kinds: Any) -> NDArray[np.int64]:
    """Numbers of the rows that are not, in every column, at most as large as another of their kind; of equal ones the first.

    Of each kind the row with the largest sum is one, and all that it is above are none; so it goes on with those that are left.
    Those whose equals come last in `rows` are told first.
    """
    sums = rows.sum(1)
    left = np.lexsort((-sums, kinds))
    kept, last = [], []
    while len(left):
        starts = np.flatnonzero(np.append(True, np.diff(kinds[left]) != 0))
        largest = left[starts]
        above = np.repeat(largest, np.diff(np.append(starts, len(left))))
        beaten = (rows[left] <= rows[above]).all(1)
        kept.append(largest)
        last.append(np.maximum.reduceat(np.where(beaten & (sums[left] == sums[above]), left, -1), starts))
        left = left[~beaten]
    return np.concatenate(kept)[np.argsort(-np.concatenate(last))]
