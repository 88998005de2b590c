"""Symbolic sizes: products of whole numbers and of letters, whose values are known later, for very many layouts at once.

The formulas of `engine.predict.memory` are written for numbers. If `letter("tp")` is used in place of a number, the result is a
`Size`. `values` evaluates sizes for arrays of layouts. Letters and all other atoms are ≥ 0; only a coefficient may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np

# Sizes in each cache. A model has some hundred, and a server is asked about any number of models. A size that was dropped from
# the cache is made again, with equal values.
_KEPT = 2**16


class Atom:
    """A factor that is not split further: a letter, a quotient, a sum, a function. Atoms with one name have one value.

    `recipe(known, found)` evaluates it; see `value`.
    """

    __slots__ = ("name", "recipe")

    def __init__(self, name: str, recipe: Callable[[Mapping[str, Any], dict[Atom, Any]], Any]) -> None:
        self.name, self.recipe = name, recipe


Atoms = tuple[Atom, ...]


class Size:
    """A coefficient times atoms, which are sorted by name. `sized` makes it.

    Equal products are one object as long as they are in the cache. That saves work; no result depends on it.
    """

    __slots__ = ("atoms", "coefficient")

    def __init__(self, coefficient: int, atoms: Atoms) -> None:
        self.coefficient, self.atoms = coefficient, atoms

    def __str__(self) -> str:
        return "·".join([str(self.coefficient), *(atom.name for atom in self.atoms)])

    def __mul__(self, other: Any) -> Size:
        if isinstance(other, Size):
            return sized(self.coefficient * other.coefficient, _in_order(self.atoms + other.atoms))
        return sized(self.coefficient * int(other), self.atoms)

    __rmul__ = __mul__

    def __neg__(self) -> Size:
        return sized(-self.coefficient, self.atoms)

    def __add__(self, other: Any) -> Size:
        """The sum. If both have the same atoms, the coefficients are added. Otherwise the sum is an atom."""
        if isinstance(other, Size) and self.atoms == other.atoms:
            return sized(self.coefficient + other.coefficient, self.atoms)
        if not isinstance(other, Size) and other == 0:
            return self
        return _sum(self, as_size(other))

    __radd__ = __add__

    def __floordiv__(self, other: Any) -> Size:
        return _quotient(self, as_size(other))

    def __rfloordiv__(self, other: Any) -> Size:
        return _quotient(as_size(other), self)


@lru_cache(maxsize=_KEPT)
def sized(coefficient: int, atoms: Atoms = ()) -> Size:
    """`coefficient` times the product of `atoms`."""
    return Size(coefficient, atoms)


def as_size(number: Any) -> Size:
    """A number as a size. A size is returned unchanged."""
    return number if isinstance(number, Size) else sized(int(number))


def _in_order(atoms: Atoms) -> Atoms:
    return tuple(sorted(atoms, key=lambda atom: atom.name))


@cache  # only few names are used, all of them written in the code
def letter(name: str) -> Size:
    """A number whose value is known later."""
    return sized(1, (Atom(name, lambda known, found: known[name]),))


@lru_cache(maxsize=_KEPT)
def _sum(one: Size, other: Size) -> Size:
    name = f"({one} + {other})"
    return sized(1, (Atom(name, lambda known, found: value(one, known, found) + value(other, known, found)),))


@lru_cache(maxsize=_KEPT)
def _quotient(over: Size, under: Size) -> Size:
    """The quotient, rounded down as Python's `//`. If `over` is negative, that is −⌈−over / under⌉, so that the atom is not
    negative.
    """
    if over.coefficient < 0:
        above = -over
        name = f"⌈{above}/{under}⌉"
        return sized(-1, (Atom(name, lambda known, found: -(-value(above, known, found) // value(under, known, found))),))
    name = f"⌊{over}/{under}⌋"
    return sized(1, (Atom(name, lambda known, found: value(over, known, found) // value(under, known, found)),))


@lru_cache(maxsize=_KEPT)
def later(function: Callable[..., Any], *arguments: Any) -> Size:
    """The value of `function(*arguments)`, evaluated later. The function must take arrays."""
    name = f"{function.__name__}({', '.join(str(argument) for argument in arguments)})"

    def recipe(known: Mapping[str, Any], found: dict[Atom, Any]) -> Any:
        return function(*(value(a, known, found) if isinstance(a, Size) else a for a in arguments))

    return sized(1, (Atom(name, recipe),))


def value(size: Size, known: Mapping[str, Any], found: dict[Atom, Any]) -> Any:
    """The value of a size. `known`: the value of each letter. `found`: a cache of the values of atoms."""
    return size.coefficient * product(size.atoms, known, found)


def product(atoms: Atoms, known: Mapping[str, Any], found: dict[Atom, Any]) -> Any:
    """The value of a product of atoms."""
    out: Any = 1
    for atom in atoms:
        if atom not in found:
            found[atom] = atom.recipe(known, found)
        out = out * found[atom]
    return out


def values(products: list[Atoms], known: Mapping[str, Any]) -> Any:
    """The values of products of atoms, (products, n), as float64. They are whole numbers, exact up to 2⁵³."""
    found: dict[Atom, Any] = {}
    count = max(np.size(v) for v in known.values())
    out = np.empty((len(products), count))
    for i, atoms in enumerate(products):
        out[i] = product(atoms, known, found)
    return out
