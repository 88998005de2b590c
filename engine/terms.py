"""Numbers with their formula: a predicted number is a sum of terms, a term is a product of factors, a factor is a symbol and its
value.

So a page can show the formula of a bar, with symbols and with numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple


class Factor(NamedTuple):
    """A factor: its symbol in the formula, and its value."""

    symbol: str
    value: int


@dataclass(frozen=True)
class Term:
    """One term of a sum: the product of its factors. `name` says in words what it counts."""

    name: str
    factors: tuple[Factor, ...]

    @property
    def value(self) -> int:
        return prod(factor.value for factor in self.factors)

    @property
    def symbols(self) -> str:
        """ "L/pp · B · S · H · e"."""
        return " · ".join(factor.symbol for factor in self.factors)

    @property
    def numbers(self) -> str:
        """ "2 · 2 · 64 · 64 · 4"."""
        return " · ".join(f"{factor.value:,}" for factor in self.factors)


def total(terms: Iterable[Term]) -> int:
    return sum(term.value for term in terms)
