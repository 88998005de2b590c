"""Predicted memory of every rank and traffic by kind of call. After a run, the measured values are drawn beside them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from engine.tables import CATEGORIES, COORDINATE, KV_CACHE, compared
from engine.topology import AXES
from pages.charts.drawing import Drawing, Rows, coloured, finish, nothing, rank_chooser, records
from pages.charts.look import NARROW, Look
from pages.charts.names import categories, phase
from pages.charts.neighbours import StageRows, by_stage
from pages.charts.roles import Roles, opacity, outline, role_name
from pages.charts.template import Template, filled, template
from pages.charts.titles import memory_title, share, stage_title, traffic_title
from pages.charts.traffic import Measure, meaning
from pages.charts.units import Unit, byte_unit, in_bytes, significant
from pages.charts.words import Words

_ORDER = (*CATEGORIES, KV_CACHE)  # of categories, from the bottom of a stack
MOST_BARS = 32  # ranks with a bar each; if there are more, one bar stands for the equal ranks of a stage
_CAPACITY_IN_SIGHT = 8.0  # the line of the capacity is drawn if it is at most this many times as high as the highest bar
_PALE = 0.45  # opacity of a prediction beside its measurement
# About 30 pixels for each of the texts above the bars of a rank. Without room for two there is that of the first bar alone.
_SAID = f"width < {NARROW} ? datum.size : datum.said"
_HAS_ROOM = "datum.first ? bandwidth('x') > 30 : bandwidth('x') > 62"
_KIND = ["axis", "collective", "phase"]
_TEMPLATES = 32  # of each chart that are cached: a few for every language and theme


def memory(
    measured: pd.DataFrame | None,
    predicted: pd.DataFrame,
    capacity: int | None,
    device: str,
    style: Look,
    roles: Roles | None = None,
    ranks: int = 0,
) -> Drawing:
    """Stacked bars by category: predicted for each rank and, if there is a run, measured with the signed error.

    `capacity` of the device in bytes is drawn as a line, unless it is far above the bars. With `roles`, the chosen rank is
    marked. `ranks`: their number, if not all have rows in the tables.
    """
    say, named = style.say, categories(style.say)
    sources = {"measured": say("measured"), "formula": say("predicted")}
    tables = [table for table in (measured, predicted) if table is not None]
    rows = pd.concat(tables)[["source", "rank", *COORDINATE, "category", "bytes"]]
    listed, every = rows["rank"].nunique(), rows.groupby(["source", "rank"])["bytes"].sum()
    title = memory_title(every, capacity, device, say)
    if listed < ranks:
        title = stage_title(rows, capacity, device, say)
    stages = by_stage(rows) if max(listed, ranks) > MOST_BARS else None
    rows = rows if stages is None else stages.rows
    totals = rows.groupby(["source", "rank"])["bytes"].sum()
    unit = byte_unit(int(totals.max()))
    beside_it = (rows["source"] == "formula") & (measured is not None)
    rows = rows.assign(
        amount=rows["bytes"] / unit.size,
        order=rows["category"].map(_ORDER.index),
        said=rows["category"].map(named),
        by=rows["source"].map(sources),
        opaque=[opacity(rank, roles) * (_PALE if pale else 1.0) for rank, pale in zip(rows["rank"], beside_it, strict=True)],
    )
    tops = _tops(totals, sources, unit.size)
    tops["outline"] = [outline(rank, roles) for rank in tops["rank"]]
    if stages and stages.together > 1:  # bars have no room for more text
        tops["text"] = tops["text"].where(tops["bytes"] == tops["bytes"].max(), "")
    in_sight = capacity is not None and capacity / unit.size <= float(tops["amount"].max()) * _CAPACITY_IN_SIGHT
    shown, hues = coloured(style.category, rows["category"], named)
    spec = filled(
        _memory_template(style, measured is not None, in_sight),
        ranks=_x_title(stages, say),
        labels=_labels(rows, stages, roles, say),
        amount=say("memory at the rank's peak ({unit})", unit=unit.name),
        shown=shown,
        hues=hues,
    )
    data = {"bars": records(rows[rows["bytes"] > 0]), "tops": records(tops), "framed": records(tops[tops["outline"] > 0])}
    if capacity is not None and in_sight:
        data["capacity"] = [{"amount": capacity / unit.size, "text": device}]
    reading = [_each_bar(stages, say)]
    if measured is not None:
        reading.append(say("Solid bars are measured; the pale bars beside them are predicted, with the error above."))
    if capacity is not None and not in_sight:
        reading.append(say("The {device} has {size}, far above these bars.", device=device, size=in_bytes(capacity)))
    return Drawing(
        subject=say("Memory of every rank"),
        title=title,
        reading=say.together(*reading),
        spec=finish(spec, style, title, data),
        table=_memory_table(rows),
    )


def traffic(
    measured: pd.DataFrame | None, predicted: pd.DataFrame, ranks: int, measure: Measure, rank: int | None, style: Look
) -> Drawing:
    """Bars by axis, collective and phase: predicted, with the measured ones beside them. The mean of all ranks, or one `rank`."""
    say, column = style.say, f"{measure}_bytes"
    both = compared("traffic", measured if measured is not None else predicted, predicted)
    if rank is not None:
        both, ranks = both[both["rank"] == rank], 1
    shown = "measured" if measured is not None else "predicted"
    rows, unit = _by_kind(both, ranks, column, shown, say)
    title = traffic_title(both if measured is not None else None, rows, unit.size, column, rank, say)
    most = float(rows[["measured", "predicted"]].max().max()) if len(rows) else 1.0
    axes, hues = coloured(style.axis, rows["axis"])
    spec = filled(
        _traffic_template(style, measured is not None, column),
        names=rows["name"].tolist(),
        amount=_traffic_x_title(measure, unit.name, say),
        end=1.45 * most,  # with room at the right for the text of the longest bar
        axes=axes,
        hues=hues,
    )
    spec["height"] = max(60, 30 * len(rows))
    reading = [say("Each bar is one kind of call, for one purpose: the mean over all ranks.")]
    if rank is not None:
        reading = [say("Each bar is one kind of call, for one purpose, of rank {rank} alone.", rank=rank)]
    if measured is not None:
        reading.append(say("Bars are measured; the vertical tick is the prediction."))
    return Drawing(
        subject=say("Traffic by axis and collective"),
        title=title,
        reading=say.together(*reading, meaning(measure, say)),
        spec=finish(spec, style, title, {"kinds": records(rows), "marked": nothing("name")}),
        table=both.reset_index(drop=True) if measured is not None else predicted.drop(columns="source").reset_index(drop=True),
    )


def marks(axis: str, collective: str, phase_code: str, say: Words) -> dict[str, Rows]:
    """The bar of a kind of call in the chart of traffic, as rows to point at."""
    return {"marked": [{"name": _kind(axis, collective, phase_code, say)}]}


# ----------------------------------------------------------------------------------------------------------------- memory


@lru_cache(_TEMPLATES)
def _memory_template(style: Look, measured: bool, capacity: bool) -> Template:
    """Its blanks are the title and the labels of the axis of ranks, the title of the axis of bytes, and the legend."""
    x = alt.X("rank:O", axis=alt.Axis(title="$ranks", labelAngle=0, labelExpr="$labels"))
    layers = [_bars(x, style), *_over_bars(x, style)]
    if measured:
        order = [style.say("measured"), style.say("predicted")]
        layers = [layer.encode(xOffset=alt.XOffset("by:N", sort=order, scale=alt.Scale(paddingInner=0.06))) for layer in layers]
    return template(alt.layer(*layers, *(_capacity_line(style) if capacity else [])).properties(height=300))


def _bars(x: alt.X, style: Look) -> alt.Chart:
    """The stacked bars. A click on one chooses its rank."""
    say = style.say
    return (
        alt.Chart(alt.NamedData("bars"))
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=x,
            y=alt.Y("amount:Q", title="$amount", axis=alt.Axis(tickCount=5)),
            color=alt.Color("said:N", scale=alt.Scale(domain=["$shown"], range=["$hues"])),
            order=alt.Order("order:Q"),
            opacity=alt.Opacity("opaque:Q", scale=None),
            tooltip=[
                alt.Tooltip("rank:O", title=say("rank")),
                alt.Tooltip("pp:O", title=say("stage")),
                alt.Tooltip("by:N", title=say("source")),
                alt.Tooltip("said:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
        .add_params(rank_chooser())
    )


def _over_bars(x: alt.X, style: Look) -> list[alt.Chart]:
    """The frames of the chosen rank and its peers, and the texts above bars."""
    frames = alt.Chart(alt.NamedData("framed")).mark_bar(fillOpacity=0, stroke=style.text)
    words = alt.Chart(alt.NamedData("tops")).mark_text(dy=-8, fontSize=12, fontWeight=600, color=style.text)
    room = alt.when(_HAS_ROOM).then(alt.value(1)).otherwise(alt.value(0))
    return [
        frames.encode(x=x, y="amount:Q", strokeWidth=alt.StrokeWidth("outline:Q", scale=None)),
        words.encode(x=x, y="amount:Q", text="text:N", opacity=room),
    ]


def _each_bar(stages: StageRows | None, say: Words) -> str:
    if stages and stages.together > 1:
        return say(
            "Each bar is one rank at its peak, of the fullest of {count} neighbouring stages; the other ranks of "
            "that stage are equal.",
            count=stages.together,
        )
    if stages:
        return say("Each bar is one rank of a stage at its peak; the other ranks of the stage are equal.")
    return say("Each bar is one rank at its peak.")


def _tops(totals: pd.Series[int], sources: dict[str, str], unit: float) -> pd.DataFrame:
    """A row for each bar: its end, and the text above it."""
    tops = totals.reset_index(name="bytes")
    tops["amount"], tops["by"] = tops["bytes"] / unit, tops["source"].map(sources)
    tops["first"] = tops["source"] == tops["source"].iloc[-1]  # measured, if there are both
    own = tops[tops["source"] == "measured"]
    measured = dict(zip(own["rank"], own["bytes"], strict=True))
    tops["text"] = [
        error_of(size, measured[rank]) if source == "formula" and rank in measured else significant(size / unit)
        for source, rank, size in zip(tops["source"], tops["rank"], tops["bytes"], strict=True)
    ]
    return tops


def error_of(predicted: float, measured: float) -> str:
    """The signed error of a prediction: "+0.12%", "−1.30%", "+<0.01%". It is "±0" only if the prediction is exact."""
    if predicted == measured:
        return "±0"
    error = predicted / measured - 1 if measured else 1.0
    return f"{'+' if error > 0 else '−'}{share(abs(error))}"


def _capacity_line(style: Look) -> list[alt.Chart]:
    line = alt.Chart(alt.NamedData("capacity"))
    return [
        line.mark_rule(color=style.text, strokeWidth=2, strokeDash=[6, 4]).encode(y="amount:Q"),
        line.mark_text(align="right", dy=-8, fontSize=12, fontWeight=600, color=style.text).encode(
            y="amount:Q", x=alt.value("width"), text="text:N"
        ),
    ]


def _memory_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each rank and source, a column for each category and for their sum."""
    who, found = ["rank", *COORDINATE, "source"], dict[tuple[Any, ...], dict[str, int]]()
    for *rank, category, size in rows[[*who, "category", "bytes"]].itertuples(index=False):
        found.setdefault(tuple(rank), {})[category] = size
    wide = [dict(zip(who, rank, strict=True)) | sizes | {"total": sum(sizes.values())} for rank, sizes in found.items()]
    return pd.DataFrame(wide).sort_values(["rank", "source"], kind="stable")


