"""Charts of a plan: layouts by memory and time, what a step is spent on, each stage's memory, and what fits where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from engine.predict.speed.step_time import PARTS
from engine.topology import CALL_AXES_BY_FREQUENCY
from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import NARROW, Look, lane
from pages.charts.names import categories, recompute, schedule, zero_stage
from pages.charts.roles import CHOSEN
from pages.charts.units import Unit, byte_unit, in_bytes, percent, ranges, significant
from pages.charts.words import Words

_FEWEST_TICKS, _MOST_TICKS = 3, 9
_FEW = 6  # stages
_ROOM_FOR_TEXT = 0.065  # of the capacity: a band of that height has its name inside


def front(layouts: pd.DataFrame, count: int, feasible: int, capacity: int, device: str, chosen: int, style: Look) -> Drawing:
    """Layouts as points, memory against the time of a step. A line is the Pareto front: no layout is better in both.

    `layouts`: all layouts of the front and some others, by their number in the plan. The plan has `count` layouts, of which
    `feasible` fit. Layouts with `drawn`, and the chosen one, are drawn.
    """
    say, unit = style.say, byte_unit(capacity)
    drawn = layouts[layouts["drawn"] | (layouts.index == chosen)].rename_axis("row").reset_index()
    rows = _points(drawn, unit.size, say)
    x = alt.X(
        "memory:Q",
        title=say("memory of the fullest device ({unit})", unit=unit.name),
        **log_axis(rows["memory"], capacity / unit.size),
    )
    y = alt.Y("step_s:Q", title=say("step time (s)"), **log_axis(rows["step_s"]))
    line = alt.Chart(rows[rows["pareto"]].sort_values("memory")).mark_line(
        color=style.orange, strokeWidth=2, interpolate="step-after"
    )
    here = alt.Chart(rows[rows["row"] == chosen]).mark_point(size=360, strokeWidth=2.5, color=style.text, filled=False)
    reserve = int(layouts["reserve_bytes"].get(chosen, 0))
    ends = {"memory": [capacity / unit.size], "foot": [(capacity - reserve) / unit.size], "text": [device]}
    edge = alt.Chart(pd.DataFrame(ends))
    layers = [
        edge.mark_rect(color=style.grey, opacity=0.3).encode(x="foot:Q", x2="memory:Q", y=alt.value(0), y2=alt.value("height")),
        edge.mark_rule(color=style.text, strokeWidth=1.5, strokeDash=[6, 4]).encode(x="memory:Q"),
        edge.mark_text(align="left", dx=6, dy=8, fontSize=12, fontWeight=600, color=style.text).encode(
            x="memory:Q", y=alt.value(0), text="text:N"
        ),
        line.encode(x=x, y=y),
        _clickable(rows, x, y, unit.name, style),
        here.encode(x=x, y=y),
    ]
    title = _front_title(layouts, count, feasible, say)
    reading = say(
        "Each point is a layout; lower is faster, further left needs less memory. The orange line is the Pareto "
        "front: no layout is both faster and smaller. The dashed line is the memory of the device; the grey band before it is "
        "what the chosen layout keeps free. Click a point to see that layout."
    )
    if len(drawn) < count:
        reading = say.together(
            reading,
            say(
                "{drawn} of {count} layouts are drawn: the Pareto front, the fastest, and a sample of those close to "
                "them; the file below has all.",
                count=f"{count:,}",
                drawn=f"{len(drawn):,}",
            ),
        )
    return Drawing(
        subject=say("Memory against time"),
        title=title,
        reading=reading,
        spec=finish(alt.layer(*layers).properties(height=320), style, title),
        table=drawn.drop(columns=["row", "drawn"]),
    )


def _kinds(say: Words) -> list[str]:
    """Names of the kinds of points."""
    return [say("on the Pareto front"), say("fits"), say("does not fit")]


def _points(shown: pd.DataFrame, unit: float, say: Words) -> pd.DataFrame:
    """Columns for the marks: memory in the unit, and texts on the layout's kind and levers."""
    front, fits, misfit = _kinds(say)
    return shown[["row", "layout", "step_s", "mfu", "pareto", "fits"]].assign(
        memory=shown["memory_bytes"] / unit,
        what=[front if p else fits if f else misfit for p, f in zip(shown["pareto"], shown["fits"], strict=True)],
        run=[_run_as(r, say) for r in shown.itertuples()],
    )


