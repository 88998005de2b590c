"""A schedule's passes as arrays, one behind the other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.schedule.orders import KINDS as KINDS
from engine.schedule.orders import Pass

_NUMBER = np.zeros(128, np.int64)
_NUMBER[[ord(kind) for kind in KINDS]] = np.arange(len(KINDS))


def columns(orders: Iterable[list[Pass]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each pass the number of its kind in `KINDS`, its chunk and its microbatch."""
    kinds, chunks, microbatches = zip(*chain.from_iterable(orders), strict=True)
    return _NUMBER[np.frombuffer("".join(kinds).encode(), np.uint8)], np.array(chunks), np.array(microbatches)
