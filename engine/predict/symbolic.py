"""Sizes with letters in them: products of whole numbers and of what is known later, for very many layouts at once.

The formulas of `engine.predict.memory` are written for numbers. Put in `letter("tp")` in place of a number, and what comes out is
a `Size`, which `values` turns into numbers for whole arrays of layouts. None of these is ever negative but for its coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np

# So many sizes are remembered of each sort, the latest: a model's shape has some hundred, and a server is asked about any number
# of shapes. What was dropped is made anew, and in numbers it comes out the same.
_KEPT = 2**16


class Atom:
    """What is not taken apart: a letter, a quotient, a sum. There is one of a name."""

    __slots__ = ("name", "recipe")

    def __init__(self, name: str, recipe: Callable[[Mapping[str, Any], dict[Atom, Any]], Any]) -> None:
        self.name, self.recipe = name, recipe


Atoms = tuple[Atom, ...]


class Size:
    """A coefficient times some atoms, which are in order of their names. Made by `sized`: equal products are one
    object while they are remembered, which saves work, and on which no result depends.
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
        """A sum of equal products is one of them; else it is an atom."""
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
    """The product of these."""
    return Size(coefficient, atoms)


def as_size(number: Any) -> Size:
    """A number, or a size as it is."""
    return number if isinstance(number, Size) else sized(int(number))


def _in_order(atoms: Atoms) -> Atoms:
    return tuple(sorted(atoms, key=lambda atom: atom.name))


@cache  # by the few names that the code writes, never by what users choose
def letter(name: str) -> Size:
    """A number that is known later."""
    return sized(1, (Atom(name, lambda known, found: known[name]),))


@lru_cache(maxsize=_KEPT)
def _sum(one: Size, other: Size) -> Size:
    name = f"({one} + {other})"
    return sized(1, (Atom(name, lambda known, found: value(one, known, found) + value(other, known, found)),))


@lru_cache(maxsize=_KEPT)
def _quotient(over: Size, under: Size) -> Size:
    """Rounded down; of a negative number so are its coefficient's signs, which makes it the opposite of one rounded up."""
    if over.coefficient < 0:
        above = -over
        name = f"⌈{above}/{under}⌉"
        return sized(-1, (Atom(name, lambda known, found: -(-value(above, known, found) // value(under, known, found))),))
    name = f"⌊{over}/{under}⌋"
    return sized(1, (Atom(name, lambda known, found: value(over, known, found) // value(under, known, found)),))


@lru_cache(maxsize=_KEPT)
def later(function: Callable[..., Any], *arguments: Any) -> Size:
    """What a function of sizes will be. The function must do arrays."""
    name = f"{function.__name__}({', '.join(str(argument) for argument in arguments)})"

    def recipe(known: Mapping[str, Any], found: dict[Atom, Any]) -> Any:
        return function(*(value(a, known, found) if isinstance(a, Size) else a for a in arguments))

    return sized(1, (Atom(name, recipe),))


def value(size: Size, known: Mapping[str, Any], found: dict[Atom, Any]) -> Any:
    """The size in numbers. `known`: what each letter is; `found`: what atoms have come out as."""
    return size.coefficient * product(size.atoms, known, found)


def product(atoms: Atoms, known: Mapping[str, Any], found: dict[Atom, Any]) -> Any:
    out: Any = 1
    for atom in atoms:
        if atom not in found:
            found[atom] = atom.recipe(known, found)
        out = out * found[atom]
    return out


def values(products: list[Atoms], known: Mapping[str, Any]) -> Any:
    """Some products of atoms in numbers, (products, n), as floats: whole ones, exact up to 2⁵³."""
    found: dict[Atom, Any] = {}
    count = max(np.size(v) for v in known.values())
    out = np.empty((len(products), count))
    for i, atoms in enumerate(products):
        out[i] = product(atoms, known, found)
    return out