def _clickable(rows: pd.DataFrame, x: alt.X, y: alt.Y, unit: str, style: Look) -> alt.Chart:
    say, kinds = style.say, _kinds(style.say)
    return (
        alt.Chart(rows)
        .mark_point(filled=True, strokeWidth=0.5)
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", scale=alt.Scale(domain=kinds, range=[style.orange, style.blue, style.grey])),
            shape=alt.Shape("what:N", scale=alt.Scale(domain=kinds, range=["diamond", "circle", "cross"])),
            size=alt.when(alt.datum.pareto).then(alt.value(110)).otherwise(alt.value(28)),
            opacity=alt.when(alt.datum.fits).then(alt.value(0.85)).otherwise(alt.value(0.4)),
            tooltip=[
                alt.Tooltip("layout:N", title=say("layout")),
                alt.Tooltip("run:N", title=say("run as")),
                alt.Tooltip("memory:Q", title=say("memory ({unit})", unit=unit), format=",.1f"),
                alt.Tooltip("step_s:Q", title=say("step time (s)"), format=",.3f"),
                alt.Tooltip("mfu:Q", title="MFU", format=".1%"),
            ],
        )
        .add_params(alt.selection_point(name=CHOSEN, fields=["row"], on="click", toggle=False))
    )


def _front_title(layouts: pd.DataFrame, count: int, feasible: int, say: Words) -> str:
    if not feasible:
        return say("None of the {count} layouts fits", count=f"{count:,}")
    ends = layouts[layouts["pareto"]]
    return say.plural(
        "{count} layout fits; {front} of them are on the Pareto front, from {least} to {most}",
        "{count} layouts fit; {front} of them are on the Pareto front, from {least} to {most}",
        feasible,
        front=len(ends),
        least=in_bytes(int(ends["memory_bytes"].min())),
        most=in_bytes(int(ends["memory_bytes"].max())),
    )


def log_axis(values: pd.Series[float], also: float | None = None) -> dict[str, Any]:
    """A logarithmic axis over the data. Ticks are at 1, 2, 3, 5 and 7 times powers of ten, or at even steps if those are few."""
    least, most = float(values.min()), float(values.max())
    if also is not None:
        least, most = min(least, also), max(most, also)
    least, most = least / 1.12, most * 1.12
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 3, 5, 7) if least <= digit * 10.0**power <= most]
    if len(ticks) > _MOST_TICKS:
        ticks = [tick for tick in ticks if f"{tick:e}"[0] in "125"]
    if len(ticks) < _FEWEST_TICKS:
        ticks = _even_ticks(least, most)
    scale = alt.Scale(type="log", domain=[least, most], nice=False)
    return {"scale": scale, "axis": alt.Axis(values=ticks, format=",~g", grid=True)}


def _even_ticks(least: float, most: float) -> list[float]:
    """Ticks at multiples of 1, 2 or 5 times a power of ten: the largest step that gives enough of them."""
    power = 10.0 ** math.floor(math.log10(most - least))
    steps = (power / part for part in (1, 2, 5, 10, 20, 50))
    ticks = ([step * n for n in range(math.ceil(least / step), math.floor(most / step) + 1)] for step in steps)
    return next(found for found in ticks if len(found) >= _FEWEST_TICKS)


def _run_as(row: Any, say: Words) -> str:
    """The levers of a layout, as a line of a tooltip."""
    said = [schedule(row.schedule, say) + (f" × {row.chunks}" if row.chunks > 1 else "")] if row.pp > 1 else []
    said.append(f"{row.microbatches} × {row.microbatch_size}")
    said += [zero_stage(row.zero, row.zero_replicas, say)] if row.zero else []
    said += ["SP"] if row.sequence_parallel else []
    if row.recompute != "none":
        said.append(say("recompute {what}", what=recompute(row.recompute, row.recompute_layers, 1, say)))
    return ", ".join(said)


