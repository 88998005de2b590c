"""Charts with blanks. Altair builds a chart once; a page fills in its values whenever a control is moved.

Building a chart takes Altair 40 to 100 ms. Two such charts differ only in their rows, their names and the ends of their scales.
A blank is a text like "$names" in the place of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

Template = Mapping[str, Any]


def template(chart: alt.TopLevelMixin) -> Template:
    """The chart as Vega-Lite, to be cached. Do not change it: `filled` makes a copy."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec


def filled(template: Template, **values: Any) -> dict[str, Any]:
    """The chart with a value for each blank. Within a list, a blank whose value is a list is replaced by its entries."""
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
