"""Rows of bars along one time axis: how every timeline is drawn."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from pages.charts.drawing import nothing
from pages.charts.look import Look, lane
from pages.charts.names import columns, lanes
from pages.charts.plain import Rows, Spec, channel, chosen_in, layered, records, scale_of, until, view, where
from pages.charts.units import Unit

BARS = ("row", "lane", "kind", "chunk", "microbatch", "start_ns", "end_ns", "critical")  # what `chart` needs
# A label is shown when its bar has room for it, which changes as one zooms: about 7 pixels a letter, and a margin.
_HAS_ROOM = "scale('x', datum.end) - scale('x', datum.start) > 7 * length(datum.label) + 4"
# Lines around bars that are hardly wider than they would hide the bars.
_NOT_THIN = "scale('x', datum.end) - scale('x', datum.start) > 4"
_PALER = [1.0, 0.7, 0.85, 0.6, 0.9, 0.65, 0.8, 0.55]  # of a stage's chunks, so that neighbours differ
_BINS = 240  # of time, in an overview
_ZOOM: Spec = {
    "name": "zoom",
    "select": {"type": "interval", "encodings": ["x"], "zoom": "wheel![event.ctrlKey]"},
    "bind": "scales",
    "views": ["tracks"],
}


class Row(NamedTuple):
    """`key` is what bars name their row by, `label` what is read. A heading has no bars."""

    key: str
    label: str
    heading: bool = False


class _Bar(NamedTuple):
    """Height of a bar, and how far below the middle of its row it lies, in pixels."""

    height: int
    below: int


def chart(
    bars: pd.DataFrame, rows: list[Row], clock: Unit, time: Spec, style: Look, window: tuple[float, float] | None = None
) -> Spec:
    """Bars on pale tracks, with text in those that have room for it.

    `bars` has the columns of `BARS`, and may have cpu_ns. With rank and opaque, a click on a bar chooses its rank. The track of
    a row starts at 0 and ends where `window` or the last bar does, so that idle time at either end shows; `time` is the axis.
    Bars with `critical` are outlined; those put into the data set "marked" later are framed.
    """
    drawn = _drawn(bars, rows, clock, style)
    talks = bool((drawn["lane"] == "comm").any())
    thick, thin = (_Bar(17, -4), _Bar(6, 10)) if talks else (_Bar(22, 0), None)
    first, last = (0.0, float(drawn["end"].max())) if window is None else (window[0] / clock.size, window[1] / clock.size)
    at = _axes(rows, time, [first, last])
    shape: dict[str, Any] = {"height": thick.height, "yOffset": thick.below, "clip": True}
    coloured, params = _coloured(at, style, drawn), [_ZOOM]
    compute = view(
        "bar", "bars", coloured | {"strokeWidth": where(_NOT_THIN, 0.8)}, _only("datum.lane == 'compute'"),
        stroke=style.background, **shape,
    )  # fmt: skip
    if "rank" in drawn:
        compute, click = chosen_in(compute)
        params.insert(0, click)
    views = [view("bar", "tracks", at, color=style.faint, **shape) | {"name": "tracks"}, compute]
    if thin:
        talk = _only("datum.lane == 'comm'")
        views.append(view("bar", "bars", coloured, talk, height=thin.height, yOffset=thin.below, clip=True))
    if drawn["critical"].any():
        outline: dict[str, Any] = {"filled": False, "stroke": style.text, "tooltip": None, "aria": False, **shape}
        views.append(view("bar", "bars", at | {"strokeWidth": where(_NOT_THIN, 1.6)}, _only("datum.critical"), **outline))
    views += [_labels(at["y"], thick, style), _marked(at, clock, style)]
    data: dict[str, Rows] = {
        "tracks": [{"row": row.key, "start": first, "end": last} for row in rows if not row.heading],
        "bars": records(drawn),
        "marked": nothing("row", "start_ns", "end_ns"),
    }
    return layered(views, data, (32 if talks else 30) * len(rows), *params)


def overview(bars: pd.DataFrame, rows: list[Row], clock: Unit, style: Look) -> Any:
    """The whole step at a glance: how busy each row is in each small part of it. A part can be brushed, as `window`.

    Rows are put together where there are more than 12 of them.
    """
    work = bars[bars["lane"] == "compute"]
    keys = [row.key for row in rows if not row.heading]
    band = -(-len(keys) // 12)
    edges = np.linspace(0.0, bars["end_ns"].max(), _BINS + 1)
    busy = np.zeros((len(keys), _BINS))
    for i, key in enumerate(keys):
        mine = work[work["row"] == key].sort_values("start_ns")
        knots = mine[["start_ns", "end_ns"]].to_numpy(dtype="float64").ravel()
        spent = np.repeat(np.cumsum((mine["end_ns"] - mine["start_ns"]).to_numpy(dtype="float64")), 2)
        spent[::2] = np.concatenate(([0.0], spent[1:-1:2])) if len(spent) else spent
        busy[i] = np.diff(np.interp(edges, knots, spent)) / np.diff(edges) if len(knots) else 0.0
    bands = [busy[i : i + band].mean(axis=0) for i in range(0, len(keys), band)]
    cells = pd.DataFrame(
        {
            "band": np.repeat(np.arange(len(bands)), _BINS),
            "start": np.tile(edges[:-1], len(bands)) / clock.size,
            "end": np.tile(edges[1:], len(bands)) / clock.size,
            "busy": np.concatenate(bands),
        }
    )
    seen = alt.BrushConfig(fill=style.background, fillOpacity=0.4, stroke=style.text, strokeWidth=2)
    brush = alt.selection_interval(name="window", encodings=["x"], mark=seen)
    axis = alt.Axis(title=style.say("drag here to choose what is drawn beneath ({unit})", unit=clock.name))
    cell = alt.Chart(cells[cells["busy"] > 0]).mark_rect(color=style.blue)
    return alt.layer(
        cell.encode(
            x=alt.X("start:Q", axis=axis, scale=alt.Scale(nice=False)),
            x2="end:Q",
            y=alt.Y("band:O", axis=None),
            opacity=alt.Opacity("busy:Q", scale=alt.Scale(domain=[0, 1], range=[0.1, 1]), legend=None),
            tooltip=[alt.Tooltip("busy:Q", title=style.say("busy"), format=".0%")],
        ).add_params(brush)
    ).properties(height=6 * max(6, len(bands)))


def _drawn(bars: pd.DataFrame, rows: list[Row], clock: Unit, style: Look) -> pd.DataFrame:
    """What the marks read: times in the clock's unit, names in words."""
    named, labels = lanes(style.say), {row.key: row.label for row in rows}
    owned = bars["microbatch"] >= 0
    drawn = pd.DataFrame(
        {
            "row": bars["row"],
            "who": bars["row"].map(labels),
            "start": bars["start_ns"] / clock.size,
            "end": bars["end_ns"] / clock.size,
            "duration": (bars["end_ns"] - bars["start_ns"]) / clock.size,
            "what": bars["kind"].map(lane).map(named),
            "lane": bars["lane"],
            "kind": bars["kind"],
            "microbatch": bars["microbatch"].astype("str").where(owned, style.say("none")),
            "chunk": bars["chunk"],
            "turn": _turns(bars["row"], bars["chunk"]),
            "label": (bars["kind"] + bars["microbatch"].astype("str").where(owned, "")).where(bars["lane"] == "compute", ""),
            "critical": bars["critical"],
        }
    )
    if "cpu_ns" in bars:
        drawn["cpu"] = bars["cpu_ns"] / clock.size
    if "rank" in bars:
        drawn["rank"], drawn["opaque"] = bars["rank"], bars["opaque"].fillna(1.0)
    return drawn


