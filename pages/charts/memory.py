"""Where the bytes are: the fullest instant of each rank, and one rank over one step."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from engine.tables import CATEGORIES, KV_CACHE
from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import MAX_BARS, Look, lane
from pages.charts.units import Unit, byte_unit, in_bytes, significant, time_unit

_ORDER = (*CATEGORIES, KV_CACHE)  # from the bottom of a stack to its top


def peak(memory_peak: pd.DataFrame, style: Look) -> Drawing:
    """Stacked bars: each rank's composition at the instant of its largest total."""
    rows = memory_peak[["rank", "pp", "dp", "tp", "category", "bytes"]].copy()
    totals = rows.groupby("rank")["bytes"].sum()
    unit = byte_unit(totals.max())
    rows["order"] = rows["category"].map(_ORDER.index)
    rows["amount"] = rows["bytes"] / unit.size
    rows["share"] = rows["bytes"] / rows["rank"].map(totals)

    x = alt.X("rank:O", axis=alt.Axis(title="rank, and its pipeline stage", labelAngle=0, labelExpr=_rank_and_stage(rows)))
    bars = (
        alt.Chart(rows[rows["bytes"] > 0])
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=x,
            y=alt.Y("amount:Q", title=f"memory at the rank's peak ({unit.name})", axis=alt.Axis(tickCount=5)),
            color=alt.Color("category:N", scale=colours(style.category, list(rows["category"]))),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("rank:O"),
                alt.Tooltip("pp:O", title="stage"),
                alt.Tooltip("dp:O", title="replica"),
                alt.Tooltip("tp:O", title="slice"),
                alt.Tooltip("category:N"),
                alt.Tooltip("bytes:Q", format=","),
                alt.Tooltip("share:Q", format=".1%", title="of this rank"),
            ],
        )
    )
    tops = pd.DataFrame({"rank": totals.index, "amount": totals / unit.size})
    sums = (
        alt.Chart(tops.assign(said=tops["amount"].map(significant)))
        .mark_text(dy=-8, fontSize=12, fontWeight=600, color=style.text)
        .encode(x=x, y="amount:Q", text="said:N")
    )
    fullest, least = totals.idxmax(), totals.idxmin()
    title = f"Rank {fullest} is fullest: {in_bytes(totals.max())} at its peak"
    if totals.min() < totals.max():
        title += f", against {in_bytes(totals.min())} on rank {least}"
    return Drawing(
        subject="Memory of every rank",
        title=title,
        reading="Each bar is one rank at the instant when it held most; its parts add up to what the allocator counted.",
        spec=finish((bars + sums).properties(height=300), style, title),
        table=_wide(rows, ["rank", "pp", "dp", "tp"]),
    )


