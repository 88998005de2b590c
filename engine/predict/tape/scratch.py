"""The scratch that oneDNN takes for a bf16 matrix product on a CPU, for as long as it runs.

Not from a paper: read off what oneDNN asks for on a CPU with AVX-512 and no AMX (an AMD EPYC; torch 2.13), for products of 2 to
3,000 a side. It depends on the CPU: another may ask for other amounts, and a measurement in bf16 there differs by as much. All in
all it is less than a megabyte, which counts in models as small as those that tests run.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from engine.predict.symbolic import Size, later
from engine.predict.tape.buckets import Shape
from engine.predict.tape.sizes import Sizes
from engine.predict.tape.tape import Tape
from engine.predict.terms import Factor

_TILE_COLUMNS, _STEP, _PANEL = 64, 32, 512
_MOST_TILES = 16
_KNOWN = 2**16  # so many are remembered, the latest


@lru_cache(maxsize=_KNOWN)
def scratch_bytes(m: int, k: int, n: int, turned: bool) -> int:
    """Of (m, k) × (k, n): a packed panel of the second, a tile of fp32 sums, and a copy of the first if it lies `turned`.

    A first that lies turned is taken in panels of at most 512, and the sums of several tiles wait for the next one.
    """
    inner = -(-k // _STEP) * _STEP
    whole = inner <= _PANEL
    panel = inner if whole else _PANEL if turned or inner <= 2 * _PANEL else 2 * _PANEL
    rows = _tile_rows(m)
    tiles = -(-n // _TILE_COLUMNS)
    together = max(t for t in range(1, _MOST_TILES + 1) if tiles % t == 0) if turned and not whole else 1
    sums = rows * (min(n, _TILE_COLUMNS) if together == 1 else together * _TILE_COLUMNS) * 4
    copied = rows * (panel + (0 if panel % _PANEL else _STEP)) * 2 + 128 if turned else 0
    return 2 * _TILE_COLUMNS * panel + sums + 1024 + copied


@lru_cache(maxsize=_KNOWN)
def _tile_rows(m: int) -> int:
    """From 32 to 256, and as many as leave the least of the last tile empty."""
    return m if m <= 256 else min(range(256, 31, -1), key=lambda rows: -m % rows)


def _of_arrays(m: Any, k: Any, n: Any, turned: bool) -> Any:
    """Of very many layouts at once; few products are distinct."""
    sides = zip(*(side.ravel().tolist() for side in np.broadcast_arrays(m, k, n)), strict=True)
    return np.array([scratch_bytes(*of_one, turned) for of_one in sides])


@lru_cache(maxsize=_KNOWN)
def _scratch(m: Shape, k: Shape, n: Shape, turned: bool) -> Factor:
    sides = [prod(factor.value for factor in shape) for shape in (m, k, n)]
    letters = any(isinstance(side, Size) for side in sides)
    scratch: Any = later(_of_arrays, *sides, turned) if letters else scratch_bytes(*sides, turned)
    return Factor("scratch", scratch)


def matmul(tape: Tape, sizes: Sizes, m: Shape, k: Shape, n: Shape, turned: bool = False) -> None:
    """One product, if it is in bf16."""
    if sizes.wide:
        tape.touch("scratch of a matrix product", _scratch(m, k, n, turned))


Sides = tuple[Factor, ...]


class Copies(NamedTuple):
    """Shapes of operands that a bf16 product on a CPU copies, by what they are; `key_back` where queries get their gradient."""

    query: Sides | None = None
    key: Sides | None = None
    key_back: Sides | None = None
    value: Sides | None = None
    output: Sides | None = None  # the gradient of the mixed values


def operands_copied(z: Sizes, turned: bool, beside: bool) -> Copies:
    """oneDNN takes matrices of a batch only if they follow one another in memory, and copies those that do not.

    `turned`: queries and keys have been turned by their place, into blocks of their own. `beside`: queries lie beside the others.
    """
    if not z.wide or (z.many and z.groups):  # the latter were copied before
        return Copies()
    shared = z.model.heads != z.model.key_heads
    query, key = (z.B, z.A, z.R, z.D, z.e), (z.B, z.G, z.S, z.D, z.e)
    return Copies(
        query if not turned and not shared and (beside or z.heads) else None,
        key if not turned or not (z.groups or z.many) else None,
        key if not turned else None,
        key,
        query if z.heads and not shared else None,
    )
