"""When each rank computes, and when it talks: measured, or as the textbook draws it."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import pandas as pd

from engine.schedule import Timed, bubble
from engine.summary import WORK
from engine.summary import bubble as measured_bubble
from engine.topology import Mesh
from pages.charts.drawing import Drawing, colours, finish, rank_chooser
from pages.charts.look import MAX_BARS, Look, lane
from pages.charts.names import columns, lanes
from pages.charts.roles import Roles, opacity, told
from pages.charts.units import in_time, percent, time_unit
from pages.charts.words import Words

# A label is shown when its bar has room for it, which changes as one zooms: about 7 pixels a letter, and a margin.
_HAS_ROOM = "scale('x', datum.end) - scale('x', datum.start) > 7 * length(datum.label) + 4"

_PALER = [1.0, 0.7, 0.85, 0.6, 0.9, 0.65, 0.8, 0.55]  # of a stage's chunks, so that neighbours differ


class _Bar(NamedTuple):
    """Height of a bar, and how far below the middle of its row it lies, in pixels."""

    height: int
    below: int


def measured(spans: pd.DataFrame, mesh: Mesh, style: Look, roles: Roles | None = None) -> Drawing:
    """One row a rank: its actions as thick bars, and beneath them its collectives and transfers as thin ones.

    Above `MAX_BARS` bars only the first part of the step is drawn. With `roles`, the chosen rank and its peers are named in
    their rows, and the others are pale.
    """
    say, named = style.say, lanes(style.say)
    rows, until = first_window(spans)
    names = [say("rank {rank} · stage {stage}", rank=rank, stage=mesh.coordinate(rank).pp) for rank in range(mesh.size)]
    if roles:
        names = [" · ".join(filter(None, (name, told(roles[rank], say)))) for rank, name in enumerate(names)]
    clock = time_unit(rows["end_ns"].max())
    drawn = pd.DataFrame(
        {
            "row": rows["rank"].map(names.__getitem__),
            "rank": rows["rank"],
            "opaque": [opacity(rank, roles) for rank in rows["rank"]],
            "start": rows["start_ns"] / clock.size,
            "end": rows["end_ns"] / clock.size,
            "duration": (rows["end_ns"] - rows["start_ns"]) / clock.size,
            "cpu": rows["cpu_ns"] / clock.size,
            "what": rows["kind"].map(lane).map(named),
            "lane": rows["lane"],
            "kind": rows["kind"],
            "microbatch": _microbatches(rows, otherwise=say("none")),
            "chunk": rows["chunk"],
            "turn": _turns(rows["rank"], rows["chunk"]),
            "label": _labels(rows),
        }
    )
    reading = [
        say(
            "Each row is a rank: thick bars compute, with their microbatch; thin bars beneath are collectives and transfers; the "
            "pale track is idle."
        ),
        *_on_every_timeline(say),
    ]
    if until is not None:
        cut = {"drawn": f"{len(rows):,}", "count": f"{len(spans):,}", "until": in_time(until)}
        reading.append(say("Only the first {drawn} of {count} bars are drawn, up to {until}.", **cut))
    title = _found(spans, mesh, say)
    time = alt.Axis(title=say("time from the step's start ({unit}, wall clock)", unit=clock.name))
    return Drawing(
        subject=say("Pipeline, measured"),
        title=title,
        reading=" ".join(reading),
        spec=finish(_chart(drawn, names, time, style), style, title),
        table=spans.drop(columns="source").reset_index(drop=True),
    )


def textbook(timed: list[Timed], names: list[str], style: Look) -> Drawing:
    """One row a stage, in units of time: a forward pass takes 1, a backward pass 2, and nothing else takes time.

    `names` are the rows' labels, by stage.
    """
    say = style.say
    compute = sorted((t for t in timed if t.action.kind in WORK), key=lambda t: t.start)
    every = pd.DataFrame(
        {
            "row": [names[t.stage] for t in compute],
            "kind": [t.action.kind for t in compute],
            "microbatch": [str(t.action.microbatch) for t in compute],
            "chunk": [t.action.chunk for t in compute],
            "start": [t.start for t in compute],
            "end": [t.end for t in compute],
            "duration": [t.end - t.start for t in compute],
        }
    )
    drawn = every.head(MAX_BARS).assign(lane="compute")
    drawn["what"], drawn["label"] = drawn["kind"].map(lane).map(lanes(say)), drawn["kind"] + drawn["microbatch"]
    drawn["turn"] = _turns(drawn["row"], drawn["chunk"])
    title = say("One stage, so no bubble")
    if len(names) > 1:
        share = percent(bubble(timed, len(names)))
        title = say("The bubble takes {share} of {makespan} units of time", share=share, makespan=f"{every['end'].max():g}")
    reading = [say("Each row is a stage: F and B are the forward and backward pass of a microbatch, 1 and 2 units of time.")]
    if "W" in set(every["kind"]):
        reading.append(say("I and W are the two halves of B, 1 unit each."))
    if every["chunk"].nunique() > len(names):
        reading.append(say("Chunks share a stage's time; the second is drawn paler."))
    reading += _on_every_timeline(say)
    if len(every) > MAX_BARS:
        cut = {"drawn": f"{MAX_BARS:,}", "count": f"{len(every):,}"}
        reading.append(say("Only the first {drawn} of {count} bars are drawn.", **cut))
    time = alt.Axis(title=say("units of time"), tickMinStep=1)
    return Drawing(
        subject=say("Pipeline, textbook"),
        title=title,
        reading=" ".join(reading),
        spec=finish(_chart(drawn, names, time, style), style, title),
        table=every,
    )


def first_window(spans: pd.DataFrame) -> tuple[pd.DataFrame, int | None]:
    """The first `MAX_BARS` spans, and the instant up to which they reach; all of them and None if they are not more."""
    ordered = spans.sort_values("start_ns", kind="stable")
    if len(ordered) <= MAX_BARS:
        return ordered, None
    first = ordered.head(MAX_BARS)
    return first, int(first["start_ns"].max())


def _on_every_timeline(say: Words) -> list[str]:
    return [
        say("The bubble is 1 − busy ÷ (pp × makespan) of forward and backward, a share of total time."),
        say("Ctrl and wheel, or a pinch, zooms; drag moves; double-click goes back."),
    ]


def _found(spans: pd.DataFrame, mesh: Mesh, say: Words) -> str:
    work = spans[(spans["lane"] == "compute") & spans["kind"].isin(WORK)]
    makespan = in_time(work["end_ns"].max() - work["start_ns"].min())
    share = percent(measured_bubble(spans, mesh))
    if mesh.pp == 1:
        return say("One stage, so no bubble: {share} of {makespan} is between passes", share=share, makespan=makespan)
    return say("The bubble takes {share} of {makespan}", share=share, makespan=makespan)


def _microbatches(rows: pd.DataFrame, otherwise: str) -> pd.Series[str]:
    return rows["microbatch"].astype("str").where(rows["microbatch"] >= 0, otherwise)


def _turns(rows: pd.Series[Any], chunks: pd.Series[int]) -> pd.Series[int]:
    """0 for the first of a row's chunks, 1 for the second, and so on; 0 also for what belongs to no chunk."""
    return chunks.where(chunks >= 0).groupby(rows).rank("dense").fillna(1).astype("int64") - 1


