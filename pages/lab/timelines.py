"""The pipeline's timeline with its controls: which timeline is drawn, which part of the step, and a slow stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import streamlit as st

from engine.predict.spans import projected
from engine.schedule import in_flight, plan
from engine.schedule.timeline import MOST, Durations, Timeline, simulate, slowed, textbook_bubble, too_long
from engine.schedule.timeline import textbook as unit_times
from engine.spec import LayoutSpec, RequestError, RunSpec
from engine.tables import RunResult
from engine.topology import Mesh
from pages.charts import timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.roles import roles_of
from pages.charts.timeline import Panel, Slowed, Window
from pages.charts.units import Unit, percent
from pages.charts.words import Language, Words, words
from pages.lab.events import Event
from pages.shared import chosen, drawing
from pages.shared.cache import cached, cached_by_size
from pages.shared.frame import labelled, say, view
from pages.shared.pointing import pointed
from pages.shared.saved import by_run, load

Shown = Literal["measured", "projected", "textbook", "all"]
SHOWN: tuple[Shown, ...] = ("measured", "projected", "textbook", "all")
TIMELINE = "timeline"  # the link's parameter: which timeline of a run is drawn, if not the usual one
SLOW = {"textbook": "slow", "timeline": "slow-run"}  # the link's parameter of each timeline: 1x2.5 is stage 1, 2.5 times as slow
_SHOWN, _STAGE, _FACTOR = "timeline/shown", "{}/slow-stage", "{}/slow-factor"  # the last two exist for each timeline
_FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
_USUAL_FACTOR = 2.0
_SLOW_CODE = re.compile(r"(\d{1,5})x(\d(?:\.\d{1,2})?)", re.ASCII)


class Slow(NamedTuple):
    """One stage takes `factor` times as long."""

    stage: int = 0
    factor: float = 1.0


# ------------------------------------------------------------------------------------------------------------ on the page


def draw_run(folder: Path, result: RunResult, event: Event | None, note: str, shared: bool) -> None:
    """The timeline of a saved run. `event` is framed in it. Without training there is no schedule, so only the measured one.

    `shared`: ranks shared cores and slowed each other down, which `note` says. Then the projected timeline is shown first, unless
    the reader steps through what was measured.
    """
    mesh, trains = _mesh(result.spec.layout), not result.spec.generate.skip_training
    usual: Shown = "projected" if shared and event is None else "measured"
    shown, slow = _linked_shown(usual) if trains else "measured", _linked_slow("timeline", mesh.pp) or Slow()
    rank = chosen.rank(mesh)
    panels = of_run(folder, shown, slow, view().language)
    window = _brushed(run_overview(folder, shown, slow, view()), timeline.clock_of(panels[0], say()), "timeline")
    drawn = run(folder, shown, slow, rank, window, view())
    if event is not None:
        drawn = pointed(drawn, marks(panels, event, mesh))
    controls = [] if shown == "measured" or mesh.pp == 1 else [lambda: _pick_slow("timeline", mesh.pp)]
    controls += [lambda: _pick_shown(usual)] if trains else []
    note_shown = note if trains and shared and shown in ("measured", "all") else ""
    drawing.show(drawn, "timeline", *controls, note=note_shown, on_rank=chosen.choose)


def draw_textbook(spec: RunSpec, event: Event | None) -> None:
    """Before a run: the schedule in the textbook's units of time."""
    layout, microbatches = spec.layout, spec.workload.microbatches
    slow = _linked_slow("textbook", layout.pp) or Slow()
    # dp and tp do not change the timeline.
    shape = LayoutSpec(pp=layout.pp, schedule=layout.schedule, chunks=layout.chunks)
    if (reason := too_long(shape, microbatches)) is not None:
        _not_drawn(shape, microbatches, reason)
        return
    panel = of_shape(shape, microbatches, slow, view().language)
    strip = shape_overview(shape, microbatches, slow, view())
    window = _brushed(strip, timeline.clock_of(panel, say()), "textbook")
    drawn = textbook(shape, microbatches, slow, window, view())
    if event is not None:
        drawn = pointed(drawn, marks([panel], event, _mesh(layout)))
    drawing.show(drawn, "textbook", *([lambda: _pick_slow("textbook", layout.pp)] if layout.pp > 1 else []))


def _not_drawn(shape: LayoutSpec, microbatches: int, reason: str) -> None:
    """The closed form of the bubble, and why there is no timeline."""
    words = say()
    try:
        bubble = textbook_bubble(shape, microbatches)
        units = f"{3 * microbatches / (1 - bubble):g}"  # of each stage: three a microbatch, and the bubble
        title = words("The bubble takes {share} of {makespan} units of time", share=percent(bubble), makespan=units)
    except RequestError as error:
        title = words("Its bubble is not computed: {reason}", reason=words.sentence(error.sentence))
    drawing.heading(words("Pipeline, textbook"), title)
    st.caption(words("Its timeline is not drawn: {reason}.", reason=words.sentence(reason)))


