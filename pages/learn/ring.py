"""Causal attention over a ring of ranks, on paper: which blocks of scores each rank computes, and when.

The sequence is cut into 2 · cp chunks. A block is the scores of a chunk's queries and a chunk's keys. On the diagonal only half
of a block is computed. Blocks above it are not computed at all.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pages.learn.toys import Array

Cut = Literal["order", "ends"]


def chunks(rank: int, cp: int, cut: Cut) -> tuple[int, int]:
    """The two chunks of a rank: neighbours in order, or one from each end, as `engine.parallel.context` cuts."""
    return (2 * rank, 2 * rank + 1) if cut == "order" else (rank, 2 * cp - 1 - rank)


def source(rank: int, step: int, cp: int) -> int:
    """Whose keys and values a rank has in a step: at first its own, then those of the rank before it, and so on."""
    return (rank - step) % cp


def blocks(rank: int, step: int, cp: int, cut: Cut) -> list[tuple[int, int]]:
    """(chunk of queries, chunk of keys) that a rank computes in a step."""
    keys = chunks(source(rank, step, cp), cp, cut)
    return [(q, k) for q in chunks(rank, cp, cut) for k in keys if k <= q]


def work(rank: int, step: int, cp: int, cut: Cut) -> float:
    """Blocks of scores that a rank computes in a step."""
    return sum(0.5 if q == k else 1.0 for q, k in blocks(rank, step, cp, cut))


def idle(cp: int, cut: Cut) -> float:
    """The share of time, 0 to 1, in which ranks wait for the one with the most work, as the mean of all ranks."""
    steps = [[work(rank, step, cp, cut) for rank in range(cp)] for step in range(cp)]
    return 1 - sum(map(sum, steps)) / (cp * sum(map(max, steps)))


class Running:
    """One row of attention, a part of the keys at a time (Milakov and Gimelshein 2018). Values are single numbers.

    `largest`: of the scores so far. `total`: the sum of exp(score − largest). `mixed`: the mixture of the values so far.
    """

    def __init__(self) -> None:
        self.largest, self.total, self.mixed = float("-inf"), 0.0, 0.0

    def add(self, scores: Array, values: Array) -> None:
        largest = max(self.largest, float(scores.max()))
        shares = np.exp(scores - largest)
        before = self.total * np.exp(self.largest - largest)
        total = before + float(shares.sum())
        self.mixed = float((before * self.mixed + shares @ values) / total)
        self.largest, self.total = largest, float(total)
