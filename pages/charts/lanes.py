"""Rows of bars along one time axis. Every timeline is drawn with it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from pages.charts.drawing import Rows, coloured, nothing, rank_chooser, records
from pages.charts.look import Look, lane
from pages.charts.names import columns, lanes
from pages.charts.template import Template, filled, template
from pages.charts.units import Unit

BARS = ("row", "lane", "kind", "chunk", "microbatch", "start_ns", "end_ns", "critical")  # columns that `chart` needs
# A label is shown when its bar is wide enough: about 7 pixels a letter, and a margin. That changes with the zoom.
_HAS_ROOM = "scale('x', datum.end) - scale('x', datum.start) > 7 * length(datum.label) + 4"
# Bars that are hardly wider than their outline have none: it would cover them.
_NOT_THIN = "scale('x', datum.end) - scale('x', datum.start) > 4"
_PALER = [1.0, 0.7, 0.85, 0.6, 0.9, 0.65, 0.8, 0.55]  # opacity of every other chunk of a stage, so that neighbours differ
_TEMPLATES = 64  # templates that are cached: a few for every language and theme
_BINS = 240  # of time, in an overview


class Row(NamedTuple):
    """`key`: bars refer to their row by it. `label` is shown. A heading has no bars."""

    key: str
    label: str
    heading: bool = False


class _Bar(NamedTuple):
    """Height of a bar, and its offset below the middle of its row, in pixels."""

    height: int
    below: int


def chart(
    bars: pd.DataFrame, rows: list[Row], clock: Unit, time: str, style: Look, window: tuple[float, float] | None = None
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Bars on pale tracks. A bar has text if it is wide enough. `time` is the title of the time axis.

    `bars` has the columns of `BARS`, and may have cpu_ns. If it has rank and opaque, a click on a bar chooses its rank. The track
    of a row starts at 0 and ends at the end of `window` or of the last bar, so that idle time at both ends is visible. Bars with
    `critical` are outlined. Bars that a page puts into the data set "marked" are framed. Returns the chart and its data sets.
    """
    drawn = _drawn(bars, rows, clock, style)
    talks = bool((drawn["lane"] == "comm").any())
    first, last = (0.0, float(drawn["end"].max())) if window is None else (window[0] / clock.size, window[1] / clock.size)
    keys, labels = [row.key for row in rows], {row.key: row.label for row in rows}
    shown, hues = coloured(style.lane, drawn["what"].unique(), lanes(style.say))
    spec = filled(
        _template(style, clock.size, talks, bool(drawn["critical"].any()), "rank" in drawn, "cpu" in drawn),
        time=time,
        first=first,
        last=last,
        keys=keys,
        labels=f"{json.dumps(labels, ensure_ascii=False)}[datum.value]",
        shown=shown,
        hues=hues,
    )
    spec["height"] = (32 if talks else 30) * len(rows)
    data = {
        "tracks": [{"row": row.key, "start": first, "end": last} for row in rows if not row.heading],
        "bars": records(drawn),
        "marked": nothing("row", "start_ns", "end_ns"),
    }
    return spec, data


@lru_cache(_TEMPLATES)
def _template(style: Look, tick: float, talks: bool, critical: bool, by_rank: bool, cpu: bool) -> Template:
    """Its blanks are the title and the ends of the time axis, the rows with their labels, and the legend.

    `tick`: the axis's unit of time, in the unit of the bars. In the textbook's units it is 1, and ticks are whole numbers.
    """
    named, ranked = alt.Chart(alt.NamedData("bars")), [rank_chooser()] if by_rank else []
    thick, thin = (_Bar(17, -4), _Bar(6, 10)) if talks else (_Bar(22, 0), None)
    # Beneath long names of rows the plot can be narrower than its title, which begins under the names then.
    axis = alt.Axis(title="$time", titleAnchor="end", tickMinStep=1 if tick == 1 else alt.Undefined)
    x, end = alt.X("start:Q", axis=axis, scale=alt.Scale(nice=False, domain=["$first", "$last"])), "end:Q"
    y = alt.Y("row:N", sort=["$keys"], title=None, scale=alt.Scale(domain=["$keys"]), axis=alt.Axis(labelExpr="$labels"))
    at: dict[str, Any] = {"height": thick.height, "yOffset": thick.below, "clip": True}
    every = _coloured(named, x, y, style, by_rank, cpu)
    compute = every.transform_filter("datum.lane == 'compute'").mark_bar(stroke=style.background, **at)
    layers: list[Any] = [
        alt.Chart(alt.NamedData("tracks")).mark_bar(color=style.faint, **at).encode(x=x, x2=end, y=y),
        compute.encode(strokeWidth=_line(0.8)).add_params(*ranked),
    ]
    if thin:
        layers.append(every.transform_filter("datum.lane == 'comm'").mark_bar(height=thin.height, yOffset=thin.below, clip=True))
    if critical:
        path = named.transform_filter("datum.critical").encode(x=x, x2=end, y=y)
        outline = path.mark_bar(filled=False, stroke=style.text, tooltip=None, aria=False, **at)
        layers.append(outline.encode(strokeWidth=_line(1.6)))
    layers += [_labels(named, y, thick, style), _marked(x, y, tick, style)]
    zoom = alt.selection_interval(name="zoom", bind="scales", encodings=["x"], zoom="wheel![event.ctrlKey]")
    return template(alt.layer(*layers).add_params(zoom))


