"""What passed the door in one step: by axis and collective, and by rank."""

from __future__ import annotations

from typing import Literal

import altair as alt
import pandas as pd

from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import Look
from pages.charts.units import byte_unit, in_bytes, percent, plural

Measure = Literal["wire", "payload"]

_DOES: dict[Measure, str] = {"wire": "sends", "payload": "hands over"}
_READING: dict[Measure, str] = {
    "wire": "Wire bytes are what a rank would send under the ring algorithm; a receive sends nothing, so it has no bar.",
    "payload": "Payload bytes are the size of the tensor that a rank hands over; what is sent counts again where it is received.",
}


def kinds(traffic: pd.DataFrame, ranks: int, measure: Measure, style: Look) -> Drawing:
    """Bars by axis, collective and phase: the mean over all `ranks`."""
    rows = _by_kind(traffic, ranks, measure)
    unit = byte_unit(rows["bytes"].max() if len(rows) else 0)
    rows["amount"] = rows["bytes"] / unit.size
    y = alt.Y("name:N", sort=rows["name"].tolist(), title=None)
    # Room at the right for the text that follows the longest bar.
    x = alt.X("amount:Q", scale=alt.Scale(domain=[0, 1.45 * rows["amount"].max() if len(rows) else 1]))
    bars = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=x.title(f"mean {measure} bytes of a rank in one step ({unit.name})"),
            y=y,
            color=alt.Color("axis:N", scale=colours(style.axis, list(rows["axis"]))),
            tooltip=[
                alt.Tooltip("axis:N"),
                alt.Tooltip("collective:N"),
                alt.Tooltip("phase:N"),
                alt.Tooltip("bytes:Q", title=f"{measure} bytes, mean of the ranks", format=",.6~r"),
                alt.Tooltip("calls:Q", title="calls, mean of the ranks", format=",.6~r"),
            ],
        )
    )
    words = alt.Chart(rows).mark_text(align="left", dx=6, fontSize=12, color=style.text).encode(x=x, y=y, text="said:N")
    title = _finding(rows, measure)
    return Drawing(
        subject="Traffic by axis and collective",
        title=title,
        reading=f"Each bar is one kind of call, for one purpose: the mean over all ranks. {_READING[measure]}",
        spec=finish((bars + words).properties(height=max(60, 30 * len(rows))), style, title),
        table=traffic.drop(columns="source").reset_index(drop=True),
    )


def by_rank(traffic: pd.DataFrame, ranks: int, measure: Measure, style: Look) -> Drawing:
    """Stacked bars: what each rank sends (or hands over) along each axis."""
    column = f"{measure}_bytes"
    rows = traffic.groupby(["rank", "axis"], as_index=False)[[column, "calls"]].sum().rename(columns={column: "bytes"})
    totals = rows.groupby("rank")["bytes"].sum().reindex(range(ranks), fill_value=0)
    unit = byte_unit(totals.max())
    rows["amount"] = rows["bytes"] / unit.size
    chart = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=alt.X("rank:O", title="rank", axis=alt.Axis(labelAngle=0), scale=alt.Scale(domain=list(range(ranks)))),
            y=alt.Y("amount:Q", title=f"{measure} bytes in one step ({unit.name})", axis=alt.Axis(tickCount=4)),
            color=alt.Color("axis:N", scale=colours(style.axis, list(rows["axis"]))),
            tooltip=[
                alt.Tooltip("rank:O"),
                alt.Tooltip("axis:N"),
                alt.Tooltip("bytes:Q", title=f"{measure} bytes", format=","),
                alt.Tooltip("calls:Q", format=","),
            ],
        )
        .properties(height=180)
    )
    most, least = totals.idxmax(), totals.idxmin()
    title = f"Rank {most} {_DOES[measure]} most: {in_bytes(totals.max())} in a step"
    title += f", against {in_bytes(totals.min())} on rank {least}"
    if totals.min() == totals.max():
        title = f"Every rank {_DOES[measure]} the same: {in_bytes(totals.max())} in a step"
    wide = rows.pivot_table(index="rank", columns="axis", values="bytes", aggfunc="sum", fill_value=0)
    return Drawing(
        subject="Traffic of every rank",
        title=title,
        reading=f"Each bar is one rank: the {measure} bytes of one step, by the axis of the mesh along which they go.",
        spec=finish(chart, style, title),
        table=wide.reset_index().rename_axis(columns=None),
    )


def _by_kind(traffic: pd.DataFrame, ranks: int, measure: Measure) -> pd.DataFrame:
    """One row for each axis, collective and phase that has bytes: their mean over the ranks, and it in words."""
    rows = traffic.groupby(["axis", "collective", "phase"], as_index=False)[["calls", f"{measure}_bytes"]].sum()
    rows = rows.rename(columns={f"{measure}_bytes": "bytes"})
    rows[["bytes", "calls"]] = rows[["bytes", "calls"]] / ranks
    rows = rows[rows["bytes"] > 0].sort_values(["axis", "bytes"], ascending=[False, False])
    rows["name"] = rows["axis"] + " " + rows["collective"] + ", " + rows["phase"]
    rows["said"] = [f"{in_bytes(size)} in {_calls(calls)}" for size, calls in zip(rows["bytes"], rows["calls"], strict=True)]
    return rows


def _calls(mean: float) -> str:
    """ "22 calls", "0.5 calls": a mean over ranks need not be whole."""
    return plural(int(mean), "call") if mean == int(mean) else f"{mean:,.1f} calls"


def _finding(rows: pd.DataFrame, measure: Measure) -> str:
    total = rows["bytes"].sum()
    if not total:
        return "Nothing passes between ranks"
    axes = rows.groupby("axis")["bytes"].sum()
    largest = axes.idxmax()
    return f"{largest} carries {percent(axes.max() / total)} of the {in_bytes(total)} that a rank {_DOES[measure]} in a step"