def _labels(rows: pd.DataFrame, stages: StageRows | None, roles: Roles | None, say: Words) -> str:
    """A Vega expression for labels: the rank, its stage, its relation to the chosen rank. For a stage's bar, only the stage."""
    lines = {}
    for rank, pp in dict(zip(rows["rank"], rows["pp"], strict=True)).items():
        stage = stages.label(pp, say) if stages else say("stage {stage}", stage=pp)
        lines[str(rank)] = [stage] if stages else [str(rank), stage, *([role_name(roles[rank], say)] if roles else [])]
    return f"{json.dumps(lines, ensure_ascii=False)}[datum.label]"


def _x_title(stages: StageRows | None, say: Words) -> str:
    return say("pipeline stage") if stages else say("rank, and its pipeline stage")


# ---------------------------------------------------------------------------------------------------------------- traffic


@lru_cache(_TEMPLATES)
def _traffic_template(style: Look, measured: bool, column: str) -> Template:
    """Its blanks are the names of the rows, the title and the end of the axis of bytes, and the legend."""
    shown = "measured" if measured else "predicted"
    y, scale = alt.Y("name:N", sort=["$names"], title=None), alt.Scale(domain=[0, "$end"])
    tooltip = _traffic_tooltip(column, measured, style.say)
    chart = alt.Chart(alt.NamedData("kinds"))
    layers = [
        chart.mark_bar().encode(
            x=alt.X(f"{shown}:Q", title="$amount", scale=scale),
            y=y,
            color=alt.Color("axis:N", scale=alt.Scale(domain=["$axes"], range=["$hues"]), legend=alt.Legend(columns=len(AXES))),
            tooltip=tooltip,
        )
    ]
    if measured:  # the prediction: a tick across the measured bar
        tick = chart.mark_tick(color=style.text, thickness=3, size=26)
        layers.append(tick.encode(x=alt.X("predicted:Q", scale=scale), y=y, tooltip=tooltip))
    text = chart.mark_text(align="left", dx=8, fontSize=12, color=style.text, text={"expr": _SAID})
    layers.append(text.encode(x=alt.X(f"{shown}:Q", scale=scale), y=y))
    return template(alt.layer(*layers, _frame(y, style)))