def _labels(rows: pd.DataFrame) -> pd.Series[str]:
    """What is written on a bar: F0 for microbatch 0's forward pass, or the name of what has no microbatch."""
    return (rows["kind"] + _microbatches(rows, otherwise="")).where(rows["lane"] == "compute", "")


def _chart(drawn: pd.DataFrame, names: list[str], time: alt.Axis, style: Look) -> Any:
    """Rows of bars on pale tracks, with text in the bars that have room for it. `drawn` has the columns of `measured`."""
    talks = bool((drawn["lane"] == "comm").any())
    thick, thin = (_Bar(17, -4), _Bar(6, 10)) if talks else (_Bar(22, 0), None)
    x, end = alt.X("start:Q", axis=time, scale=alt.Scale(nice=False)), "end:Q"
    y = alt.Y("row:N", sort=names, title=None, scale=alt.Scale(domain=names))
    colour = alt.Color("what:N", scale=colours(style.lane, list(drawn["what"]), lanes(style.say)))
    pale = alt.FillOpacity("turn:O", scale=alt.Scale(domain=list(range(8)), range=_PALER), legend=None)
    called = columns(style.say)
    tooltip = [alt.Tooltip(f"{c}:N", title=called[c]) for c in ("row", "kind", "microbatch", "chunk")]
    tooltip += [alt.Tooltip(f"{c}:Q", title=called[c], format=",.4~r") for c in ("start", "end", "duration", "cpu") if c in drawn]

    # The track starts at 0 and ends with the last bar, so that idle time at either end shows.
    track = alt.Chart(pd.DataFrame({"row": names, "start": 0.0, "end": drawn["end"].max()}))
    rows = alt.Chart(drawn)
    bars = rows.encode(x=x, x2=end, y=y, color=colour, fillOpacity=pale, tooltip=tooltip)
    if by_rank := "rank" in drawn:
        bars = bars.encode(opacity=alt.Opacity("opaque:Q", scale=None))
    layers = [
        track.mark_bar(color=style.faint, height=thick.height, yOffset=thick.below).encode(x=x, x2=end, y=y),
        bars.transform_filter("datum.lane == 'compute'").mark_bar(
            stroke=style.background, strokeWidth=0.8, height=thick.height, yOffset=thick.below
        ),
    ]
    if thin:
        layers.append(bars.transform_filter("datum.lane == 'comm'").mark_bar(height=thin.height, yOffset=thin.below))
    layers.append(
        rows.transform_filter("datum.label != ''")
        .transform_calculate(middle="(datum.start + datum.end) / 2")
        .mark_text(fontSize=11, fontWeight=600, color=style.on_colour, dy=thick.below, clip=True)
        .encode(x="middle:Q", y=y, text="label:N", opacity=alt.when(_HAS_ROOM).then(alt.value(1)).otherwise(alt.value(0)))
    )
    zoom = alt.selection_interval(name="zoom", bind="scales", encodings=["x"], zoom="wheel![event.ctrlKey]")
    if by_rank:
        layers[1] = layers[1].add_params(rank_chooser())
    return alt.layer(*layers).add_params(zoom).properties(height=(32 if talks else 30) * len(names))
