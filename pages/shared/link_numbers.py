"""Numbers in links."""

from __future__ import annotations


def shortest_text(value: float) -> str:
    """The shortest text that is read as the same number: "0.003", "300", "0.999999999"."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