def _axes(rows: list[Row], time: Spec, ends: list[float]) -> dict[str, Spec]:
    """Where a bar is: its ends on the axis of time, and its row."""
    keys, labels = [row.key for row in rows], {row.key: row.label for row in rows}
    named = {"labelExpr": f"{json.dumps(labels, ensure_ascii=False)}[datum.value]"}
    return {
        "x": channel("start:Q", axis=time, scale={"nice": False, "domain": ends}),
        "x2": until("end"),
        "y": channel("row:N", sort=keys, title=None, scale={"domain": keys}, axis=named),
    }


def _only(test: str) -> Spec:
    return {"filter": test}


def _coloured(at: dict[str, Spec], style: Look, drawn: pd.DataFrame) -> dict[str, Any]:
    called = columns(style.say)
    tooltip = [channel("who:N", title=called["row"])]
    tooltip += [channel(f"{c}:N", title=called[c]) for c in ("kind", "microbatch", "chunk")]
    tooltip += [channel(f"{c}:Q", title=called[c], format=",.4~r") for c in ("start", "end", "duration", "cpu") if c in drawn]
    pale = {"opacity": channel("opaque:Q", scale=None)} if "rank" in drawn else {}
    present = list(drawn["what"].unique())
    return {
        **at,
        **pale,
        "color": channel("what:N", scale=scale_of(style.lane, present, lanes(style.say))),
        "fillOpacity": channel("turn:O", scale={"domain": list(range(8)), "range": _PALER}, legend=None),
        "tooltip": tooltip,
    }


def _labels(y: Spec, thick: _Bar, style: Look) -> Spec:
    middle = {"calculate": "(datum.start + datum.end) / 2", "as": "middle"}
    encoding = {"x": channel("middle:Q"), "y": y, "text": channel("label:N"), "opacity": where(_HAS_ROOM, 1)}
    written: dict[str, Any] = {"fontSize": 11, "fontWeight": 600, "color": style.on_colour, "dy": thick.below, "tooltip": None}
    return view("text", "bars", encoding, _only("datum.label != ''"), middle, clip=True, **written)


def _marked(at: dict[str, Spec], clock: Unit, style: Look) -> Spec:
    """A strong frame around what the page points at."""
    start = {"calculate": f"datum.start_ns / {clock.size}", "as": "start"}
    end = {"calculate": f"datum.end_ns / {clock.size}", "as": "end"}
    frame: dict[str, Any] = {"stroke": style.text, "strokeWidth": 3.5, "height": 29, "cornerRadius": 3, "clip": True}
    return view(
        "bar", "marked", at, _only("isValid(datum.row)"), start, end, filled=False, tooltip=None, aria=False, **frame
    )  # fmt: skip


def _turns(rows: pd.Series[Any], chunks: pd.Series[int]) -> pd.Series[int]:
    """0 for the first of a row's chunks, 1 for the second, and so on; 0 also for what belongs to no chunk."""
    return chunks.where(chunks >= 0).groupby(rows).rank("dense").fillna(1).astype("int64") - 1