def step_parts(parts: Mapping[str, Mapping[str, float]], style: Look) -> Drawing:
    """The time of a step by part. `parts`: a layout's name → seconds by part."""
    say = style.say
    named: dict[str, str] = {
        "compute": say("compute"),
        **{axis: say("waiting for {axis}", axis=axis) for axis in CALL_AXES_BY_FREQUENCY},
        "update": say("optimizer step"),
        "idle": say("pipeline bubble"),
    }
    tones: dict[str, str] = {
        "compute": style.lane[lane("F")],
        **{axis: style.axis[axis] for axis in CALL_AXES_BY_FREQUENCY},
        "update": style.lane[lane("step")],
        "idle": style.grey,
    }
    rows = pd.DataFrame(
        [
            {"layout": name, "part": named[part], "code": part, "seconds": seconds[part], "order": i}
            for name, seconds in parts.items()
            for i, part in enumerate(PARTS)
        ]
    )
    chart = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=alt.X("seconds:Q", title=say("seconds per step")),
            y=alt.Y("layout:N", sort=list(parts), title=None),
            color=alt.Color(
                "part:N",
                scale=colours(tones, list(PARTS), named),
                sort=list(named.values()),
                legend=alt.Legend(columns=alt.ExprRef(f"width < {NARROW} ? 2 : 3")),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("layout:N", title=say("layout")),
                alt.Tooltip("part:N", title=say("part")),
                alt.Tooltip("seconds:Q", title=say("seconds"), format=",.3f"),
            ],
        )
        .properties(height=52 * len(parts))
    )
    first = next(iter(parts.values()))
    share = first["compute"] / sum(first.values())
    title = say("{share} of the step is compute; the rest is waiting", share=percent(share))
    if percent(share) == percent(1):
        title = say("Nearly all of the step is compute")
    return Drawing(
        subject=say("Breakdown of step time"),
        title=title,
        reading=say("Compute of the slowest stage, and what it waits for; the parts add up to the step time."),
        spec=finish(chart, style, title),
        table=pd.DataFrame([{"layout": name} | {f"{part}_s": spent[part] for part in PARTS} for name, spent in parts.items()]),
    )


