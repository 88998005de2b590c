"""Fewer points of long data: the extremes of each short interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def stretches(count: int, most: int) -> Positions:
    """The first positions of at most `most` intervals of about the same length, of `count` elements."""
    return np.unique(np.linspace(0, count, min(count, most), endpoint=False).astype(np.int64))


def extremes(values: Any, most: int) -> Positions:
    """Positions of at most `most` values, in order: all, or the highest and the lowest of each interval, the first and the last.

    An interval with only NaN, as in a run that diverged, keeps its first value.
    """
    values = np.asarray(values)
    if len(values) <= most:
        return np.arange(len(values))
    begins = stretches(len(values), (most - 2) // 2)
    ends = np.append(begins[1:], len(values))
    parts = [(begin, values[begin:end]) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    found = [begin + int(place) for begin, part in parts for place in _highest_and_lowest(part)]
    return np.unique([0, *found, len(values) - 1])


def _highest_and_lowest(part: Any) -> tuple[Any, Any]:
    """Their positions. NaN is ignored."""
    if np.isnan(part).all():
        return 0, 0
    return np.nanargmax(part), np.nanargmin(part)
