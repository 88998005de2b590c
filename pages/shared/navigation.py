"""Links between pages within a session. Their addresses can be shared like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from pages.shared.frame import LANG

PageName = Literal["lab", "compare", "plan", "learn", "runs"]
_PAGES = "navigation/pages"


def register(pages: Sequence[StreamlitPage]) -> None:
    """Store the session's pages, by the last part of their address."""
    st.session_state[_PAGES] = {page.url_path or "lab": page for page in reversed(pages)}  # the Lab, at /


def link(to: PageName, label: str, icon: str, parameters: Mapping[str, str], disabled: bool = False) -> None:
    """A link to a page with query parameters. The language stays the same."""
    if disabled:  # unlike a link, a disabled button is announced as disabled by screen readers
        st.button(label, icon=f":material/{icon}:", type="tertiary", disabled=True, key=f"navigation/{to}/{icon}")
        return
    kept = {LANG: st.query_params[LANG]} if LANG in st.query_params else {}
    page = st.session_state[_PAGES][to]
    st.page_link(page, label=label, icon=f":material/{icon}:", query_params={**parameters, **kept})
