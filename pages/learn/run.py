"""A real run that a lesson starts and watches, and its measured numbers."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from engine.launch.queue.run_queue import RunState
from engine.spec import RequestError, RunSpec
from engine.tables import RunResult
from pages.charts import beside
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.learn.lesson_state import LessonState, note_move
from pages.shared import drawing, runbar
from pages.shared.frame import whole_sentence
from pages.shared.predicted import predicted
from pages.shared.saved import by_run, load

_REFUSED = "learn/refused"


def result(state: LessonState, spec: RunSpec) -> RunResult | None:
    """The result of the run in the link, if it is a completed run of `spec`."""
    found = _found(state)
    if isinstance(found, RunState):
        found = found.folder
    if found is None:
        return None
    try:
        loaded = load(found)
    except RequestError:  # the link has no complete run: `draw` offers a new one
        return None
    st.query_params[runbar.RUN] = found.name  # a new server finds it too
    return loaded if _same(loaded.spec, spec) else None


def _same(one: RunSpec, other: RunSpec) -> bool:
    """Whether two specs give the same numbers. Their time limits do not matter."""
    return (one.model, one.layout, one.workload.microbatches) == (other.model, other.layout, other.workload.microbatches)


def _found(state: LessonState) -> RunState | Path | None:
    run = st.query_params.get(runbar.RUN, "")
    return state.service.find(run) if run else None


def draw(state: LessonState, spec: RunSpec) -> None:
    """The button that starts the run, its progress while it is active, and its measured numbers."""
    say, found = state.say, _found(state)
    if done := result(state, spec):
        _measured(state, done)
        return
    if isinstance(found, RunState) and not found.finished:
        with st.container(key="lesson-run", gap="xsmall"):
            runbar.watch(state.service, found.id)
        return
    if isinstance(found, RunState) and found.phase == "failed":
        st.error(say.sentence(found.message), icon=":material/error:")
    elif isinstance(found, RunState) and found.phase == "cancelled":
        st.info(whole_sentence(found.message), icon=":material/stop:")
    if refused := st.session_state.pop(_REFUSED, None):
        st.error(say("This run was refused: {reason}.", reason=say.sentence(refused)), icon=":material/error:")
    label = say("Run it: {count} processes on this machine", count=spec.layout.ranks)
    st.button(label, type="primary", icon=":material/play_arrow:", key=state.key("start"), on_click=_start, args=(state, spec))
    st.caption(
        say("It trains for {steps} steps and takes a few seconds. You can leave the lesson meanwhile.", steps=spec.workload.steps)
    )


def _start(state: LessonState, spec: RunSpec) -> None:
    note_move()
    try:
        st.query_params[runbar.RUN] = state.service.submit(spec)
    except RequestError as error:
        st.session_state[_REFUSED] = error.sentence


def _measured(state: LessonState, done: RunResult) -> None:
    """The Lab's charts of the saved run."""
    say = state.say
    name = st.query_params[runbar.RUN]
    folder = state.service.saved(name)
    assert folder is not None
    with st.grid(columns=2, min_column_width=430, gap="medium") as grid:
        with grid.cell():
            drawing.show(_peak(folder, state.view), "lesson-peak")
        with grid.cell():
            drawing.show(_kinds(folder, state.view), "lesson-kinds")
    state.text(
        say(
            "Peak memory was predicted as well: the largest error on any rank is **{error}**.",
            error=f"{100 * memory_error(done):.3f}%",
        )
    )
    if as_predicted(done):
        state.text(say("The traffic that was measured is the traffic that was predicted: equal **to the byte and to the call**."))
    if "parity_max_rel" in done.summary:
        state.text(
            say(
                "And it computed the right thing: compared with the model on one device, the largest difference of any "
                "gradient is **{worst}** of that gradient’s largest entry.",
                worst=f"{done.summary['parity_max_rel']:.1e}",
            )
        )


def memory_error(done: RunResult) -> float:
    """The largest relative error of a rank's predicted peak."""
    peak = done.tables["memory_peak"]
    says = predicted(done.spec).tables["memory_peak"]
    formula = peak["rank"].map(says.groupby("rank")["bytes"].sum())
    measured = peak.groupby("rank")["bytes"].transform("sum")
    return float(((formula - measured) / measured).abs().max())


def as_predicted(done: RunResult) -> bool:
    """Whether predicted and measured traffic are equal, for every rank and purpose."""
    keys = ["rank", "axis", "collective", "phase"]
    amounts = ["calls", "payload_bytes", "wire_bytes"]
    measured, formula = (
        table.groupby(keys)[amounts].sum().sort_index()
        for table in (done.tables["traffic"], predicted(done.spec).tables["traffic"])
    )
    return measured.equals(formula)


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=by_run())
def _peak(folder: Path, view: View) -> Drawing:
    run = load(folder)
    formula = predicted(run.spec).tables["memory_peak"]
    return drawing.packed(beside.memory(run.tables["memory_peak"], formula, None, "", look(view)))


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=by_run())
def _kinds(folder: Path, view: View) -> Drawing:
    run = load(folder)
    formula = predicted(run.spec).tables["traffic"]
    return drawing.packed(beside.traffic(run.tables["traffic"], formula, run.spec.layout.ranks, "wire", None, look(view)))
