"""Tokens that choose experts, on paper: a router of one layer, on two ranks with two experts each."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from pages.learn.toys import Array

TOKENS, EXPERTS, RANKS = 12, 4, 2
_FAVOURITE = 1  # the expert to which a skewed router sends most


@dataclass(frozen=True)
class Routing:
    """`shares`: (T, E) of each token over the experts, which add up to 1. `chosen`: (T, k) experts, the best first.

    `dropped`: pairs of a token and one of its experts that had no room left.
    """

    shares: Array
    chosen: list[list[int]]
    dropped: set[tuple[int, int]]

    @classmethod
    def drawn(cls, each: int, skew: float, capacity: float = 0.0) -> Routing:
        """`each`: experts of a token. `skew`: added to the score of one expert. `capacity`: factor; 0 drops nothing."""
        scores = np.random.default_rng(11).normal(size=(TOKENS, EXPERTS))
        scores[:, _FAVOURITE] += skew
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        chosen = [[int(expert) for expert in np.argsort(-row)[:each]] for row in shares]
        room = ceil(capacity * TOKENS * each / EXPERTS) if capacity else TOKENS
        taken, dropped = [0] * EXPERTS, set()
        for token, experts in enumerate(chosen):
            for expert in experts:
                if taken[expert] == room:
                    dropped.add((token, expert))
                else:
                    taken[expert] += 1
        return cls(shares, chosen, dropped)

    @property
    def kept(self) -> list[tuple[int, int]]:
        """(token, expert) of each row that is sent."""
        pairs = [(token, expert) for token, experts in enumerate(self.chosen) for expert in experts]
        return [pair for pair in pairs if pair not in self.dropped]

    def load(self, expert: int) -> int:
        return sum(other == expert for _, other in self.kept)

    def sent(self, rank: int, other: int) -> int:
        """Rows that `rank` sends to `other`, which may be itself."""
        return sum(token_rank(token) == rank and expert_rank(expert) == other for token, expert in self.kept)

    @property
    def unevenness(self) -> float:
        """Rows of the fullest rank, as a multiple of the mean."""
        rows = [sum(self.load(expert) for expert in range(EXPERTS) if expert_rank(expert) == rank) for rank in range(RANKS)]
        return max(rows) * RANKS / sum(rows)


def token_rank(token: int) -> int:
    return token * RANKS // TOKENS


def expert_rank(expert: int) -> int:
    return expert * RANKS // EXPERTS
