"""Ways from one page to another, within one session: the link they leave in the address bar can be shared as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from pages.shared.frame import LANG

PageName = Literal["lab", "compare", "plan", "learn", "runs"]
_PAGES = "ways/pages"


def know(pages: Sequence[StreamlitPage]) -> None:
    """Note the session's pages, by the end of their address."""
    st.session_state[_PAGES] = {page.url_path or "lab": page for page in reversed(pages)}  # the Lab at its bare address


def link(to: PageName, label: str, icon: str, parameters: Mapping[str, str], disabled: bool = False) -> None:
    """A link to a page, with what its own link is to say. The language goes along."""
    if disabled:  # a link has no such state that all readers hear of, a button has
        st.button(label, icon=f":material/{icon}:", type="tertiary", disabled=True, key=f"ways/{to}/{icon}")
        return
    kept = {LANG: st.query_params[LANG]} if LANG in st.query_params else {}
    page = st.session_state[_PAGES][to]
    st.page_link(page, label=label, icon=f":material/{icon}:", query_params={**parameters, **kept})
