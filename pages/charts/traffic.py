"""Communication in one step by rank. `pages.charts.beside` has it by axis and collective."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import altair as alt
import pandas as pd

from engine.topology import AXES
from pages.charts.drawing import Drawing, colours, finish, rank_chooser
from pages.charts.look import MAX_BARS, Look
from pages.charts.names import measures
from pages.charts.roles import Roles, opacity, outline, role_name
from pages.charts.thinning import stretches
from pages.charts.units import byte_unit, in_bytes, ranges
from pages.charts.words import Words

_MOST_RANKS = MAX_BARS // len(AXES)  # that have bars
Measure = Literal["wire", "payload"]


def meaning(measure: Measure, say: Words) -> str:
    """A sentence on what the measure counts."""
    if measure == "wire":
        return say("Wire bytes are what a rank would send under the ring algorithm; a receive sends nothing, so it has no bar.")
    return say(
        "Payload bytes are the size of the tensors that a rank communicates; a message counts at its sender and at its receiver."
    )


def by_rank(traffic: pd.DataFrame, ranks: int, measure: Measure, style: Look, roles: Roles | None = None) -> Drawing:
    """Stacked bars: bytes that each rank sends (or hands over) along each axis. With `roles`, the chosen rank is marked.

    If there are more than `_MOST_RANKS`, only ranks of the table are drawn, and if these are still too many, every n-th.
    """
    say, counted = style.say, measures(style.say)[measure]
    column = f"{measure}_bytes"
    every = traffic.groupby(["rank", "axis"], as_index=False)[[column, "calls"]].sum().rename(columns={column: "bytes"})
    listed = range(ranks) if ranks <= _MOST_RANKS else sorted(set(traffic["rank"]))
    sent = every.groupby("rank")["bytes"].sum().reindex(listed, fill_value=0)
    totals = sent.iloc[stretches(len(sent), _MOST_RANKS)]
    rows = every[every["rank"].isin(totals.index)]
    unit = byte_unit(sent.max())
    rows = rows.assign(amount=rows["bytes"] / unit.size, opaque=[opacity(rank, roles) for rank in rows["rank"]])
    drawn = totals.index.tolist()
    x = alt.X("rank:O", title=say("rank"), axis=_rank_axis(drawn, say, roles), scale=alt.Scale(domain=drawn))
    chart = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=x,
            y=alt.Y(
                "amount:Q",
                title=say("{measure} bytes in one step ({unit})", measure=counted, unit=unit.name),
                axis=alt.Axis(tickCount=4),
            ),
            color=alt.Color("axis:N", scale=colours(style.axis, list(rows["axis"])), legend=alt.Legend(columns=len(AXES))),
            opacity=alt.Opacity("opaque:Q", scale=None),
            tooltip=[
                alt.Tooltip("rank:O", title=say("rank")),
                alt.Tooltip("axis:N", title=say("axis")),
                alt.Tooltip("bytes:Q", title=say("{measure} bytes", measure=counted), format=","),
                alt.Tooltip("calls:Q", title=say("calls"), format=","),
            ],
        )
        .add_params(rank_chooser())
    )
    if roles:
        tops = pd.DataFrame({"rank": totals.index, "amount": totals / unit.size})
        tops["outline"] = [outline(rank, roles) for rank in tops["rank"]]
        chart += (
            alt.Chart(tops[tops["outline"] > 0])
            .mark_bar(fillOpacity=0, stroke=style.text)
            .encode(x=x, y="amount:Q", strokeWidth=alt.StrokeWidth("outline:Q", scale=None))
        )
    title = _most(sent, measure, say)
    reading = say(
        "Each bar is one rank: the {measure} bytes of one step, by the axis of the mesh along which they go.", measure=counted
    )
    if len(drawn) < ranks:
        reading = say.together(reading, say("{drawn} of {count} ranks are drawn.", count=f"{ranks:,}", drawn=f"{len(drawn):,}"))
    wide = every.pivot_table(index="rank", columns="axis", values="bytes", aggfunc="sum", fill_value=0)
    return Drawing(
        subject=say("Traffic of every rank"),
        title=title,
        reading=reading,
        spec=finish(chart.properties(height=180), style, title),
        table=wide.reset_index().rename_axis(columns=None),
    )


def _rank_axis(ranks: Sequence[int], say: Words, roles: Roles | None) -> alt.Axis:
    """An axis with labels of two lines: the rank, and its relation to the chosen rank."""
    if not roles:
        return alt.Axis(labelAngle=0)
    lines = {str(rank): [str(rank), role_name(roles[rank], say)] for rank in ranks}
    return alt.Axis(labelAngle=0, labelExpr=f"{json.dumps(lines, ensure_ascii=False)}[datum.label]")


def _most(totals: pd.Series[int], measure: Measure, say: Words) -> str:
    """The title. Ranks whose numbers are written alike are named together."""
    written = totals.map(in_bytes)
    most, least = in_bytes(totals.max()), in_bytes(totals.min())
    if totals.min() == totals.max():
        if measure == "wire":
            return say("Every rank sends the same: {most} in a step", most=most)
        return say("Every rank has the same payload: {most} in a step", most=most)
    if most == least:
        return say("All ranks send nearly the same: {most} in a step", most=most)
    first, last = ([int(rank) for rank in totals.index[written == end]] for end in (most, least))
    others = say.plural("rank {ranks}", "ranks {ranks}", len(last), ranks=ranges(last))
    found = {"ranks": ranges(first), "most": most, "least": least, "others": others}
    if measure == "wire":
        return say.plural(
            "Rank {ranks} sends most: {most} in a step, against {least} on {others}",
            "Ranks {ranks} send most: {most} each in a step, against {least} on {others}",
            len(first),
            **found,
        )
    return say.plural(
        "Rank {ranks} has the largest payload: {most} in a step, against {least} on {others}",
        "Ranks {ranks} have the largest payload: {most} each in a step, against {least} on {others}",
        len(first),
        **found,
    )
