"""Small charts side by side. They share their scales, so that a longer bar is a larger number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape

import altair as alt
import pandas as pd

from engine.tables import CATEGORIES, KV_CACHE
from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import Look, lane
from pages.charts.names import categories, lanes
from pages.charts.neighbours import by_stage
from pages.charts.units import byte_unit, in_bytes, percent, ranges
from pages.charts.words import Words

_ORDER = (*CATEGORIES, KV_CACHE)
_HEADROOM = 1.12  # above the highest bar
_LABEL_ROOM = 1.22  # beside the longest bar, for its number
_MOST_BARS = 64  # one for each rank; if there are more ranks, one for each stage
_BAR_PX = 28

Sends = tuple[tuple[str, str], ...]  # axis and collective


def legend(present: Sequence[str], style: Look) -> str:
    """HTML: one legend of the memory categories, for all columns."""
    named = categories(style.say)
    return _legend({named[code]: style.category[code] for code in _ORDER if code in present})


def lane_legend(kinds: Iterable[str], style: Look) -> str:
    """HTML: the same for the bars of timelines, by their `kind`."""
    named, present = lanes(style.say), {lane(kind) for kind in kinds}
    return _legend({named[code]: colour for code, colour in style.lane.items() if code in present})


def _legend(named: Mapping[str, str]) -> str:
    boxes = "".join(f'<li><i style="--swatch: {colour}"></i>{escape(name)}</li>' for name, colour in named.items())
    return f'<ul class="ss-legend">{boxes}</ul>'


def without_legend(drawing: Drawing) -> Drawing:
    """The drawing without its legend, for columns that are too narrow."""
    layers = [
        layer | {"encoding": layer["encoding"] | {"color": layer["encoding"]["color"] | {"legend": None}}}
        if "scale" in layer.get("encoding", {}).get("color", {})
        else layer
        for layer in drawing.spec["layer"]
    ]
    return replace(drawing, spec={**drawing.spec, "layer": layers})


def memory(peak: pd.DataFrame, highest: int, style: Look, ranks: int = 0) -> Drawing:
    """Each rank's peak by category, on a scale up to `highest` bytes. `ranks`: their number, if not all have rows."""
    say, named = style.say, categories(style.say)
    totals = peak.groupby("rank")["bytes"].sum()
    shown, what, together = peak, "rank", 1
    if max(len(totals), ranks) > _MOST_BARS:
        (shown, together, _), what = by_stage(peak), "pp"
    unit = byte_unit(highest)
    rows = shown[["rank", "pp", "category", "bytes"]].assign(
        amount=shown["bytes"] / unit.size,
        order=shown["category"].map(_ORDER.index),
        category=shown["category"].map(named),
        share=shown["bytes"] / shown["rank"].map(totals),
    )
    chart = (
        alt.Chart(rows[rows["bytes"] > 0])
        .mark_bar(stroke=style.background, strokeWidth=0.5)
        .encode(
            x=alt.X(f"{what}:O", title=say("rank") if what == "rank" else say("stage"), axis=alt.Axis(labelAngle=0)),
            y=alt.Y(
                "amount:Q",
                title=say("peak memory ({unit})", unit=unit.name),
                scale=alt.Scale(domain=[0, highest / unit.size * _HEADROOM], nice=False),
                axis=alt.Axis(tickCount=5),
            ),
            color=alt.Color("category:N", scale=colours(style.category, list(rows["category"]), named), legend=None),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("rank:O", title=say("rank")),
                alt.Tooltip("pp:O", title=say("stage")),
                alt.Tooltip("category:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
                alt.Tooltip("share:Q", title=say("of this rank"), format=".1%"),
            ],
        )
        .properties(height=220)
    )
    fullest = [int(rank) for rank in totals.index[totals == totals.max()]]
    title = say.plural(
        "{size} on rank {ranks}", "{size} on ranks {ranks}", len(fullest), size=in_bytes(int(totals.max())), ranks=ranges(fullest)
    )
    table = peak.pivot_table(index=["rank", "pp"], columns="category", values="bytes", aggfunc="sum")
    table = table[[code for code in _ORDER if code in table]]
    return Drawing(
        subject=say("Peak memory"),
        title=title,
        reading=_each_bar(what, together, say),
        spec=finish(chart, style, title),
        table=table.assign(total=table.sum(axis=1)).reset_index().rename_axis(columns=None),
    )


def _each_bar(what: str, together: int, say: Words) -> str:
    if what == "rank":
        return say("One bar per rank, at its peak.")
    if together == 1:
        return say("One bar per stage, whose ranks are equal, at its peak.")
    return say("One bar for {count} neighbouring stages: the fullest, whose ranks are equal.", count=together)