def _linked_shown(usual: Shown) -> Shown:
    return next((known for known in SHOWN if known == st.query_params.get(TIMELINE)), usual)


def _linked_slow(key: str, stages: int) -> Slow | None:
    """The slow stage of the timeline `key` in the link. None if there is no such stage, or no such factor in `_FACTORS`."""
    found = _SLOW_CODE.fullmatch(st.query_params.get(SLOW[key], ""))
    slow = Slow(int(found[1]), float(found[2])) if found else None
    return slow if slow and slow.stage < stages and slow.factor in _FACTORS else None


def _pick_shown(usual: Shown) -> None:
    """The control for the timelines that are drawn."""
    st.session_state[_SHOWN] = _linked_shown(usual)
    named = timeline.kinds(say()) | {"all": say()("on one axis")}
    st.segmented_control(
        say()("Timeline"),
        SHOWN,
        key=labelled(_SHOWN),
        format_func=named.__getitem__,
        on_change=_shown_to_link,
        args=(usual,),
        required=True,
        label_visibility="collapsed",
    )


def _shown_to_link(usual: Shown) -> None:
    if st.session_state[_SHOWN] == usual:
        st.query_params.pop(TIMELINE, None)
    else:
        st.query_params[TIMELINE] = st.session_state[_SHOWN]


def _pick_slow(key: str, stages: int) -> None:
    """The controls beside the title: the slow stage, and its factor."""
    slow, stage, factor = _linked_slow(key, stages), _STAGE.format(key), _FACTOR.format(key)
    st.session_state[stage] = slow.stage if slow else None
    named = {index: say()("slow stage {stage}", stage=index) for index in range(stages)}
    st.selectbox(
        say()("Slow one stage"), range(stages), index=None, key=labelled(stage), format_func=named.__getitem__,
        placeholder=say()("slow a stage"), label_visibility="collapsed", width=160, on_change=_slow_to_link, args=(key,),
    )  # fmt: skip
    if slow:
        st.session_state[factor] = slow.factor
        st.select_slider(
            say()("Slowdown factor"), _FACTORS, key=factor, format_func="{:g}×".format, label_visibility="collapsed",
            width=200, on_change=_slow_to_link, args=(key,),
        )  # fmt: skip


def _slow_to_link(key: str) -> None:
    stage = st.session_state[_STAGE.format(key)]
    if stage is None:
        st.query_params.pop(SLOW[key], None)
    else:
        st.query_params[SLOW[key]] = f"{stage}x{st.session_state.get(_FACTOR.format(key), _USUAL_FACTOR):g}"


def _brushed(drawn: Drawing | None, clock: Unit, key: str) -> Window | None:
    """Show the strip of the whole step, if there is one. Returns the brushed interval in the panel's time."""
    if drawn is None:
        return None
    with st.container(key=f"drawing-{key}-overview", gap="xsmall"):
        drawing.heading(drawn.subject, drawn.title)
        state: Any = st.vega_lite_chart(
            drawn.spec, width="stretch", key=f"overview-{key}", on_select="rerun", selection_mode="window"
        )
        st.caption(drawn.reading)
    ends = state["selection"].get("window", {}).get("start")
    return None if not ends else (min(ends) * clock.size, max(ends) * clock.size)


# ------------------------------------------------------------------------------------------- cached by what is chosen


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=by_run())
def run(folder: Path, shown: Shown, slow: Slow, rank: int | None, window: Window | None, view: View) -> Drawing:
    style, result = look(view), load(folder)
    panels = of_run(folder, shown, slow, view.language)
    if rank is not None and panels[0].kind == "measured":
        mesh = _mesh(result.spec.layout)
        measured = timeline.measured_panel(result.tables["spans"], mesh, style.say, roles_of(mesh, rank))
        panels = [measured, *panels[1:]]
    before = None
    if slow.factor > 1 and shown in ("projected", "textbook"):
        before = Slowed(*slow, of_run(folder, shown, Slow(), view.language)[0].bubble)
    return drawing.packed(timeline.draw(panels, style, window, before))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=by_run())
def run_overview(folder: Path, shown: Shown, slow: Slow, view: View) -> Drawing | None:
    """The strip of the timeline that is drawn; if all three are drawn, of the measured one."""
    found = timeline.overview(of_run(folder, shown, slow, view.language)[0], look(view))
    return found and drawing.packed(found)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=by_run())
