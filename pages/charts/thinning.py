"""Long data made fit to be drawn: of each short stretch what tells most of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def stretches(count: int, most: int) -> Places:
    """Where each of at most `most` stretches of about the same length begins, of `count` things in order."""
    return np.unique(np.linspace(0, count, min(count, most), endpoint=False).astype(np.int64))


def extremes(values: Any, most: int) -> Places:
    """Places of at most `most` values, in order: all, or of each stretch the highest and the lowest; and the ends of all."""
    values = np.asarray(values)
    if len(values) <= most:
        return np.arange(len(values))
    begins = stretches(len(values), (most - 2) // 2)
    ends = np.append(begins[1:], len(values))
    parts = [(begin, values[begin:end]) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    found = [begin + int(place) for begin, part in parts for place in (part.argmax(), part.argmin())]
    return np.unique([0, *found, len(values) - 1])
