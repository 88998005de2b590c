"""`Drawing`, which every chart function returns, and what charts share."""

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
    """One chart, to be shown, exported or read aloud.

    `subject` names what is drawn. `title` states the result that the chart shows. `reading` explains how to read it. `spec` is
    Vega-Lite with its data. `table` has the same numbers, exact and complete, for readers who cannot see the chart. `moving`
    explains what the mouse does. It is left out on paper.
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
    """A plain Vega-Lite spec of Altair's chart, or of a filled template, with the settings that all charts share.

    `data` are the rows of the data sets that the chart refers to by name. A data set that is empty until a page points at
    something is `nothing()`: see `pages.shared.pointing`. The spec is not validated here, because that would take longer than
    everything else. Tests validate it.
    """
    spec: dict[str, Any] = chart if isinstance(chart, dict) else chart.to_dict(validate=False)
    spec.setdefault("datasets", {}).update(data or {})
    spec["config"] = config(style)
    # As wide as its container, as high as its content. "fit" would make rows lower when there is a legend.
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["description"] = title
    # Vega's menu is off: it offers an editor on another server. The page makes files itself, on the theme's background.
    spec["usermeta"] = {"embedOptions": {"actions": False}, "background": style.background}
    return spec


def nothing(*columns: str) -> Rows:
    """One empty row, so that the columns exist. Marks must filter it out."""
    return [dict.fromkeys(columns)]


def records(table: pd.DataFrame) -> Rows:
    """The rows of the table as a data set."""
    return table.to_dict("records")  # type: ignore[return-value]


def rank_chooser() -> alt.Parameter:
    """A selection: a click on a mark chooses its rank. The rows drawn must have the field "rank"."""
    return alt.selection_point(name=CHOSEN, fields=["rank"], on="click", toggle=False)


def colours(domain: dict[str, str], present: list[str], names: dict[str, str] | None = None) -> alt.Scale:
    """The scale of the colours of `coloured`."""
    shown, hues = coloured(domain, present, names)
    return alt.Scale(domain=shown, range=hues)


def coloured(domain: dict[str, str], present: Iterable[str], names: dict[str, str] | None = None) -> tuple[list[str], list[str]]:
    """The entries of a legend and their colours. Codes that do not occur are left out.

    `names`: code → name. If it is given, the rows drawn must hold names instead of codes.
    """
    there = set(present)
    shown = [code for code in domain if code in there or (names and names[code] in there)]
    return [names[code] if names else code for code in shown], [domain[code] for code in shown]
