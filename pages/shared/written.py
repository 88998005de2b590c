"""Numbers as links carry them."""

from __future__ import annotations


def exactly(value: float) -> str:
    """As short as can be read back as the same number: "0.003", "300", "0.999999999"."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
