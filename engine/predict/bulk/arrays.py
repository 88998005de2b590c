"""Work on arrays of many layouts: the highest point of things in a row, which rows can be highest, products of small matrices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
_SMALL = 200_000  # multiplications


def joined(leaves: Real, tops: Real, several: Sequence[tuple[int, ...]]) -> tuple[Real, Real]:
    """What each of several rows of things leaves, and the most that it ever adds, 0 at least: (rows, n) each.

    `leaves`, `tops`: the same of each thing, (things, n). All rows take a step at a time, the longest first.
    """
    order = sorted(range(len(several)), key=lambda row: -len(several[row]))
    level, highest = np.zeros((2, len(several), leaves.shape[1]))
    for step in zip_longest(*(several[row] for row in order)):
        things = [thing for thing in step if thing is not None]
        now, top = level[: len(things)], highest[: len(things)]
        np.maximum(top, now + tops[things], out=top)
        now += leaves[things]
    back = np.argsort(order)
    return level[back], highest[back]


def undominated(columns: Any, kinds: Any) -> NDArray[np.int64]:
    """Numbers of the things that are not, in every column, at most as large as another of their kind; of equal ones the first.

    Of each kind the one with the largest sum is such, and all that it is above are not; so it goes on with those that are left.
    `columns`: (columns, things), whole numbers; `kinds`: (things,), from 0.
    """
    sums = columns.sum(0, dtype=np.int64)
    below, count = sums.max() - sums, len(kinds)
    assert (int(kinds.max()) + 1) * (int(below.max()) + 1) * count < 2**63, "more than a key can hold"
    left = np.sort((kinds * (below.max() + 1) + below) * count + np.arange(count)) % count
    columns, kinds = columns[:, left], kinds[left]
    kept = []
    while len(left):
        first = np.append(True, kinds[1:] != kinds[:-1])
        largest = np.flatnonzero(first)
        kept.append(left[largest])
        above = columns[:, largest].repeat(np.diff(np.append(largest, len(left))), axis=1)
        rest = np.flatnonzero((columns > above).any(0))
        columns, kinds, left = columns[:, rest], kinds[rest], left[rest]
    return np.concatenate(kept)


def multiplied(one: Real, other: Real) -> Real:
    """(a, b) · (b, c), some columns at a time: products so small are not shared out among threads, which would wait for work."""
    at_once = max(1, _SMALL // one.size)
    if at_once >= other.shape[1]:
        return one @ other
    return np.concatenate([one @ other[:, i : i + at_once] for i in range(0, other.shape[1], at_once)], axis=1)
