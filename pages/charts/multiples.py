"""Small charts that stand side by side and share their scales, so that a longer bar is more."""

from __future__ import annotations

import altair as alt
import pandas as pd

from engine.tables import CATEGORIES, KV_CACHE
from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import Look
from pages.charts.names import categories
from pages.charts.units import byte_unit, in_bytes, percent

_ORDER = (*CATEGORIES, KV_CACHE)
_HEADROOM = 1.12  # above the highest bar, for its number
_MOST_BARS = 64  # of ranks: beyond, one rank stands for its stage


def memory(peak: pd.DataFrame, highest: int, style: Look) -> Drawing:
    """Each rank's peak by category, on a scale up to `highest` bytes."""
    say = style.say
    ranks, what = peak["rank"].nunique(), "rank"
    if ranks > _MOST_BARS:
        peak = peak[(peak["dp"] == 0) & (peak["tp"] == 0)]
        what = "pp"
    unit = byte_unit(highest)
    named = categories(say)
    rows = peak[["rank", "pp", "category", "bytes"]].assign(
        amount=peak["bytes"] / unit.size, order=peak["category"].map(_ORDER.index), said=peak["category"].map(named)
    )
    totals = rows.groupby("rank")["bytes"].sum()
    axis_title = say("rank") if what == "rank" else say("stage")
    chart = (
        alt.Chart(rows[rows["bytes"] > 0])
        .mark_bar(stroke=style.background, strokeWidth=0.5)
        .encode(
            x=alt.X(f"{what}:O", title=axis_title, axis=alt.Axis(labelAngle=0)),
            y=alt.Y(
                "amount:Q",
                title=say("peak memory ({unit})", unit=unit.name),
                scale=alt.Scale(domain=[0, highest / unit.size * _HEADROOM]),
                axis=alt.Axis(tickCount=5),
            ),
            color=alt.Color("said:N", scale=colours(style.category, list(rows["category"]), named), legend=alt.Legend(columns=3)),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("rank:O", title=say("rank")),
                alt.Tooltip("pp:O", title=say("stage")),
                alt.Tooltip("said:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
        .properties(height=220)
    )
    fullest = int(totals.index[int(totals.argmax())])
    title = say("{size} on rank {rank}", size=in_bytes(int(totals.max())), rank=fullest)
    return Drawing(
        subject=say("Peak memory"),
        title=title,
        reading=say("One bar a rank at its fullest instant; all columns share one scale."),
        spec=finish(chart, style, title),
        table=rows.pivot_table(index=["rank", "pp"], columns="category", values="bytes", aggfunc="sum")
        .reset_index()
        .rename_axis(columns=None),
    )


def traffic(table: pd.DataFrame, ranks: int, highest: float, style: Look) -> Drawing:
    """Wire bytes of a rank in a step by axis and collective, the mean over all, on a scale up to `highest` bytes."""
    say = style.say
    rows = by_collective(table, ranks)
    unit = byte_unit(highest)
    rows["amount"] = rows["bytes"] / unit.size
    rows["name"] = rows["axis"] + " " + rows["collective"]
    names = rows.sort_values(["axis", "bytes"], ascending=[False, False])["name"].tolist()
    chart = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=alt.X(
                "amount:Q",
                title=say("wire bytes of a rank in a step ({unit})", unit=unit.name),
                scale=alt.Scale(domain=[0, max(highest, 1) / unit.size * _HEADROOM]),
                axis=alt.Axis(tickCount=4),
            ),
            y=alt.Y("name:N", sort=names, title=None),
            color=alt.Color("axis:N", scale=colours(style.axis, list(rows["axis"])), legend=None),
            tooltip=[
                alt.Tooltip("axis:N", title=say("axis")),
                alt.Tooltip("collective:N", title=say("collective")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=",.6~r"),
            ],
        )
        .properties(height=max(60, 28 * len(rows)))
    )
    total = rows["bytes"].sum()
    title = say("{size} sent by a rank in a step", size=in_bytes(total)) if total else say("Nothing passes between ranks")
    return Drawing(
        subject=say("Traffic"),
        title=title,
        reading=say("Wire bytes under the ring algorithm, the mean over all ranks; all columns share one scale."),
        spec=finish(chart, style, title),
        table=rows[["axis", "collective", "bytes"]].reset_index(drop=True),
    )


def by_collective(table: pd.DataFrame, ranks: int) -> pd.DataFrame:
    """axis, collective, bytes: mean wire bytes of a rank; what sends nothing is left out."""
    rows = table.groupby(["axis", "collective"], as_index=False)["wire_bytes"].sum()
    rows["bytes"] = rows["wire_bytes"] / ranks
    return rows[rows["bytes"] > 0].drop(columns="wire_bytes").reset_index(drop=True)


