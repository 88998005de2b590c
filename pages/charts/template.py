"""Charts with blanks: Altair puts one together once, and what a page draws at each move of a control is put into it.

One such chart differs from the next in its rows, its names and the ends of its scales; putting the rest together takes Altair 40
to 100 ms each time. A blank is a text like "$names" that stands where a value will.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

Template = Mapping[str, Any]


def template(chart: alt.TopLevelMixin) -> Template:
    """The chart as Vega-Lite, to be kept. Nobody may change it: `filled` copies."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec


def filled(template: Template, **values: Any) -> dict[str, Any]:
    """The chart with a value for each of its blanks. In a list, a blank whose value is a list becomes its entries."""
    spec: dict[str, Any] = _filled(template, {f"${name}": value for name, value in values.items()})
    return spec


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(part, str):
        return values.get(part, part)
    if isinstance(part, Mapping):
        return {key: _filled(value, values) for key, value in part.items()}
    if isinstance(part, list):
        found: list[Any] = []
        for entry in part:
            value = _filled(entry, values)
            found += value if isinstance(entry, str) and isinstance(value, list) else [value]
        return found
    return part
