"""Whole numbers that fit a rule, and lists of them in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from engine.spec.sentence import sentence


def evenly(layers: int, parts: int) -> tuple[int, ...]:
    """Layers of each part, as even as possible. The first parts have one more."""
    each, rest = divmod(layers, parts)
    return tuple(each + (part < rest) for part in range(parts))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def nearest_multiples(n: int, of: int, most: int) -> list[int]:
    """The multiples of `of` next to n, below and above it, if they are at least 1 and at most `most`."""
    below = n - n % of
    return [m for m in (below, below + of) if 1 <= m <= most]


def nearest(values: Iterable[int], to: int) -> tuple[int, ...]:
    """The four values nearest to `to`, nearest first."""
    return tuple(sorted(values, key=lambda v: (abs(v - to), v))[:4])


def listed(values: Iterable[object]) -> str:
    """The values in words: 1, 2, 4 and 8."""
    *words, end = map(str, values)
    return sentence("{values} and {last}", values=", ".join(words), last=end) if words else end


def either(values: Iterable[object]) -> str:
    """The values in words: 1, 2, 4 or 8."""
    *words, end = map(str, values)
    return sentence("{values} or {last}", values=", ".join(words), last=end) if words else end


def in_runs(counts: Sequence[int]) -> str:
    """Numbers in a row, equal ones together: (6, 7, 7, 7, 6) → "6, 3 × 7, 6"."""
    runs = [(len([*same]), count) for count, same in groupby(counts)]
    return ", ".join(f"{times} × {count}" if times > 1 else str(count) for times, count in runs)