def curve(memory_curve: pd.DataFrame, rank: int, style: Look) -> Drawing:
    """Stacked steps: one rank's composition over a step, and beneath, on the same time axis, what it was doing."""
    mine = memory_curve[memory_curve["rank"] == rank].sort_values("t_ns", kind="stable")
    totals = mine.groupby("t_ns")["bytes"].sum()
    size, clock = byte_unit(totals.max()), time_unit(mine["t_ns"].max())
    rows = pd.DataFrame(
        {
            "time": mine["t_ns"] / clock.size,
            "category": mine["category"],
            "amount": mine["bytes"] / size.size,
            "order": mine["category"].map(_ORDER.index),
        }
    )
    areas = (
        alt.Chart(rows)
        .mark_area(interpolate="step-after")
        .encode(
            x=alt.X("time:Q", title=None, scale=alt.Scale(nice=False), axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("amount:Q", title=f"memory of rank {rank} ({size.name})", axis=alt.Axis(tickCount=5)),
            color=alt.Color("category:N", scale=colours(style.category, list(rows["category"]))),
            order=alt.Order("order:Q"),
        )
    )
    top = totals.idxmax()
    title = f"Rank {rank} peaks at {in_bytes(totals.max())} during {mine.loc[mine['t_ns'] == top, 'action'].iloc[0]}"
    chart = alt.vconcat(
        (areas + _pointer(mine, clock, style)).properties(height=236),
        _strip(mine, clock, style).properties(height=22),
        spacing=4,
    ).resolve_scale(x="shared", color="independent")
    return Drawing(
        subject="Memory over one step",
        title=title,
        reading="Read upwards: what the rank holds at each moment of one step. The strip beneath shows what it was doing then.",
        spec=finish(chart, style, title),
        table=_wide(mine, ["t_ns", "action"]),
    )


def _pointer(mine: pd.DataFrame, clock: Unit, style: Look) -> Any:
    """A line that follows the pointer and tells the exact bytes of every category there."""
    wide = _wide(mine, ["t_ns", "action"])
    wide["time"] = wide["t_ns"] / clock.size
    near = alt.selection_point(name="near", on="pointerover", nearest=True, empty=False, encodings=["x"], clear="pointerout")
    shown = [alt.Tooltip("action:N"), alt.Tooltip("t_ns:Q", title="ns from the step's start", format=",")]
    shown += [alt.Tooltip(f"{c}:Q", title=f"{c} (bytes)", format=",") for c in (*_ORDER, "total") if c in wide]
    return (
        alt.Chart(wide)
        .mark_rule(color=style.text, strokeWidth=1)
        .encode(x="time:Q", tooltip=shown, opacity=alt.when(near).then(alt.value(0.7)).otherwise(alt.value(0)))
        .add_params(near)
    )


def _strip(mine: pd.DataFrame, clock: Unit, style: Look) -> Any:
    """One bar an action, from its first instant in the curve to the next action's."""
    first = mine.loc[mine["action"].ne(mine["action"].shift()), ["t_ns", "action"]]
    words = first["action"].str.split()
    actions = pd.DataFrame(
        {
            "action": first["action"],
            "start": first["t_ns"] / clock.size,
            "end": first["t_ns"].shift(-1, fill_value=mine["t_ns"].max()) / clock.size,
            "what": words.str[0].map(lane),
            "label": words.map(lambda w: w[0] + w[-1] if "microbatch" in w else w[0]),
        }
    )
    actions = actions[actions["end"] > actions["start"]].head(MAX_BARS)
    bars = (
        alt.Chart(actions)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=alt.X("start:Q", title=f"time from the step's start ({clock.name})", scale=alt.Scale(nice=False)),
            x2="end:Q",
            color=alt.Color("what:N", scale=colours(style.lane, list(actions["what"])), legend=alt.Legend(orient="bottom")),
            tooltip=[alt.Tooltip("action:N"), alt.Tooltip("start:Q", format=",.3f"), alt.Tooltip("end:Q", format=",.3f")],
        )
    )
    # Only where there is room: about 7 pixels a letter, of the 500 that the chart has at least.
    width = (actions["end"] - actions["start"]) / actions["end"].max() * 500
    roomy = actions[(width > 7 * actions["label"].str.len() + 4) & (actions["what"] != lane("send"))]
    labels = (
        alt.Chart(roomy.assign(middle=(roomy["start"] + roomy["end"]) / 2))
        .mark_text(fontSize=11, fontWeight=600, color=style.on_colour)
        .encode(x="middle:Q", text="label:N")
    )
    return bars + labels


def _rank_and_stage(rows: pd.DataFrame) -> str:
    """A Vega expression: the rank, and on a second line its stage."""
    stages = dict(zip(rows["rank"], rows["pp"], strict=True))
    names = ", ".join(f"'{rank}': 'stage {stage}'" for rank, stage in stages.items())
    return f"[datum.label, {{{names}}}[datum.label]]"


def _wide(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row for each of `keys`, a column of bytes for each category, and their total."""
    wide = rows.pivot_table(index=keys, columns="category", values="bytes", aggfunc="sum", sort=True)
    wide = wide[[c for c in _ORDER if c in wide]]
    wide["total"] = wide.sum(axis=1)
    return wide.reset_index().rename_axis(columns=None)