def _by_kind(both: pd.DataFrame, ranks: int, column: str, shown: str, say: Words) -> tuple[pd.DataFrame, Unit]:
    """A row for each axis, collective and phase, with its name, its bytes in the unit, and the text of its bar."""
    numbers = [f"{number}_{side}" for number in (column, "calls") for side in ("measured", "predicted")]
    rows = both.groupby(_KIND, as_index=False)[numbers].sum()
    rows[numbers] = rows[numbers] / ranks
    rows = rows[rows[f"{column}_predicted"] + rows[f"{column}_measured"] > 0]
    rows = rows.sort_values(["axis", f"{column}_predicted"], ascending=[False, False]).reset_index(drop=True)
    rows["name"] = [_kind(*codes, say) for codes in zip(rows["axis"], rows["collective"], rows["phase"], strict=True)]
    unit = byte_unit(float(rows[[f"{column}_measured", f"{column}_predicted"]].max().max()) if len(rows) else 0)
    rows["measured"] = rows[f"{column}_measured"] / unit.size
    rows["predicted"] = rows[f"{column}_predicted"] / unit.size
    rows["size"] = rows[f"{column}_{shown}"].map(in_bytes)
    rows["said"] = [
        _in_calls(in_bytes(size), both[(both[_KIND] == kind).all(axis=1)].groupby("rank")[f"calls_{shown}"].sum(), ranks, say)
        for size, kind in zip(rows[f"{column}_{shown}"], rows[_KIND].to_numpy(), strict=True)
    ]
    return rows, unit


