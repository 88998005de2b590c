"""What every chart function returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from pages.charts.look import Look, config
from pages.charts.roles import CHOSEN

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """One chart, ready to be shown, exported or read aloud.

    `subject` names what is drawn; `title` states what the chart finds; `reading` tells how to read it; `spec` is
    Vega-Lite with its data inside; `table` holds the same numbers, exact and in full, for those who cannot see the chart.
    `moving` tells how the mouse moves it, which is not so on paper.
    """

    subject: str
    title: str
    reading: str
    spec: dict[str, Any]
    table: pd.DataFrame
    moving: str = ""


def finish(
    chart: alt.TopLevelMixin | dict[str, Any], style: Look, title: str, data: Mapping[str, Rows] | None = None
) -> dict[str, Any]:
    """Altair's chart, or what came of its template, as a plain Vega-Lite spec with the settings that all charts share.

    `data` are the rows of the data sets that the chart only names. One that is empty until a page points at something is given
    as `nothing`: see `pages.shared.pointing`. The spec is not held against Vega-Lite's schema, which would take longer than
    all else; a test does so.
    """
    spec: dict[str, Any] = chart if isinstance(chart, dict) else chart.to_dict(validate=False)
    spec.setdefault("datasets", {}).update(data or {})
    spec["config"] = config(style)
    # As wide as where it stands, as high as its content: "fit" would squeeze the rows when there is a legend.
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["description"] = title
    # No menu over the chart: it offers an editor on another machine. Files are made by the page, on the theme's background.
    spec["usermeta"] = {"embedOptions": {"actions": False}, "background": style.background}
    return spec


def nothing(*columns: str) -> Rows:
    """One row of nothing, so that the columns are known. What draws it must leave it out."""
    return [dict.fromkeys(columns)]


def records(table: pd.DataFrame) -> Rows:
    """A data set of the table's rows."""
    return table.to_dict("records")  # type: ignore[return-value]


def rank_chooser() -> alt.Parameter:
    """The selection of a rank by clicking what belongs to it. The rows drawn must have the field "rank"."""
    return alt.selection_point(name=CHOSEN, fields=["rank"], on="click", toggle=False)


def colours(domain: dict[str, str], present: list[str], names: dict[str, str] | None = None) -> alt.Scale:
    """The scale that gives each code its colour, as `coloured` has it."""
    shown, hues = coloured(domain, present, names)
    return alt.Scale(domain=shown, range=hues)


def coloured(domain: dict[str, str], present: Iterable[str], names: dict[str, str] | None = None) -> tuple[list[str], list[str]]:
    """What a legend lists, and the colour of each. Codes that do not occur take no room in it.

    `names` are what readers see; the rows drawn must then hold those in place of the codes.
    """
    there = set(present)
    shown = [code for code in domain if code in there or (names and names[code] in there)]
    return [names[code] if names else code for code in shown], [domain[code] for code in shown]
