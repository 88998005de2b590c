"""The Run button. While a run is active: its progress and Cancel above it, and the button queues another run."""

from __future__ import annotations

import streamlit as st

from engine import catalog
from engine.launch.queue.run_queue import RunState
from engine.spec import RequestError
from pages.charts.names import schedule
from pages.charts.words import Words
from pages.shared import held
from pages.shared.choice import Verdict, read
from pages.shared.frame import inert, say, whole_sentence
from pages.shared.service import Service

RUN = "run"  # the link's parameter: the id of an active run, the folder's name of a saved one
_REFUSED = "run/refused"
_QUEUED = "run/queued"  # ids of this reader's runs that are not in the link and were not shown or dismissed
_SHOWN = "run/shown"  # whether another run was put into the link since the page was drawn
_EVERY_S = 0.5
# Shares of the bar. The steps take most of it, the phases after them the rest.
_SHARE = {"queued": 0.0, "starting": 0.0, "generating": 0.9, "tracing": 0.92, "parity": 0.94, "saving": 0.97}
_STEPS_SHARE = 0.9


def draw(service: Service, verdict: Verdict, state: RunState | None) -> None:
    """`state`: the state of the run that this session watches, or None."""
    st.session_state.pop(_SHOWN, None)
    with st.container(key="run_bar", gap="xsmall"):
        on = state is not None and not state.finished
        if state is not None and on:
            watch(service, state.id)
        _draw_queued(service)
        ranks = verdict.runnable.layout.ranks if verdict.runnable else 0
        reasons = [problem.sentence for problem in verdict.problems or verdict.refused]
        if verdict.runnable and (refusal := service.refusal(verdict.runnable)):
            reasons.append(refusal)
        label = say().plural("Run on {count} process", "Run on {count} processes", ranks) if ranks else say()("Run")
        if on and ranks:
            label = say().plural("Queue a run on {count} process", "Queue a run on {count} processes", ranks)
        st.button(
            label,
            type="secondary" if on else "primary",
            icon=":material/playlist_add:" if on else ":material/play_arrow:",
            width="stretch",
            disabled=bool(reasons),
            on_click=_start,
            args=(service, on),
            key="run/start",
        )
        refused = st.session_state.pop(_REFUSED, None)
        if reasons:
            text = inert(say().sentence(reasons[0]))
            if more := len(reasons) - 1:
                st.caption(say()("Cannot run yet: {sentence} (and {count} more).", sentence=text, count=more))
            else:
                st.caption(say()("Cannot run yet: {sentence}.", sentence=text))
        elif refused:
            st.error(say()("This run was refused: {error}.", error=inert(say().sentence(refused))))


def _start(service: Service, behind: bool) -> None:
    """Queue a run of the form's choice. `behind`: another is active, and stays in the link. A callback."""
    held.touch()
    choice = held.choice()
    assert choice
    spec = read(choice, service.texts, service.active()).runnable
    if spec is not None:
        try:
            run = service.submit(spec)
            if behind:
                st.session_state[_QUEUED] = [*st.session_state.get(_QUEUED, ()), run]
            else:
                st.query_params[RUN] = run
        except RequestError as error:
            st.session_state[_REFUSED] = error.sentence


@st.fragment(run_every=_EVERY_S)
def watch(service: Service, run: str) -> None:
    """Progress of a run: text and a bar. A chart would be redrawn at every poll."""
    state = service.queue.watch(run)
    if state is None or state.finished:
        st.rerun()
    st.progress(_progress(state), text=doing(state, service.queue.expected_wait(run), say()))
    may = service.may_end(state)
    st.button(say()("Cancel"), icon=":material/stop:", width="stretch", on_click=service.cancel, args=(run,), disabled=not may)


def _draw_queued(service: Service) -> None:
    """This reader's other runs, each until it is shown or dismissed."""
    states = _queued(service)
    if on := _unfinished(states):
        _follow_queued(service, on)
    else:
        _list_queued(service, states)