def _kind(axis: str, collective: str, phase_code: str, say: Words) -> str:
    return say("{axis} {collective}, {phase}", axis=axis, collective=collective, phase=phase(phase_code, say))


def _frame(y: alt.Y, style: Look) -> alt.Chart:
    """A frame around the bar that the page points at, if any, and around its text."""
    return (
        alt.Chart(alt.NamedData(name="marked"))
        .transform_filter(alt.FieldOneOfPredicate(field="name", oneOf=["$names"]))
        .mark_rect(filled=False, stroke=style.text, strokeWidth=2.5, tooltip=None, aria=False)
        .encode(y=y, x=alt.value(0), x2=alt.value("width"))
    )


def _traffic_x_title(measure: Measure, unit: str, say: Words) -> str:
    if measure == "payload":
        return say("payload bytes of a rank in one step ({unit})", unit=unit)
    return say("wire bytes of a rank in one step ({unit})", unit=unit)


def _traffic_tooltip(column: str, measured: bool, say: Words) -> list[alt.Tooltip]:
    lines = [
        alt.Tooltip("axis:N", title=say("axis")),
        alt.Tooltip("collective:N", title=say("collective")),
        alt.Tooltip("phase:N", title=say("phase")),
        alt.Tooltip(f"{column}_predicted:Q", title=say("predicted bytes"), format=",.8~r"),
        alt.Tooltip("calls_predicted:Q", title=say("predicted calls"), format=",.6~r"),
    ]
    if measured:
        lines += [
            alt.Tooltip(f"{column}_measured:Q", title=say("measured bytes"), format=",.8~r"),
            alt.Tooltip("calls_measured:Q", title=say("measured calls"), format=",.6~r"),
        ]
    return lines


def _in_calls(size: str, calls: pd.Series[int], ranks: int, say: Words) -> str:
    """The text of a bar, whose bytes are a mean: "4 KiB in 1 call", "4 KiB in 20 to 24 calls", "2 B: 1 call on 4 of 8 ranks".

    `calls` of each rank that makes any; `ranks`: how many the mean is over.
    """
    made = calls[calls > 0]
    least, most = (int(made.min()), int(made.max())) if len(made) else (0, 0)
    if 0 < len(made) < ranks:
        counted = say.plural("{count} call", "{count} calls", most)
        if least < most:
            counted = say("{least} to {most} calls", least=f"{least:,}", most=f"{most:,}")
        return say(
            "{size}: {calls} on {some} of {ranks} ranks", size=size, calls=counted, some=f"{len(made):,}", ranks=f"{ranks:,}"
        )
    if least < most:
        return say("{size} in {least} to {most} calls", size=size, least=f"{least:,}", most=f"{most:,}")
    return say.plural("{size} in {count} call", "{size} in {count} calls", most, size=size)
