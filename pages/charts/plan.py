"""Charts of a plan: layouts by memory and time, what a step is spent on, each stage's memory, and what fits where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from engine.predict.memory import Peak
from engine.tables import CATEGORIES
from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import Look
from pages.charts.names import categories
from pages.charts.roles import CHOSEN
from pages.charts.units import byte_unit, in_bytes, percent, significant
from pages.charts.words import Words

MOST_POINTS = 1_200  # a browser draws so many quickly; the front and the fastest are always among them
_PARTS = ("compute", "tp", "pp", "dp", "update", "idle")


def front(layouts: pd.DataFrame, capacity: int, chosen: int, style: Look) -> Drawing:
    """Each layout as a point, memory against the time of a step; the front of those that nothing beats in both is a line."""
    say = style.say
    shown = _thinned(layouts, chosen)
    unit = byte_unit(capacity)
    rows = shown.assign(
        memory=shown["memory_bytes"] / unit.size,
        what=[
            say("on the front") if pareto else say("fits") if fits else say("does not fit")
            for pareto, fits in zip(shown["pareto"], shown["fits"], strict=True)
        ],
    )
    kinds = [say("on the front"), say("fits"), say("does not fit")]
    x = alt.X(
        "memory:Q", title=say("memory of the fullest device ({unit})", unit=unit.name), scale=alt.Scale(type="log", nice=False)
    )
    y = alt.Y("step_s:Q", title=say("time of a step (s)"), scale=alt.Scale(type="log", nice=True))
    points = (
        alt.Chart(rows)
        .mark_point(filled=True, strokeWidth=0.5)
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", scale=alt.Scale(domain=kinds, range=[style.orange, style.blue, style.grey])),
            shape=alt.Shape("what:N", scale=alt.Scale(domain=kinds, range=["diamond", "circle", "cross"]), legend=None),
            size=alt.Size("what:N", scale=alt.Scale(domain=kinds, range=[110, 28, 28]), legend=None),
            opacity=alt.when(alt.datum.fits).then(alt.value(0.85)).otherwise(alt.value(0.35)),
            tooltip=[
                alt.Tooltip("layout:N", title=say("layout")),
                alt.Tooltip("schedule:N", title=say("schedule")),
                alt.Tooltip("microbatch_size:Q", title=say("microbatch size")),
                alt.Tooltip("microbatches:Q", title=say("microbatches")),
                alt.Tooltip("zero:Q", title="ZeRO"),
                alt.Tooltip("sequence_parallel:N", title=say("sequence parallel")),
                alt.Tooltip("recompute:N", title=say("recompute")),
                alt.Tooltip("memory:Q", title=say("memory ({unit})", unit=unit.name), format=",.1f"),
                alt.Tooltip("step_s:Q", title=say("step (s)"), format=",.3f"),
                alt.Tooltip("mfu:Q", title="MFU", format=".1%"),
            ],
        )
        .add_params(alt.selection_point(name=CHOSEN, fields=["row"], on="click", toggle=False))
    )
    line = alt.Chart(rows[rows["pareto"]].sort_values("memory")).mark_line(
        color=style.orange, strokeWidth=2, interpolate="step-after"
    )
    here = alt.Chart(rows[rows["row"] == chosen]).mark_point(size=360, strokeWidth=2.5, color=style.text, filled=False)
    edge = alt.Chart(pd.DataFrame({"memory": [capacity / unit.size]}))
    layers = [
        edge.mark_rule(color=style.text, strokeWidth=1.5, strokeDash=[6, 4]).encode(x="memory:Q"),
        line.encode(x=x, y=y),
        points,
        here.encode(x=x, y=y),
    ]
    title = say("None of the {count} layouts fits", count=f"{len(layouts):,}")
    if (count := int(layouts["fits"].sum())) > 0:
        ends = layouts[layouts["pareto"]]
        title = say.plural(
            "{count} layout fits; {front} of them are on the front, from {least} to {most}",
            "{count} layouts fit; {front} of them are on the front, from {least} to {most}",
            count,
            front=len(ends),
            least=in_bytes(int(ends["memory_bytes"].min())),
            most=in_bytes(int(ends["memory_bytes"].max())),
        )
    return Drawing(
        subject=say("Memory against time"),
        title=title,
        reading=say(
            "Each point is a layout; lower is faster, further left needs less memory. On the orange line nothing is both faster "
            "and smaller. The dashed line is what the device has. Click a point to see it below."
        ),
        spec=finish(alt.layer(*layers).properties(height=340), style, title),
        table=layouts,
    )


def _thinned(layouts: pd.DataFrame, chosen: int) -> pd.DataFrame:
    """At most about `MOST_POINTS` rows, with their numbers: the front, the fastest, and an even sample of the rest."""
    rows = layouts.assign(row=range(len(layouts)))
    if len(rows) <= MOST_POINTS:
        return rows
    kept = rows["pareto"] | (rows["row"] < MOST_POINTS // 3) | (rows["row"] == chosen)
    rest = rows[~kept]
    step = max(1, len(rest) // (MOST_POINTS * 2 // 3))
    return pd.concat([rows[kept], rest.iloc[::step]]).sort_values("row")


def step_parts(parts: Mapping[str, Mapping[str, float]], style: Look) -> Drawing:
    """What a step is spent on. `parts`: a layout's name → seconds by part."""
    say = style.say
    named = {
        "compute": say("compute"),
        "tp": say("waiting for tp"),
        "pp": say("waiting for pp"),
        "dp": say("waiting for dp"),
        "update": say("optimizer step"),
        "idle": say("bubble"),
    }
    tones = {
        "compute": style.blue,
        "tp": style.orange,
        "pp": style.green,
        "dp": style.pink,
        "update": style.ink,
        "idle": style.grey,
    }
    rows = pd.DataFrame(
        [
            {"layout": name, "part": named[part], "code": part, "seconds": seconds[part], "order": i}
            for name, seconds in parts.items()
            for i, part in enumerate(_PARTS)
        ]
    )
    chart = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=alt.X("seconds:Q", title=say("seconds of a step")),
            y=alt.Y("layout:N", sort=list(parts), title=None, axis=alt.Axis(labelLimit=420)),
            color=alt.Color("part:N", scale=colours(tones, list(_PARTS), named), sort=list(named.values())),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("layout:N", title=say("layout")),
                alt.Tooltip("part:N", title=say("part")),
                alt.Tooltip("seconds:Q", title=say("seconds"), format=",.3f"),
            ],
        )
        .properties(height=44 * len(parts) + 20)
    )
    first = next(iter(parts.values()))
    share = first["compute"] / sum(first.values())
    title = say("{share} of the step computes; the rest waits", share=percent(share))
    return Drawing(
        subject=say("What a step is spent on"),
        title=title,
        reading=say("The slowest stage's passes, and what it waits for; the parts add up to the time of a step."),
        spec=finish(chart, style, title),
        table=rows.pivot_table(index="layout", columns="part", values="seconds", sort=False)
        .reset_index()
        .rename_axis(columns=None),
    )