def overview(bars: pd.DataFrame, rows: list[Row], clock: Unit, style: Look) -> Any:
    """The whole step as a strip: how busy each row is in each short interval. The reader can brush an interval, the `window`.

    If there are more than 12 rows, neighbouring rows are drawn as one.
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
    axis = alt.Axis(title=style.say("drag here to select the range shown below ({unit})", unit=clock.name))
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
    """The data of the marks: times in the clock's unit, names in words."""
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
            "turn": _chunk_positions(bars["row"], bars["chunk"]),
            "label": (bars["kind"] + bars["microbatch"].astype("str").where(owned, "")).where(bars["lane"] == "compute", ""),
            "critical": bars["critical"],
        }
    )
    if "cpu_ns" in bars:
        drawn["cpu"] = bars["cpu_ns"] / clock.size
    if "rank" in bars:
        drawn["rank"], drawn["opaque"] = bars["rank"], bars["opaque"].fillna(1.0)
    return drawn


def _coloured(base: Any, x: Any, y: Any, style: Look, by_rank: bool, cpu: bool) -> Any:
    called = columns(style.say)
    tooltip = [alt.Tooltip("who:N", title=called["row"])]
    tooltip += [alt.Tooltip(f"{c}:N", title=called[c]) for c in ("kind", "microbatch", "chunk")]
    times = ("start", "end", "duration", *(["cpu"] if cpu else []))
    tooltip += [alt.Tooltip(f"{column}:Q", title=called[column], format=",.4~r") for column in times]
    if by_rank:
        base = base.encode(opacity=alt.Opacity("opaque:Q", scale=None))
    return base.encode(
        x=x,
        x2="end:Q",
        y=y,
        color=alt.Color("what:N", scale=alt.Scale(domain=["$shown"], range=["$hues"])),
        fillOpacity=alt.FillOpacity("turn:O", scale=alt.Scale(domain=list(range(8)), range=_PALER), legend=None),
        tooltip=tooltip,
    )


def _line(width: float) -> Any:
    return alt.when(_NOT_THIN).then(alt.value(width)).otherwise(alt.value(0))


def _labels(base: Any, y: Any, thick: _Bar, style: Look) -> Any:
    return (
        base.transform_filter("datum.label != ''")
        .transform_calculate(middle="(datum.start + datum.end) / 2")
        .mark_text(fontSize=11, fontWeight=600, color=style.on_colour, dy=thick.below, clip=True, tooltip=None)
        .encode(x="middle:Q", y=y, text="label:N", opacity=alt.when(_HAS_ROOM).then(alt.value(1)).otherwise(alt.value(0)))
    )


def _marked(x: Any, y: Any, tick: float, style: Look) -> Any:
    """A strong frame around the bars that the page points at."""
    return (
        alt.Chart(alt.NamedData(name="marked"))
        .transform_filter("isValid(datum.row)")
        .transform_calculate(start=f"datum.start_ns / {tick}", end=f"datum.end_ns / {tick}")
        .mark_bar(
            filled=False, stroke=style.text, strokeWidth=3.5, height=29, cornerRadius=3, clip=True, tooltip=None, aria=False
        )
        .encode(x=x, x2="end:Q", y=y)
    )


def _chunk_positions(rows: pd.Series[Any], chunks: pd.Series[int]) -> pd.Series[int]:
    """0 for the first chunk of a row, 1 for the second, and so on. Bars without a chunk have 0."""
    return chunks.where(chunks >= 0).groupby(rows).rank("dense").fillna(1).astype("int64") - 1
