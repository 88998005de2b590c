"""A part of a page that is drawn when it is unfolded, and stays as it is when its label changes."""

from __future__ import annotations

from typing import Literal

import streamlit as st
from streamlit.elements.lib.mutable_expander_container import ExpanderContainer


def unfolding(
    label: str, key: str, *, icon: str | None = None, type: Literal["default", "compact"] = "default"
) -> ExpanderContainer:
    """An expander, to be drawn in where its `open` says so.

    To Streamlit an expander with another label is another one, closed at first; so whether this one is open is kept apart.
    """
    kept = f"unfolded/{key}"

    def moved() -> None:
        st.session_state[kept] = st.session_state[key]

    st.session_state[key] = st.session_state.get(kept, False)
    return st.expander(label, icon=icon, key=key, on_change=moved, type=type)
