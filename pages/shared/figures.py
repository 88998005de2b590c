"""A few large numbers with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Figure:
    name: str
    value: str
    of: str


def as_html(shown: list[Figure]) -> str:
    boxes = (
        f"<div><dt>{escape(f.name)}</dt><dd>{escape(f.value)}</dd><dd class='ss-of'>{escape(f.of)}</dd></div>" for f in shown
    )
    return f'<dl class="ss-figures">{"".join(boxes)}</dl>'