def traffic(table: pd.DataFrame, ranks: int, highest: float, kinds: Sends, style: Look) -> Drawing:
    """Mean wire bytes of a rank in a step, on a scale up to `highest` bytes. A row for each of `kinds`."""
    say = style.say
    own = by_collective(table, ranks)
    sent = dict(zip(zip(own["axis"], own["collective"], strict=True), own["bytes"], strict=True))
    rows = pd.DataFrame(
        [{"axis": axis, "collective": name, "bytes": float(sent.get((axis, name), 0.0))} for axis, name in kinds],
        columns=["axis", "collective", "bytes"],
    )
    unit = byte_unit(highest)
    rows["amount"] = rows["bytes"] / unit.size
    rows["name"] = rows["axis"] + " " + rows["collective"]
    rows["said"] = [in_bytes(value) if value else "–" for value in rows["bytes"]]
    base = alt.Chart(rows).encode(
        x=alt.X(
            "amount:Q",
            title=say("sent by a rank ({unit})", unit=unit.name),
            scale=alt.Scale(domain=[0, max(highest, 1) / unit.size * 1.36], nice=False),
            axis=alt.Axis(tickCount=4),
        ),
        y=alt.Y("name:N", sort=rows["name"].tolist(), title=None),
        tooltip=[
            alt.Tooltip("axis:N", title=say("axis")),
            alt.Tooltip("collective:N", title=say("collective")),
            alt.Tooltip("bytes:Q", title=say("bytes"), format=",.1~f"),
        ],
    )
    bars = base.mark_bar().encode(color=alt.Color("axis:N", scale=colours(style.axis, list(rows["axis"])), legend=None))
    text = base.mark_text(align="left", dx=4, fontSize=11, color=style.text).encode(text="said:N")
    total = rows["bytes"].sum()
    title = say("{size} a rank and step", size=in_bytes(total)) if total else say("No communication between ranks")
    return Drawing(
        subject=say("Traffic"),
        title=title,
        reading=say("Wire bytes under the ring algorithm, the mean over all ranks."),
        spec=finish((bars + text).properties(height=max(60, _BAR_PX * len(rows))), style, title),
        table=rows[["axis", "collective", "bytes"]].rename(columns={"bytes": "wire_bytes"}),
    )


def by_collective(table: pd.DataFrame, ranks: int) -> pd.DataFrame:
    """axis, collective, bytes: mean wire bytes of a rank. Rows of 0 bytes are left out."""
    rows = table.groupby(["axis", "collective"], as_index=False)["wire_bytes"].sum()
    rows["bytes"] = rows["wire_bytes"] / ranks
    return rows[rows["bytes"] > 0].drop(columns="wire_bytes").reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------------- one lever