def sweep_memory(memory: pd.DataFrame, lever: str, here: str, style: Look) -> Drawing:
    """The fullest rank's peak for each value of a lever. `memory`: value, category, bytes; `here` is the value now."""
    say = style.say
    totals = memory.groupby("value", sort=False)["bytes"].sum()
    unit = byte_unit(int(totals.max()))
    named = categories(say)
    rows = memory.assign(
        amount=memory["bytes"] / unit.size, order=memory["category"].map(_ORDER.index), said=memory["category"].map(named)
    )
    chart = (
        alt.Chart(rows[rows["bytes"] > 0])
        .mark_bar(stroke=style.background, strokeWidth=0.5)
        .encode(
            x=_values(totals, lever),
            y=alt.Y("amount:Q", title=say("peak of the fullest rank ({unit})", unit=unit.name), axis=alt.Axis(tickCount=5)),
            color=alt.Color("said:N", scale=colours(style.category, list(rows["category"]), named), legend=alt.Legend(columns=3)),
            order=alt.Order("order:Q"),
            opacity=alt.when(alt.datum.value == here).then(alt.value(1.0)).otherwise(alt.value(0.72)),
            tooltip=[
                alt.Tooltip("value:N", title=lever),
                alt.Tooltip("said:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
        .properties(height=220)
    )
    least = totals.idxmin()
    title = say("Least with {lever} {value}: {size}", lever=lever, value=least, size=in_bytes(int(totals.min())))
    return Drawing(
        subject=say("Peak memory over {lever}", lever=lever),
        title=title,
        reading=say("One bar a value of the lever, everything else held; the value now is drawn full, the others paler."),
        spec=finish(chart, style, title),
        table=rows.pivot_table(index="value", columns="category", values="bytes", sort=False)
        .reset_index()
        .rename_axis(columns=None),
    )


def sweep_traffic(figures: pd.DataFrame, lever: str, here: str, style: Look) -> Drawing:
    """Wire bytes of a rank in a step for each value of a lever."""
    say = style.say
    unit = byte_unit(figures["wire_bytes_per_rank"].max())
    rows = figures.assign(amount=figures["wire_bytes_per_rank"] / unit.size)
    title = say(
        "From {least} to {most} a rank",
        least=in_bytes(rows["wire_bytes_per_rank"].min()),
        most=in_bytes(rows["wire_bytes_per_rank"].max()),
    )
    y_title = say("wire bytes of a rank in a step ({unit})", unit=unit.name)
    spec = finish(_bars(rows, "amount", y_title, lever, here, style.green, ",.4~r"), style, title)
    return Drawing(
        subject=say("Traffic over {lever}", lever=lever),
        title=title,
        reading=say("The mean over all ranks, under the ring algorithm."),
        spec=spec,
        table=figures[["value", "wire_bytes_per_rank"]],
    )


def sweep_bubble(figures: pd.DataFrame, lever: str, here: str, style: Look) -> Drawing:
    """The textbook bubble for each value of a lever."""
    say = style.say
    least, most = percent(float(figures["bubble"].min())), percent(float(figures["bubble"].max()))
    if least == most:
        title = say("{share} of the pipeline's time with every value", share=most)
    else:
        title = say("From {least} to {most} of the pipeline's time", least=least, most=most)
    spec = finish(_bars(figures, "bubble", say("bubble"), lever, here, style.orange, ".1%"), style, title)
    return Drawing(
        subject=say("Bubble over {lever}", lever=lever),
        title=title,
        reading=say("In textbook times, a share of total time: 1 − busy ÷ (pp × makespan)."),
        spec=spec,
        table=figures[["value", "bubble"]],
    )


def _bars(rows: pd.DataFrame, column: str, y_title: str, lever: str, here: str, colour: str, format: str) -> alt.Chart:
    return (
        alt.Chart(rows)
        .mark_bar(color=colour)
        .encode(
            x=_values(rows.set_index("value")[column], lever),
            y=alt.Y(f"{column}:Q", title=y_title, axis=alt.Axis(tickCount=5, format=format)),
            opacity=alt.when(alt.datum.value == here).then(alt.value(1.0)).otherwise(alt.value(0.72)),
            tooltip=[alt.Tooltip("value:N", title=lever), alt.Tooltip(f"{column}:Q", title=y_title, format=format)],
        )
        .properties(height=220)
    )


def _values(by_value: pd.Series[int], lever: str) -> alt.X:
    """The lever's values, in the order in which they were tried."""
    return alt.X("value:N", sort=by_value.index.tolist(), title=lever, axis=alt.Axis(labelAngle=0))