def stages(held: Sequence[Mapping[str, int]], capacity: int, reserve: int, device: str, style: Look) -> Drawing:
    """Peak memory of a rank of each stage, with the device's capacity and the part of it that is kept free.

    `held`: by stage, category → bytes.
    """
    say, named = style.say, categories(style.say)
    codes = list(held[0])
    totals = [sum(one.values()) for one in held]
    unit = byte_unit(max(capacity, *totals))
    rows = pd.DataFrame(
        [
            {"stage": stage, "category": named[code], "amount": one[code] / unit.size, "bytes": one[code], "order": i}
            for stage, one in enumerate(held)
            for i, code in enumerate(codes)
        ]
    )
    bars = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=0.6, width=_no_wider(len(held)))
        .encode(
            x=alt.X("stage:O", title=say("pipeline stage"), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("amount:Q", title=say("memory at the peak ({unit})", unit=unit.name)),
            color=alt.Color("category:N", scale=colours(style.category, codes, named)),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("stage:O", title=say("stage")),
                alt.Tooltip("category:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
    )
    title = _stages_title(totals, capacity, reserve, say)
    layers = [bars, *capacity_line(capacity, reserve, unit, device, style)]
    return Drawing(
        subject=say("Memory of each stage"),
        title=title,
        reading=say.together(say("One bar per stage, whose ranks are equal, at its peak."), band_meaning(reserve, say)),
        spec=finish(alt.layer(*layers).properties(height=260), style, title),
        table=rows.pivot_table(index="stage", columns="category", values="bytes", sort=False)
        .reset_index()
        .rename_axis(columns=None),
    )


def _no_wider(bars: int) -> alt.RelativeBandSize:
    """The width of bars: with few bars, no wider than with `_FEW`."""
    return alt.RelativeBandSize(0.7 * min(1.0, bars / _FEW))


def capacity_line(capacity: int, reserve: int, unit: Unit, device: str, style: Look) -> list[alt.Chart]:
    """A line at the capacity with the device's name above it, and a band below it: what is kept free.

    Both are named at the right, on a background, so that they are legible over the bars. All numbers are bytes.
    """
    top = capacity / unit.size
    edge = alt.Chart(pd.DataFrame({"amount": [top], "text": [device], "above": [1.06 * top]}))
    line = edge.mark_rule(color=style.text, strokeWidth=1.5, strokeDash=[6, 4]).encode(y="amount:Q")
    room = edge.mark_point(opacity=0).encode(y="above:Q")  # so that the name is inside of the chart where bars are low
    return [*_band(capacity, reserve, unit, style), room, line, *_named(edge, "bottom", -4, style)]


def _band(capacity: int, reserve: int, unit: Unit, style: Look) -> list[alt.Chart]:
    if not reserve:
        return []
    foot = (capacity - reserve) / unit.size
    said = style.say("{size} kept free", size=in_bytes(reserve))
    kept = pd.DataFrame({"amount": [foot], "top": [capacity / unit.size], "text": [said]})
    edge = alt.Chart(kept)
    fill = edge.mark_rect(color=style.grey, opacity=0.3).encode(y="amount:Q", y2="top:Q", x=alt.value(0), x2=alt.value("width"))
    if reserve < _ROOM_FOR_TEXT * capacity:
        return [fill, *_named(edge, "top", 4, style)]
    middle = alt.Chart(kept.assign(amount=(foot + capacity / unit.size) / 2))
    return [fill, *_named(middle, "middle", 1, style)]


def _named(edge: alt.Chart, baseline: Literal["top", "middle", "bottom"], dy: int, style: Look) -> list[alt.Chart]:
    label = edge.encode(y="amount:Q", x=alt.value("width"), text="text:N")
    told: dict[str, Any] = {"align": "right", "baseline": baseline, "dx": -4, "dy": dy, "fontSize": 12, "fontWeight": 600}
    return [
        label.mark_text(stroke=style.background, strokeWidth=4, strokeOpacity=0.85, **told),
        label.mark_text(color=style.text, **told),
    ]


def band_meaning(reserve: int, say: Words) -> str:
    """What the band below the capacity means; empty if there is none."""
    if not reserve:
        return ""
    return say("The grey band is kept free for what is not in tensors: the CUDA context, NCCL's buffers and fragmentation.")


def _stages_title(totals: Sequence[int], capacity: int, reserve: int, say: Words) -> str:
    """The title: whether the layout fits, and what the fullest stage needs. A single stage has no number."""
    need = max(totals)
    over = [stage for stage, total in enumerate(totals) if total + reserve > capacity]
    fullest = [stage for stage, total in enumerate(totals) if total == need]
    values = {"stage": ranges(fullest), "most": in_bytes(need), "size": in_bytes(capacity)}
    if len(totals) == 1:
        if over and reserve:
            kept = in_bytes(reserve)
            return say("It does not fit: each rank needs {most} beside {reserve} and has {size}", reserve=kept, **values)
        if over:
            return say("It does not fit: each rank needs {most} and has {size}", **values)
        return say("It fits: each rank needs {most} of {size}", most=values["most"], size=values["size"])
    if len(over) == 1:
        return say("It does not fit on stage {stage}, which needs {most}", stage=values["stage"], most=values["most"])
    if over:
        return say(
            "It does not fit on stages {stages}: stage {stage} needs {most}",
            stages=ranges(over),
            stage=values["stage"],
            most=values["most"],
        )
    return say("It fits: stage {stage} is fullest with {most} of {size}", **values)


def seconds(value: float, say: Words) -> str:
    """ "12.3 s", "450 ms"."""
    return say("{seconds} s", seconds=significant(value)) if value >= 1 else say("{ms} ms", ms=significant(1000 * value))
