"""Vega-Lite written as the dictionaries that it is, for the charts that are made anew at each move of a control.

Altair copies, checks and digests every part of a chart that it puts together: 45 ms of the 50 that the bars of memory took. What
is put together here is held against Vega-Lite's schema by a test, as every chart is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from pages.charts.roles import CHOSEN

Spec = dict[str, Any]
Rows = list[dict[str, Any]]
_TYPES = {"Q": "quantitative", "N": "nominal", "O": "ordinal"}


def channel(field: str, **settings: Any) -> Spec:
    """An encoding, or an entry of a tooltip, by the field's name and the letter of its type: "bytes:Q"."""
    name, letter = field.split(":")
    return {"field": name, "type": _TYPES[letter], **settings}


def until(field: str) -> Spec:
    """The other end of a bar: it is of its first end's type."""
    return {"field": field}


def where(test: str, value: float) -> Spec:
    """`value` where the expression `test` holds, else 0."""
    return {"condition": {"test": test, "value": value}, "value": 0}


def view(mark: str, data: str, encoding: Mapping[str, Spec | Sequence[Spec]], *transforms: Spec, **style: Any) -> Spec:
    """One kind of mark, a mark for each row of the data set `data`."""
    found: Spec = {"data": {"name": data}, "mark": {"type": mark, **style}, "encoding": dict(encoding)}
    return found | {"transform": list(transforms)} if transforms else found


def chosen_in(named: Spec) -> tuple[Spec, Spec]:
    """The view, and the selection of a rank by a click on what belongs to it there: its rows have the field "rank"."""
    name = "choosable"
    click = {"type": "point", "fields": ["rank"], "on": "click", "toggle": False}
    return named | {"name": name}, {"name": CHOSEN, "select": click, "views": [name]}


def records(table: pd.DataFrame) -> Rows:
    """A data set of the table's rows."""
    return table.to_dict("records")  # type: ignore[return-value]


def layered(views: Sequence[Spec], data: Mapping[str, Rows], height: int, *params: Spec) -> Spec:
    """One view over the other, with their data."""
    found: Spec = {"$schema": alt.SCHEMA_URL, "height": height, "layer": list(views), "datasets": dict(data)}
    return found | {"params": list(params)} if params else found


def scale_of(colours: Mapping[str, str], present: Sequence[str], names: Mapping[str, str] | None = None) -> Spec:
    """The scale that gives each code its colour. Codes that do not occur take no room in the legend.

    `names` are what readers see; the rows drawn must then hold those in place of the codes.
    """
    shown = [code for code in colours if code in present or (names and names[code] in present)]
    return {"domain": [names[code] if names else code for code in shown], "range": [colours[code] for code in shown]}