def stages(peaks: Sequence[Peak], capacity: int, device: str, style: Look) -> Drawing:
    """Each stage's peak by category, with the device's capacity."""
    say, named = style.say, categories(style.say)
    unit = byte_unit(max(capacity, *(p.total for p in peaks)))
    rows = pd.DataFrame(
        [
            {
                "stage": p.stage,
                "category": named[category],
                "amount": p.bytes[category] / unit.size,
                "bytes": p.bytes[category],
                "order": i,
            }
            for p in peaks
            for i, category in enumerate(CATEGORIES)
        ]
    )
    bars = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=alt.X("stage:O", title=say("pipeline stage"), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("amount:Q", title=say("memory at the peak ({unit})", unit=unit.name)),
            color=alt.Color("category:N", scale=colours(style.category, list(CATEGORIES), named)),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("stage:O", title=say("stage")),
                alt.Tooltip("category:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
    )
    edge = alt.Chart(pd.DataFrame({"amount": [capacity / unit.size], "text": [device]}))
    layers = [
        bars,
        edge.mark_rule(color=style.text, strokeWidth=1.5, strokeDash=[6, 4]).encode(y="amount:Q"),
        edge.mark_text(align="right", dy=-8, fontSize=12, fontWeight=600, color=style.text).encode(
            y="amount:Q", x=alt.value("width"), text="text:N"
        ),
    ]
    over = [p.stage for p in peaks if p.total > capacity]
    fullest = max(peaks, key=lambda p: p.total)
    most = fullest.total
    if over:
        listed = ", ".join(map(str, over))
        title = say(
            "It does not fit on stages {stages}: stage {stage} needs {most}",
            stages=listed,
            stage=fullest.stage,
            most=in_bytes(most),
        )
    else:
        title = say(
            "It fits: stage {stage} is fullest with {most} of {size}",
            stage=fullest.stage,
            most=in_bytes(most),
            size=in_bytes(capacity),
        )
    return Drawing(
        subject=say("Memory of each stage"),
        title=title,
        reading=say("One bar stands for all ranks of a stage, which are equal, at the instant when they hold most."),
        spec=finish(alt.layer(*layers).properties(height=260), style, title),
        table=rows.pivot_table(index="stage", columns="category", values="bytes", sort=False)
        .reset_index()
        .rename_axis(columns=None),
    )


def heatmap(cells: pd.DataFrame, style: Look) -> Drawing:
    """`cells`: model, ranks, mfu (NaN where nothing fits), layout, reason. Grey cells say why."""
    say = style.say
    rows = cells.assign(
        fits=cells["mfu"].notna(),
        text=[f"{100 * mfu:.0f}" if mfu == mfu else "–" for mfu in cells["mfu"]],
        reason=cells["reason"].map(say.sentence),
    )
    models = list(dict.fromkeys(cells["model"]))
    counts = sorted(set(cells["ranks"]))
    x = alt.X("ranks:O", sort=counts, title=say("devices"), axis=alt.Axis(labelAngle=0, format=","))
    y = alt.Y("model:N", sort=models, title=None)
    tooltip = [
        alt.Tooltip("model:N", title=say("model")),
        alt.Tooltip("ranks:O", title=say("devices")),
        alt.Tooltip("layout:N", title=say("best layout")),
        alt.Tooltip("reason:N", title=say("why")),
        alt.Tooltip("mfu:Q", title="MFU", format=".1%"),
    ]
    good = (
        alt.Chart(rows[rows["fits"]])
        .mark_rect(stroke=style.background, strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "mfu:Q",
                scale=alt.Scale(domain=[0, 0.7], range=[style.faint, style.blue], clamp=True),
                title="MFU",
                legend=alt.Legend(format=".0%", orient="right"),
            ),
            tooltip=tooltip,
        )
    )
    bad = alt.Chart(rows[~rows["fits"]]).mark_rect(color=style.grey, opacity=0.35, stroke=style.background, strokeWidth=2)
    words = (
        alt.Chart(rows)
        .mark_text(fontSize=12, fontWeight=600)
        .encode(
            x=x,
            y=y,
            text="text:N",
            color=alt.when((alt.datum.mfu > 0.4) & alt.datum.fits)
            .then(alt.value(style.on_colour))
            .otherwise(alt.value(style.text)),
        )
    )
    layers = [good, bad.encode(x=x, y=y, tooltip=tooltip), words.encode(tooltip=tooltip)]
    fitting = rows[rows["fits"]]
    title = say("{count} of {all} combinations fit", count=len(fitting), all=len(rows))
    return Drawing(
        subject=say("Best layout by model and number of devices"),
        title=title,
        reading=say(
            "Each cell is the model FLOPs utilization of the fastest layout that fits, in percent; grey cells fit nowhere, and "
            "say why when pointed at."
        ),
        spec=finish(alt.layer(*layers).properties(height=38 * len(models)), style, title),
        table=cells,
    )


def seconds(value: float, say: Words) -> str:
    """ "12.3 s", "450 ms"."""
    return say("{seconds} s", seconds=significant(value)) if value >= 1 else say("{ms} ms", ms=significant(1000 * value))
