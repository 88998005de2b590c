"""The door of a class: asks for its code, and lets the browser remember who entered."""

from __future__ import annotations

from html import escape

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from engine.spec import RequestError
from pages.shared.classroom import REMEMBERED_S
from pages.shared.frame import inert, say
from pages.shared.service import COOKIE, Service

_CODE, _NAME, _WRONG = "entry/code", "entry/name", "entry/wrong"


def show(service: Service) -> None:
    """In place of every page, to whoever has not entered."""
    st.html(f"<h1>{escape(say()('Enter the class'))}</h1>")
    with st.form("entry", width=420):
        st.text_input(say()("Code of the class"), key=_CODE, max_chars=40, autocomplete="off")
        st.text_input(say()("Your name, as the teacher will see it"), key=_NAME, max_chars=40)
        st.form_submit_button(say()("Enter"), type="primary", on_click=_enter, args=(service,))
    if wrong := st.session_state.pop(_WRONG, ""):
        st.error(say()("{sentence}.", sentence=inert(say().sentence(wrong)[:1].upper() + say().sentence(wrong)[1:])))
    st.caption(say()("The teacher has the code. This computer remembers it for twelve hours."))


def _enter(service: Service) -> None:
    try:
        service.enter(st.session_state[_CODE], st.session_state[_NAME])
    except RequestError as error:
        st.session_state[_WRONG] = error.sentence


def remember(service: Service) -> None:
    """Have the browser keep the secret of this session, so that it need not enter again when the page is loaded anew."""
    if st.context.cookies.get(COOKIE) != service.secret:
        _keeper()(key="entry-keeper", data={"name": COOKIE, "secret": service.secret, "seconds": REMEMBERED_S})


@st.cache_resource(show_spinner=False)
def _keeper() -> ComponentRenderer:
    return st.components.v2.component(
        "shardscope.entry",
        html="<i></i>",
        js="""
            export default function ({ data }) {
                document.cookie = `${data.name}=${data.secret}; path=/; max-age=${data.seconds}; SameSite=Strict`;
            }
        """,
    )
