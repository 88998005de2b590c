"""Numbers that explain themselves: a predicted number is a sum of terms, a term a product, a factor a symbol and its value.

So a page can unfold a bar into the sum it is, once with symbols and once with the numbers put in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple


class Factor(NamedTuple):
    """One factor: how a formula writes it, and what it is here."""

    symbol: str
    value: int


@dataclass(frozen=True)
class Term:
    """One summand: `name` says in words what it counts. Its value is the product of its factors."""

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
