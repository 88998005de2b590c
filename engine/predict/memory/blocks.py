"""Blocks of memory that are alike, and how many of them come and go."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from engine.terms import Factor

Factors = tuple[Factor, ...]


class BlockKind(NamedTuple):
    """Blocks that are alike. `layered`: whether there is one in each layer. The size in bytes is the product of `factors`."""

    category: str
    name: str
    factors: Factors
    layered: bool


Counts = dict[BlockKind, Any]


def size_of(factors: Factors) -> Any:
    """The product."""
    size: Any = 1
    for factor in factors:
        size = size * factor.value
    return size


def total_of(counts: Counts) -> Any:
    """In bytes."""
    return sum(count * size_of(kind.factors) for kind, count in counts.items())


class Change:
    """Blocks that are allocated or, where counts are negative, freed."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def bytes(self, category: str = "") -> Any:
        """Of all of them, or of those of a category."""
        return total_of({kind: count for kind, count in self.counts.items() if category in ("", kind.category)})

    def __add__(self, other: Change) -> Change:
        counts: Counts = defaultdict(int, self.counts)
        for kind, count in other.counts.items():
            counts[kind] += count
        return Change({kind: count for kind, count in counts.items() if count})

    def __sub__(self, other: Change) -> Change:
        return self + other * -1

    def __mul__(self, times: int) -> Change:
        return Change({kind: times * count for kind, count in self.counts.items()})
