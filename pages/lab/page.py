"""The Lab: choose a model and a layout, run it, and see its memory, its traffic and its timeline."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from engine import catalog
from engine.launch.queue.run_queue import RunState
from engine.spec import RequestError, RunSpec
from pages.lab import live, preview, result, welcome
from pages.shared import chosen, form, held, links, runbar
from pages.shared.choice import Choice, Verdict, read
from pages.shared.frame import inert, say, whole_sentence
from pages.shared.saved import load
from pages.shared.service import Service

SPEC = "spec"  # the link's parameter: the choice, as `links` writes it
_CODE, _BAD_LINK, _SHOWN, _FITTED = "lab/code", "lab/bad-link", "lab/shown", "lab/fitted"
_USUAL = links.encode(Choice.default())  # as the link of a reader who has chosen nothing


def show(service: Service) -> None:
    run = st.query_params.get(runbar.RUN, "")
    found = service.find(run) if run else None
    if isinstance(found, RunState) and found.folder is not None:
        found = found.folder
    if isinstance(found, Path) and found.name != run:  # a new server finds it too, and a renamed run has its new name
        st.query_params[runbar.RUN] = found.name

    choice = _follow_link(service, found)
    chosen.whole_page()
    verdict = read(choice, service.texts, service.active())
    with st.sidebar:
        form.draw(choice, service.texts, [*verdict.problems, *verdict.refused])
        runbar.draw(service, verdict, found if isinstance(found, RunState) else None)

    st.html(f'<h1 class="ss-unseen">{say()("Lab")}</h1>')
    if wrong := st.session_state.get(_BAD_LINK):
        st.warning(
            say().together(inert(say().sentence(wrong)), say()("The defaults are shown instead.")), icon=":material/link_off:"
        )
    if not run and _SHOWN not in st.session_state and st.session_state[_CODE] == _USUAL:
        welcome.draw(service.texts)
    live.scroll_up(run)
    _show_run_state(run, found)
    on = isinstance(found, RunState) and not found.finished
    if on:
        live.draw(service, run)
    _results_and_predictions(verdict, _shown(found), on)


def _results_and_predictions(verdict: Verdict, folder: Path | None, on: bool) -> None:
    """The result of a run first, if it is one of the form's choice; otherwise the predictions for the choice.

    `on`: another run is in progress, whose charts will appear.
    """
    measured = _measured(folder)
    first = verdict.spec is not None and preview.same_but_for_length(verdict.spec, measured)
    if folder is not None and first:
        result.head(folder)
    _preview(verdict.spec, measured)
    if folder is not None:
        if not first:
            result.head(folder)
        result.charts(folder)
    elif verdict.runnable is not None and not on:
        st.info(
            say()("Press **Run** at the left: one process per rank starts, trains and is measured. The charts appear here."),
            icon=":material/play_arrow:",
        )


def _preview(spec: RunSpec | None, measured: RunSpec | None) -> None:
    """Predictions for the form's choice. While it is invalid, the last valid one stays, and so does the scroll position."""
    if spec is not None:
        st.session_state[_FITTED] = spec
        preview.draw(spec, measured)
        return
    last: RunSpec | None = st.session_state.get(_FITTED)
    if last is None:
        st.info(
            say()(
                "Some settings are not compatible; the form at the left says which. The ranks are drawn when all are compatible."
            ),
            icon=":material/rule:",
        )
        return
    st.info(
        say()(
            "Some settings are not compatible; the form at the left says which. This still shows {model} on {layout}.",
            model=catalog.name_of(last.model),
            layout=last.layout.code,
        ),
        icon=":material/rule:",
    )
    with st.container(key="lab-last"):
        preview.draw(last, measured)


def _shown(found: RunState | Path | None) -> Path | None:
    """The run whose result the page shows: that in the link, or else the last one in this session."""
    if isinstance(found, Path):
        st.session_state[_SHOWN] = found
    return st.session_state.get(_SHOWN)


def _measured(folder: Path | None) -> RunSpec | None:
    """The spec of a result. None if there is none, or if it cannot be read."""
    try:
        return result.measured(folder).spec if folder is not None else None
    except RequestError:  # which showing the run tells
        return None


def _follow_link(service: Service, found: RunState | Path | None) -> Choice:
    """Make form and link equal, and return their choice.

    The link wins when a session starts and when the user edited it or went back. Otherwise the form wins. A control that was
    moved just now always wins: the link sent with it can be old.
    """
    code = st.query_params.get(SPEC, "")
    moved, choice = held.touched(), held.choice()
    if moved:
        st.session_state.pop(_BAD_LINK, None)
    elif choice is None or (code and code != st.session_state[_CODE]):
        try:
            choice = links.decode(code) if code else _default(service, found)
        except links.LinkError as error:
            st.session_state[_BAD_LINK] = error.sentence
            choice = Choice.default()
        held.put(choice)
    assert choice
    st.session_state[_CODE] = links.encode(choice)
    if code != st.session_state[_CODE]:
        st.query_params[SPEC] = st.session_state[_CODE]
    return choice


def _default(service: Service, found: RunState | Path | None) -> Choice:
    """The choice if the link has none: that of its run, or the default."""
    if isinstance(found, RunState):
        return Choice.of(found.spec, service.texts)
    try:
        return Choice.of(load(found).spec, service.texts) if found else Choice.default()
    except RequestError:  # which showing the run tells
        return Choice.default()


def _show_run_state(run: str, found: RunState | Path | None) -> None:
    """A message on the run in the link, if it has no result."""
    if run and found is None:
        st.warning(
            say()("The run in this link was not found: it was not saved, or it was saved on another machine."),
            icon=":material/link_off:",
        )
    elif isinstance(found, RunState) and found.phase == "failed":
        title = say()("The run failed")
        if found.failed_rank is not None:
            title = say()("Rank {rank} failed", rank=found.failed_rank)
        st.error(whole_sentence(found.message), title=title, icon=":material/error:")
        if found.traceback:
            with st.expander(say()("Traceback of this rank")):
                st.code(found.traceback, language="text")
    elif isinstance(found, RunState) and found.phase == "cancelled":
        done = say().plural(
            "It had finished {done} of {count} step; nothing was saved.",
            "It had finished {done} of {count} steps; nothing was saved.",
            found.spec.workload.steps,
            done=found.step,
        )
        st.info(say().together(whole_sentence(found.message), done), icon=":material/stop:")