def of_run(folder: Path, shown: Shown, slow: Slow, language: Language) -> list[Panel]:
    """The timelines of a saved run that are drawn, in ns. The textbook's unit is scaled to the projection's total work."""
    result, say = load(folder), words(language)
    spec, spans = result.spec, result.tables["spans"]
    panels = []
    if shown in ("measured", "all"):
        panels.append(timeline.measured_panel(spans, _mesh(spec.layout), say))
    names = _stages(spec.layout, say)
    if shown in ("projected", "all"):
        found = _simulated(spec.layout, spec.workload.microbatches, projected(spec, spans), slow)
        panels.append(timeline.replayed_panel("projected", found.timed, names, say))
    if shown == "textbook":
        found = _simulated(spec.layout, spec.workload.microbatches, unit_times(spec.layout), slow)
        panels.append(timeline.replayed_panel("textbook", found.timed, names, say))
    elif shown == "all":
        real = _simulated(spec.layout, spec.workload.microbatches, projected(spec, spans), Slow())
        plain = _simulated(spec.layout, spec.workload.microbatches, unit_times(spec.layout), Slow())
        found = _simulated(spec.layout, spec.workload.microbatches, unit_times(spec.layout), slow)
        panels.append(timeline.replayed_panel("textbook", found.timed, names, say, sum(real.busy) / sum(plain.busy)))
    return panels


def _drawn_rows(drawn: Drawing) -> int:
    """Size for the cache: the rows of its table, and a constant for everything else."""
    return 2_000 + len(drawn.table)


def _bars(panel: Panel) -> int:
    """The same for a panel."""
    return 2_000 + len(panel.bars)


@cached_by_size(MOST, _drawn_rows)
def textbook(shape: LayoutSpec, microbatches: int, slow: Slow, window: Window | None, view: View) -> Drawing:
    """The choice's schedule in units of time. Labels have the stage and the most microbatches that it holds."""
    before = Slowed(*slow, of_shape(shape, microbatches, Slow(), view.language).bubble) if slow.factor > 1 else None
    panel = of_shape(shape, microbatches, slow, view.language)
    return drawing.packed(timeline.draw([panel], look(view), window, before))


@cached(32)
def shape_overview(shape: LayoutSpec, microbatches: int, slow: Slow, view: View) -> Drawing | None:
    found = timeline.overview(of_shape(shape, microbatches, slow, view.language), look(view))
    return found and drawing.packed(found)


@cached_by_size(MOST, _bars)
def of_shape(shape: LayoutSpec, microbatches: int, slow: Slow, language: Language) -> Panel:
    say = words(language)
    found = _simulated(shape, microbatches, unit_times(shape), slow)
    keeps = [in_flight(found.schedule, stage) for stage in range(shape.pp)]
    names = [say("stage {stage} · keeps {count} in flight", stage=stage, count=count) for stage, count in enumerate(keeps)]
    return timeline.replayed_panel("textbook", found.timed, names, say)


def _simulated(layout: LayoutSpec, microbatches: int, durations: Durations, slow: Slow) -> Timeline:
    return simulate(plan(layout, microbatches), slowed(durations, *slow) if slow.factor > 1 else durations)


def _stages(layout: LayoutSpec, say: Words) -> list[str]:
    """ "stage 0 · ranks 0–3"."""
    each = layout.mesh.stride("pp")
    if each == 1:
        return [say("stage {stage} · rank {rank}", stage=stage, rank=stage) for stage in range(layout.pp)]
    return [
        say("stage {stage} · ranks {first}–{last}", stage=stage, first=stage * each, last=(stage + 1) * each - 1)
        for stage in range(layout.pp)
    ]


def marks(panels: list[Panel], event: Event, mesh: Mesh) -> dict[str, list[dict[str, Any]]]:
    """The bars to frame, as rows to point at: the event in measured rows, its action in the others."""
    found: list[dict[str, Any]] = []
    for panel in panels:
        if panel.kind == "measured":
            if event.start is not None:
                row = timeline.row_key("measured", event.rank)
                found.append({"row": row, "start_ns": event.start, "end_ns": event.end})
            continue
        bars, action = panel.bars, event.action
        same = (bars["row"] == timeline.row_key(panel.kind, event.stage)) & (bars["kind"] == action.kind)
        same &= (bars["chunk"] == action.chunk) & (bars["microbatch"] == action.microbatch)
        rows = bars.loc[same, ["row", "start_ns", "end_ns"]].itertuples(index=False)
        found += [{"row": row, "start_ns": start, "end_ns": end} for row, start, end in rows]
    return {"marked": found}


def _mesh(layout: LayoutSpec) -> Mesh:
    return layout.mesh
