"""Numbers with units, as text. Bytes are binary: 1 KiB is 1,024 bytes. Times are in nanoseconds.

Chinese writes digits, points, thousands and the names of these units as English does. Only large counts differ: by 万 and 亿.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pages.charts.words import Words


@dataclass(frozen=True)
class Unit:
    """A unit's name, and its size in the smallest unit (bytes or ns)."""

    name: str
    size: float


BYTES = (Unit("B", 1), Unit("KiB", 2**10), Unit("MiB", 2**20), Unit("GiB", 2**30), Unit("TiB", 2**40))
TIMES = (Unit("ns", 1), Unit("µs", 1e3), Unit("ms", 1e6), Unit("s", 1e9))


def byte_unit(largest: float) -> Unit:
    """The unit in which a chart shows bytes up to `largest`."""
    return _fitting(BYTES, largest)


def time_unit(largest_ns: float) -> Unit:
    """The unit in which a chart shows times up to `largest_ns`."""
    return _fitting(TIMES, largest_ns)


def in_bytes(value: float) -> str:
    """ "3.42 MiB": three significant digits, in the largest unit in which the number is at least 1."""
    return _in(value, byte_unit(value))


def in_time(ns: float) -> str:
    """ "81.2 ms"."""
    return _in(ns, time_unit(ns))


def short(value: float, say: Words) -> str:
    """A count with three significant digits: 950, 12.3 k, 4.56 M, 175 B; in Chinese 950, 1.23万, 456万, 1,750亿."""
    for name, size in (("亿", 1e8), ("万", 1e4)) if say.language == "zh" else ((" B", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(value) >= size:
            return f"{significant(value / size)}{name}"
    return significant(value)


def percent(share: float) -> str:
    """ "12.3%", "4.2%": one decimal. A number slightly below zero is "0.0%", without a sign."""
    return f"{round(100 * share, 1) + 0.0:.1f}%"


def scientific(value: float) -> str:
    """ "3.1e-7"."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _fitting(units: tuple[Unit, ...], largest: float) -> Unit:
    return next((u for u in reversed(units) if largest >= u.size), units[0])


def _in(value: float, unit: Unit) -> str:
    return f"{significant(value / unit.size)} {unit.name}"


def significant(value: float) -> str:
    """Three significant digits, without an exponent. A whole number has no decimals."""
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    magnitude = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:,.{max(0, 3 - magnitude)}f}"


def ranges(numbers: Sequence[int]) -> str:
    """ "0–3, 6": the numbers in order, consecutive ones as a range."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
