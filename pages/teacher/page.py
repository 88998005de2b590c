"""The teacher's page of a class: who runs, who waits, who keeps how much; end runs, and clear the class's saved runs."""

from __future__ import annotations

from html import escape

import streamlit as st

from engine import store
from engine.launch.queue.run_queue import RunState
from pages.charts.words import Words
from pages.shared.classroom import Classroom, readable
from pages.shared.frame import inert, say
from pages.shared.runbar import doing
from pages.shared.service import Service

_EVERY_S = 2.0
_DONE = "teacher/done"


def show(service: Service) -> None:
    classroom = service.classroom
    assert classroom
    st.html(f"<h1>{escape(say()('The class'))}</h1>")
    rules = classroom.rules
    st.markdown(say()("The code of this class: **{code}**", code=readable(classroom.code)))
    st.caption(
        say()(
            "A run has at most {ranks} ranks and {seconds} s. Each person may have {runs} runs that wait or are active, and "
            "keeps up to {megabytes} MB.",
            ranks=rules.ranks,
            seconds=f"{rules.seconds:g}",
            runs=rules.runs,
            megabytes=rules.megabytes,
        )
    )
    if done := st.session_state.pop(_DONE, ""):
        st.success(done, icon=":material/check:")
    _runs(service)
    _people(service, classroom)


@st.fragment(run_every=_EVERY_S)
def _runs(service: Service) -> None:
    """The runs that are active and that wait, in their order."""
    found = service.queue.unfinished()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"### {say()('Active and waiting')}", anchors=False, width="content")
        ids = tuple(run.id for run in found)
        st.button(say()("End all"), icon=":material/stop:", disabled=not found, on_click=_end, args=(service, ids))
    if not found:
        st.caption(say()("Nobody runs or waits."))
    for run in found:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(_line(service, run, say()))
            st.button(say()("End"), key=f"teacher/end/{run.id}", type="tertiary", on_click=_end, args=(service, (run.id,)))


def _line(service: Service, run: RunState, say: Words) -> str:
    assert service.classroom
    name = inert(service.classroom.name_of(run.by) or say("unknown"))
    return say(
        "**{name}** · {layout} · {doing}",
        name=name,
        layout=inert(run.spec.layout.code),
        doing=doing(run, service.queue.expected_wait(run.id), say),
    )


def _people(service: Service, classroom: Classroom) -> None:
    words = say()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"### {words('Who has entered')}", anchors=False, width="content")
        with st.popover(words("Clear"), icon=":material/delete:"):
            st.markdown(
                words(
                    "Delete the saved runs of everybody but the teacher? "
                    "They can be restored from disk until their space is needed, for a day at most."
                )
            )
            st.button(words("Delete them"), type="primary", on_click=_clear, args=(service, classroom))
    rows = []
    for person, runs, kept in classroom.kept():
        named = words("{name} (teacher)", name=person.name) if person.teacher else person.name
        rows.append({words("Name"): named, words("Saved runs"): runs, words("MB"): round(kept / 1e6, 1)})
    st.dataframe(rows, hide_index=True, width="stretch")


def _end(service: Service, runs: tuple[str, ...]) -> None:
    for run in runs:
        service.cancel(run)


def _clear(service: Service, classroom: Classroom) -> None:
    students = {person.id for person in classroom.people() if not person.teacher}
    folders = [folder for folder in store.listing(service.home) if store.owner(folder) in students]
    service.refuse_change(folders)
    for folder in folders:
        store.delete(folder)
    st.session_state[_DONE] = say().plural("{count} run deleted.", "{count} runs deleted.", len(folders))