def _queued(service: Service) -> list[RunState]:
    known = [*st.session_state.get(_QUEUED, ()), *(state.id for state in service.unfinished())]  # after a reload, these alone
    watched = [service.queue.watch(run) for run in dict.fromkeys(known)]
    linked = st.query_params.get(RUN, "")
    left = [state for state in watched if state and linked not in (state.id, state.folder.name if state.folder else None)]
    st.session_state[_QUEUED] = [state.id for state in left]
    return left


@st.fragment(run_every=_EVERY_S)
def _follow_queued(service: Service, on: int) -> None:
    """`on`: how many were unfinished. If another number is, the button may be allowed now, and the page is drawn again."""
    states = _queued(service)
    if _unfinished(states) != on or st.session_state.get(_SHOWN):
        st.rerun()
    _list_queued(service, states)


def _unfinished(states: list[RunState]) -> int:
    return sum(not state.finished for state in states)


def _list_queued(service: Service, states: list[RunState]) -> None:
    for state in states:
        layout = state.spec.layout
        name = f"{catalog.name_of(state.spec.model)} · {layout.code} · {schedule(layout.schedule, say())}"
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            now = doing(state, service.queue.expected_wait(state.id), say())
            if state.phase == "cancelled":
                now = whole_sentence(state.message)
            st.markdown(f"{name}  \n{now}", width="stretch")
            # A callback runs even if the page is drawn again before this button's turn.
            st.button(say()("Show"), key=f"run/show/{state.id}", type="tertiary", on_click=_show, args=(service, state.id))
            if state.finished:
                st.button(say()("Dismiss"), key=f"run/dismiss/{state.id}", type="tertiary", on_click=_dismiss, args=(state.id,))
            else:
                may, key = service.may_end(state), f"run/end/{state.id}"
                end, args = service.cancel, (state.id,)
                st.button(say()("End"), key=key, type="tertiary", disabled=not may, on_click=end, args=args)


def _dismiss(run: str) -> None:
    st.session_state[_QUEUED] = [other for other in st.session_state[_QUEUED] if other != run]


def _show(service: Service, run: str) -> None:
    """Put the run into the link. One that was there and still goes on takes its place in the list, so that it stays watched.

    A callback.
    """
    linked = st.query_params.get(RUN, "")
    before = service.queue.watch(linked)
    if before is not None and not before.finished:
        st.session_state[_QUEUED] = [*st.session_state[_QUEUED], linked]
    st.query_params[RUN] = run
    st.session_state[_SHOWN] = True


def _progress(state: RunState) -> float:
    if state.phase == "running":
        return _STEPS_SHARE * state.step / state.spec.workload.steps
    return _SHARE.get(state.phase, 1.0)


def doing(state: RunState, wait_s: float | None, say: Words) -> str:
    """The current phase of the run, in a line. `wait_s`: how long it will wait; None if that is not known."""
    steps, ranks = state.spec.workload.steps, state.spec.layout.ranks
    if state.phase == "queued":
        waits = say.plural("Waiting: {count} run ahead in the queue", "Waiting: {count} runs ahead in the queue", state.ahead)
        return waits if wait_s is None else say.together(say("{sentence}.", sentence=waits), expected(wait_s, say))
    if state.phase == "starting":
        return say.plural("Starting {count} process", "Starting {count} processes", ranks)
    if state.phase == "running" and state.losses:
        loss = f"{state.losses[-1]:.3f}"
        return say("Step **{step}** of {steps}, loss **{loss}**", step=state.step, steps=steps, loss=loss)
    if state.phase == "running":
        return say("Step **{step}** of {steps}", step=state.step, steps=steps)
    doing = {
        "generating": say("Generating text"),
        "tracing": say("Measuring memory in one more step"),
        "parity": say("Comparing with the unsharded model"),
        "saving": say("Saving"),
        "done": say("Finished"),
        "failed": say("Failed"),
    }
    return doing.get(state.phase, state.phase.capitalize())


def expected(wait_s: float, say: Words) -> str:
    """How long a run will wait, no more precise than is known."""
    if wait_s < 10:
        return say("It starts in a few seconds.")
    if wait_s < 90:
        return say("It starts in about {seconds} s.", seconds=10 * round(wait_s / 10))
    return say("It starts in about {minutes} minutes.", minutes=round(wait_s / 60))
