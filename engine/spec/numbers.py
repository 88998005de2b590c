"""Numbers that fit, and how a sentence lists them."""

from __future__ import annotations

from collections.abc import Iterable

from engine.spec.sentence import sentence


def evenly(layers: int, parts: int) -> tuple[int, ...]:
    each, rest = divmod(layers, parts)
    return tuple(each + (part < rest) for part in range(parts))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def around(n: int, of: int, most: int) -> list[int]:
    """The multiples of `of` next to n, at least 1 and at most `most`."""
    below = n - n % of
    return [m for m in (below, below + of) if 1 <= m <= most]


def nearest(values: Iterable[int], to: int) -> tuple[int, ...]:
    return tuple(sorted(values, key=lambda v: (abs(v - to), v))[:4])


def listed(values: Iterable[object]) -> str:
    """In words: 1, 2, 4 and 8."""
    *words, end = map(str, values)
    return sentence("{values} and {last}", values=", ".join(words), last=end) if words else end


def either(values: Iterable[object]) -> str:
    """In words: 1, 2, 4 or 8."""
    *words, end = map(str, values)
    return sentence("{values} or {last}", values=", ".join(words), last=end) if words else end
