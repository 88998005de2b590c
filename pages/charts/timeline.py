"""When each rank computes and communicates: measured, projected to one device a rank, or in the textbook's times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pandas as pd

from engine.schedule import Timed, bubble
from engine.summary import WORK, exposed
from engine.summary import bubble as measured_bubble
from engine.topology import Axis, Mesh
from pages.charts.critical import critical_path
from pages.charts.drawing import Drawing, finish
from pages.charts.lanes import BARS, Row, chart
from pages.charts.lanes import overview as lanes_overview
from pages.charts.look import MAX_BARS, Look
from pages.charts.roles import Roles, opacity, role_name
from pages.charts.units import Unit, in_time, percent, time_unit
from pages.charts.words import Words

Kind = Literal["measured", "projected", "textbook"]
KINDS: tuple[Kind, ...] = ("measured", "projected", "textbook")
Window = tuple[float, float]
_LEGIBLE = 32  # bars in a row that can be distinguished on a page
_MOST_ROWS = 128  # of a panel: a browser limits the height of a chart


@dataclass(frozen=True)
class Panel:
    """One timeline of a step: its rows, its bars (the columns of `lanes.BARS`, in ns or in units), and its figures."""

    kind: Kind
    rows: list[Row]
    bars: pd.DataFrame
    bubble: float  # of total time
    makespan: float  # of forward and backward
    table: pd.DataFrame
    stages: int
    exposed: Mapping[Axis, float] = field(default_factory=dict)  # communication, of the step: see `engine.summary.exposed`

    @property
    def of_ideal(self) -> float:
        """Idle time as a share of busy time."""
        return self.bubble / (1 - self.bubble)

    @property
    def end(self) -> float:
        return float(self.bars["end_ns"].max())


class Slowed(NamedTuple):
    """A stage that the reader made slower, and the bubble without that."""

    stage: int
    factor: float
    bubble: float


# --------------------------------------------------------------------------------------------------------------- drawings


def measured(spans: pd.DataFrame, mesh: Mesh, style: Look, roles: Roles | None = None, window: Window | None = None) -> Drawing:
    """A row for each rank: actions as thick bars, and below them collectives and transfers as thin ones.

    If there are more than `MAX_BARS` bars, only those in `window` (ns) are drawn, or those in the first part of the step. With
    `roles`, rows name the chosen rank and its peers, and other ranks are pale.
    """
    return draw([measured_panel(spans, mesh, style.say, roles)], style, window)


def textbook(
    timed: Sequence[Timed], names: Sequence[str], style: Look, slowed: Slowed | None = None, window: Window | None = None
) -> Drawing:
    """A row for each stage, in units of time: a forward pass takes 1, a backward pass 2, everything else 0.

    `names` are the labels of the rows, by stage.
    """
    return draw([replayed_panel("textbook", timed, names, style.say)], style, window, slowed)


def draw(
    panels: list[Panel], style: Look, window: Window | None = None, slowed: Slowed | None = None, least: float = 0.0
) -> Drawing:
    """Panels above each other on one time axis. The first gives the title. All are in ns, except a single textbook panel.

    The axis ends at `least` or later, so that timelines side by side can have the same scale.
    """
    say, alone = style.say, len(panels) == 1
    units = alone and panels[0].kind == "textbook"
    every = pd.concat([panel.bars for panel in panels], ignore_index=True)
    drawn_rows = [panel.rows[:_MOST_ROWS] for panel in panels]
    shown_bars = every
    if any(len(panel.rows) > _MOST_ROWS for panel in panels):
        shown_bars = every[every["row"].isin([row.key for rows in drawn_rows for row in rows])]
    bars, until = _in_window(shown_bars, window, sum(map(len, drawn_rows)))
    end = max(least, *(panel.end for panel in panels))
    clock = clock_of(panels[0], say) if units else time_unit(end)
    shown = (0.0, end) if least and until is None else None if until is None else (window[0] if window else 0.0, until)
    title = " · ".join(_title(panel, say, units, slowed, named=not alone) for panel in panels)
    axis = {
        "measured": say("time from the step's start ({unit}, wall clock)", unit=clock.name),
        "projected": say("time from the step's start ({unit}, a device for each rank)", unit=clock.name),
        "textbook": say("units of time"),
    }[panels[0].kind]
    time = axis if alone else say("time from the step's start ({unit})", unit=clock.name)
    reading = [_reading(panel, say, units) for panel in panels] + _on_every_timeline(panels[0], say)
    if until is not None:
        cut = {"drawn": f"{len(bars):,}", "count": f"{len(every):,}", "until": f"{until:.4g}" if units else in_time(until)}
        reading.append(say("Only {drawn} of {count} bars are drawn, up to {until}.", **cut))
    if len(shown_bars) < len(every):
        of = max(len(panel.rows) for panel in panels)
        reading.append(say("The first {drawn} of {count} rows are drawn.", count=f"{of:,}", drawn=_MOST_ROWS))
    pairs = zip(panels, drawn_rows, strict=True)
    rows = [row for panel, some in pairs for row in (*_headings(panel, say)[alone:], *some)]
    drawn, data = chart(bars, rows, clock, time, style, shown)
    return Drawing(
        subject=_subject(panels, say),
        title=title,
        reading=say.together(*reading),
        spec=finish(drawn, style, title, data),
        table=panels[0].table if alone else every[list(BARS)],
        moving=say("Ctrl and wheel, or pinch, to zoom; drag to pan; double-click to reset."),
    )


def _headings(panel: Panel, say: Words) -> list[Row]:
    """The row above a panel with its name."""
    return [Row(panel.kind, kinds(say)[panel.kind].upper(), heading=True)]


def clock_of(panel: Panel, say: Words) -> Unit:
    """The unit of time of a panel that is drawn alone."""
    return Unit(say("units"), 1) if panel.kind == "textbook" else time_unit(panel.end)


def overview(panel: Panel, style: Look) -> Drawing | None:
    """The whole step as a strip in which an interval can be brushed. None if all bars are drawn anyway."""
    if len(panel.bars) <= MAX_BARS:
        return None
    say, clock = style.say, clock_of(panel, style.say)
    title = say("{count} bars are too many to draw at once", count=f"{len(panel.bars):,}")
    reading = say("The stronger the colour, the busier. Drag over a part of the step to show it below; double-click to clear.")
    spec = finish(lanes_overview(panel.bars, panel.rows, clock, style), style, title)
    return Drawing(say("The whole step"), title, reading, spec, panel.table.head(0))


# ----------------------------------------------------------------------------------------------------------------- panels


def measured_panel(spans: pd.DataFrame, mesh: Mesh, say: Words, roles: Roles | None = None) -> Panel:
    """A row for each rank. Its idle time is the time of its pipeline without its passes."""
    work = spans[(spans["lane"] == "compute") & spans["kind"].isin(WORK)]
    pipeline = work["rank"] % mesh.stride("pp")
    whole = work["end_ns"].groupby(pipeline).max() - work["start_ns"].groupby(pipeline).min()
    busy = (work["end_ns"] - work["start_ns"]).groupby(work["rank"]).sum()
    rows = []
    for rank in range(mesh.size):
        idle = percent(1 - busy[rank] / whole[rank % mesh.stride("pp")]) if rank in busy.index else "–"
        label = say("rank {rank} · stage {stage}", rank=rank, stage=mesh.coordinate(rank).pp)
        role = role_name(roles[rank], say) if roles else ""
        label = " · ".join(filter(None, (label, role, say("idle {share}", share=idle))))
        rows.append(Row(row_key("measured", rank), label))
    path = critical_path(spans, mesh)
    bars = spans[["rank", "lane", "kind", "chunk", "microbatch", "start_ns", "end_ns", "cpu_ns"]].assign(
        row=[row_key("measured", rank) for rank in spans["rank"]],
        critical=spans.index.isin(list(path)),
        opaque=[opacity(rank, roles) for rank in spans["rank"]],
    )
    makespan = float(work["end_ns"].max() - work["start_ns"].min())
    table, idle_share = spans.drop(columns="source"), measured_bubble(spans, mesh)
    return Panel("measured", rows, bars, idle_share, makespan, table, mesh.pp, exposed(spans, mesh))


def replayed_panel(
    kind: Kind,
    timed: Sequence[Timed],
    names: Sequence[str],
    say: Words,
    unit_ns: float = 1.0,
    path: Sequence[Timed] | None = None,
) -> Panel:
    """A row for each stage, of a simulation in units of `unit_ns`. `path`, the critical path, is outlined.

    The textbook shows passes only. A projection also shows the actions at the end of the step.
    """
    shown = [t for t in timed if t.action.kind in WORK or (kind == "projected" and t.action.kind not in ("send", "recv"))]
    shown = sorted((t for t in shown if t.end > t.start), key=lambda t: t.start)
    work = [t for t in shown if t.action.kind in WORK]
    makespan = max(t.end for t in work) - min(t.start for t in work)
    idle = [makespan] * len(names)
    for t in work:
        idle[t.stage] -= t.end - t.start
    labels = [f"{name} · {say('idle {share}', share=percent(idle[s] / makespan))}" for s, name in enumerate(names)]
    on_path = {id(t) for t in (_critical_chain(timed) if path is None else path)}
    bars = pd.DataFrame(
        {
            "row": [row_key(kind, t.stage) for t in shown],
            "lane": "compute",
            "kind": [t.action.kind for t in shown],
            "chunk": [t.action.chunk for t in shown],
            "microbatch": [t.action.microbatch for t in shown],
            "start_ns": [t.start * unit_ns for t in shown],
            "end_ns": [t.end * unit_ns for t in shown],
            "critical": [id(t) in on_path for t in shown],
        }
    )
    table = bars.drop(columns=["lane", "row"]).rename(columns={"start_ns": "start", "end_ns": "end"})
    table.insert(0, "stage", [t.stage for t in shown])
    rows = [Row(row_key(kind, stage), label) for stage, label in enumerate(labels)]
    return Panel(kind, rows, bars, bubble(timed, len(names)), makespan * unit_ns, table, len(names))


def row_key(kind: Kind, index: int) -> str:
    """The key of a row: by rank in a measured timeline, by stage elsewhere."""
    return f"{kind} {index}"


def _critical_chain(timed: Sequence[Timed]) -> list[Timed]:
    """The actions that the last pass to end waited for, and itself: the critical path."""
    passes = [i for i, t in enumerate(timed) if t.action.kind in WORK]
    at, found = max(passes, key=lambda i: timed[i].end), []
    while at >= 0:
        found.append(timed[at])
        at = timed[at].after
    return found


# ------------------------------------------------------------------------------------------------------------------ words


def _subject(panels: list[Panel], say: Words) -> str:
    if len(panels) > 1:
        return say("Pipeline, on one time axis")
    return {
        "measured": say("Pipeline, measured"),
        "projected": say("Pipeline, projected"),
        "textbook": say("Pipeline, textbook"),
    }[panels[0].kind]


def kinds(say: Words) -> dict[Kind, str]:
    return {"measured": say("measured"), "projected": say("projected"), "textbook": say("textbook")}


def _title(panel: Panel, say: Words, units: bool, slowed: Slowed | None, named: bool) -> str:
    share, makespan = percent(panel.bubble), f"{panel.makespan:g}" if units else in_time(panel.makespan)
    found = {"share": share, "makespan": makespan}
    if named:
        return say("{name}: bubble {share} of {makespan}", name=kinds(say)[panel.kind], **found)
    if panel.stages == 1 and units:
        return say("One stage, so no bubble")
    if panel.stages == 1:
        return say("One stage, so no bubble: {share} of {makespan} is between passes", **found)
    if slowed is None or panel.kind == "measured":
        if units:
            return say("The bubble takes {share} of {makespan} units of time", **found)
        return say("The bubble takes {share} of {makespan}", **found)
    slow = {"stage": slowed.stage, "factor": f"{slowed.factor:g}", "before": percent(slowed.bubble)}
    if units:
        return say(
            "With stage {stage} slowed {factor}×, the bubble takes {share} of {makespan} units of time; without, {before}",
            **slow,
            **found,
        )
    return say("With stage {stage} slowed {factor}×, the bubble takes {share} of {makespan}; without, {before}", **slow, **found)


def _reading(panel: Panel, say: Words, units: bool) -> str:
    if panel.kind == "measured":
        text = say(
            "Each row is a rank: thick bars compute, with their microbatch; thin bars beneath are collectives and transfers; the "
            "pale track is idle."
        )
        return say.together(text, _exposed(panel, say))
    if panel.kind == "projected":
        return say(
            "Projected: a row a stage, each action as long as the CPU time it took here, as if each rank had a device of its own "
            "and messages took no time."
        )
    parts = [say("Each row is a stage: F and B are the forward and backward pass of a microbatch, 1 and 2 units of time.")]
    if not units:
        parts = [say("Textbook: the same with a forward pass of 1 and a backward pass of 2 units, adding up to the same work.")]
    if "W" in set(panel.bars["kind"]):
        parts.append(say("I and W are the two halves of B, 1 unit each."))
    if panel.bars["chunk"].nunique() > len(panel.rows):
        parts.append(say("A stage runs several chunks; the second is paler."))
    return say.together(*parts)


def _exposed(panel: Panel, say: Words) -> str:
    """A sentence about communication that nothing hides. Empty if there is none."""
    shares = say(", ").join(f"{axis} {percent(share)}" for axis, share in panel.exposed.items())
    if not shares:
        return ""
    return say("Exposed communication, in which a rank does nothing else, takes of the step: {shares}.", shares=shares)


def _on_every_timeline(panel: Panel, say: Words) -> list[str]:
    if {"B", "I"}.isdisjoint(panel.bars["kind"]):
        return [say("Nothing is trained: F0 is the pass of the prompt, and each F after it that of one new token.")]
    found = [say("The bubble is 1 − busy ÷ (pp × makespan) of forward and backward, a share of total time.")]
    if panel.stages > 1:
        ideal = percent(panel.of_ideal)
        found.append(say("Papers that quote (p − 1) ÷ m mean idle ÷ busy, a share of the ideal time: here {ideal}.", ideal=ideal))
        found.append(say("Outlined: the critical path."))
    return found


def _in_window(bars: pd.DataFrame, window: Window | None, rows: int) -> tuple[pd.DataFrame, float | None]:
    """At most `MAX_BARS` bars of the window, and where they end. All bars and None if there are no more than that.

    Without a window, it takes the first part of the step, short enough for its bars to be distinguished.
    """
    if len(bars) <= MAX_BARS:
        return bars, None
    ordered = bars.sort_values("start_ns", kind="stable")
    if window is not None:
        ordered = ordered[(ordered["end_ns"] > window[0]) & (ordered["start_ns"] < window[1])]
    if window is not None and len(ordered) <= MAX_BARS:
        return ordered, window[1]
    first = ordered.head(MAX_BARS if window else min(MAX_BARS, _LEGIBLE * rows))
    return first, float(first["start_ns"].max())