def sweep_memory(memory: pd.DataFrame, lever: str, names: Mapping[str, str], here: str, style: Look) -> Drawing:
    """The fullest rank's peak for each value of a lever. `memory`: value, category, bytes.

    `lever` is the name of the lever, `names` has the names of its values, and `here` is the current value.
    """
    say, named = style.say, categories(style.say)
    totals = memory.groupby("value", sort=False)["bytes"].sum()
    unit = byte_unit(int(totals.max()))
    rows = memory.assign(
        amount=memory["bytes"] / unit.size,
        order=memory["category"].map(_ORDER.index),
        category=memory["category"].map(named),
        name=memory["value"].map(names),
        opaque=[1.0 if value == here else 0.62 for value in memory["value"]],
    )
    x_title = say("peak of the fullest rank ({unit})", unit=unit.name)
    bars = (
        alt.Chart(rows[rows["bytes"] > 0])
        .mark_bar(stroke=style.background, strokeWidth=0.5)
        .encode(
            x=_amounts(float(totals.max() / unit.size), x_title),
            y=_values(rows["name"], lever),
            color=alt.Color("category:N", scale=colours(style.category, list(rows["category"]), named), legend=None),
            order=alt.Order("order:Q"),
            opacity=alt.Opacity("opaque:Q", scale=None),
            tooltip=[
                alt.Tooltip("name:N", title=lever),
                alt.Tooltip("category:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
    )
    ends = pd.DataFrame({"name": totals.index.map(names), "amount": totals.to_numpy() / unit.size, "value": totals.index})
    ends["said"] = [in_bytes(int(total)) for total in totals]
    least = str(totals.index[int(totals.argmin())])
    title = say("Least with {value}: {size}", value=names[least], size=in_bytes(int(totals.min())))
    if totals.nunique() == 1:
        title = say("The same for every value: {size}", size=in_bytes(int(totals.min())))
    table = memory.pivot_table(index="value", columns="category", values="bytes", sort=False)
    return Drawing(
        subject=say("Peak memory by {lever}", lever=lever),
        title=title,
        reading=_how_to_read(say),
        spec=finish((bars + _ends(ends, rows["name"], lever, here, style)).properties(height=_height(len(totals))), style, title),
        table=table.reset_index().rename_axis(columns=None),
    )


def sweep_traffic(figures: pd.DataFrame, lever: str, names: Mapping[str, str], here: str, style: Look) -> Drawing:
    """Traffic of a rank for each value of a lever."""
    say = style.say
    sent = figures["wire_bytes_per_rank"]
    unit = byte_unit(float(sent.max()))
    title = say("From {least} to {most} a rank", least=in_bytes(float(sent.min())), most=in_bytes(float(sent.max())))
    if sent.nunique() == 1:
        title = say("The same for every value: {size}", size=in_bytes(float(sent.min())))
    return Drawing(
        subject=say("Traffic by {lever}", lever=lever),
        title=title,
        reading=say("Sent by a rank in a step, the mean over all ranks, under the ring algorithm."),
        spec=_bars(
            figures.assign(amount=sent / unit.size, said=[in_bytes(float(value)) for value in sent]),
            say("sent by a rank ({unit})", unit=unit.name), lever, names, here, style.blue, title, style,
        ),
        table=figures[["value", "wire_bytes_per_rank"]].rename(columns={"wire_bytes_per_rank": "wire_bytes"}),
    )  # fmt: skip


def sweep_bubble(figures: pd.DataFrame, lever: str, names: Mapping[str, str], here: str, style: Look) -> Drawing:
    """The textbook bubble for each value of a lever."""
    say, shares = style.say, figures["bubble"]
    title = say(
        "From {least} to {most} of the pipeline's time", least=percent(float(shares.min())), most=percent(float(shares.max()))
    )
    if float(shares.max() - shares.min()) < 5e-4:
        title = say("The same for every value: {size}", size=percent(float(shares.min())))
    return Drawing(
        subject=say("Bubble by {lever}", lever=lever),
        title=title,
        reading=say("In textbook times, a share of total time: 1 − busy ÷ (pp × makespan)."),
        spec=_bars(
            figures.assign(amount=100 * shares, said=[percent(float(value)) for value in shares]),
            say("bubble (% of total time)"), lever, names, here, style.blue, title, style,
        ),
        table=figures[["value", "bubble"]],
    )  # fmt: skip


def _how_to_read(say: Words) -> str:
    return say("One bar for each value of the setting, all else unchanged; the current value is solid, the others are pale.")


def _bars(
    rows: pd.DataFrame, x_title: str, lever: str, names: Mapping[str, str], here: str, colour: str, title: str, style: Look
) -> dict[str, object]:
    rows = rows[["value", "amount", "said"]].assign(
        name=rows["value"].map(names), opaque=[1.0 if value == here else 0.62 for value in rows["value"]]
    )
    bars = (
        alt.Chart(rows)
        .mark_bar(color=colour)
        .encode(
            x=_amounts(float(rows["amount"].max()), x_title),
            y=_values(rows["name"], lever),
            opacity=alt.Opacity("opaque:Q", scale=None),
            tooltip=[alt.Tooltip("name:N", title=lever), alt.Tooltip("said:N", title=x_title)],
        )
    )
    return finish((bars + _ends(rows, rows["name"], lever, here, style)).properties(height=_height(len(rows))), style, title)


def _ends(rows: pd.DataFrame, names: pd.Series[str], lever: str, here: str, style: Look) -> alt.Chart:
    """The numbers beside the bars. That of the current value is bold."""
    weighed = rows.assign(weight=["bold" if value == here else "normal" for value in rows["value"]])
    return (
        alt.Chart(weighed[["name", "amount", "said", "weight"]])
        .mark_text(align="left", dx=4, fontSize=11, color=style.text, fontWeight={"expr": "datum.weight"})
        .encode(x="amount:Q", y=_values(names, lever), text="said:N")
    )


def _amounts(most: float, title: str) -> alt.X:
    return alt.X(
        "amount:Q",
        title=title,
        scale=alt.Scale(domain=[0, (most or 1.0) * _LABEL_ROOM], nice=False),
        axis=alt.Axis(tickCount=4),
    )


def _values(names: pd.Series[str], lever: str) -> alt.Y:
    """An axis of the lever's values, in the order in which they were tried."""
    return alt.Y("name:N", sort=list(dict.fromkeys(names)), title=lever)


def _height(values: int) -> int:
    return _BAR_PX * values
