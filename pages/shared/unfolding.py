"""An expander that stays open or closed when its label changes, and whose content is drawn only when it is open."""

from __future__ import annotations

from typing import Literal

import streamlit as st
from streamlit.elements.lib.mutable_expander_container import ExpanderContainer


def unfolding(
    label: str, key: str, *, icon: str | None = None, type: Literal["default", "compact"] = "default"
) -> ExpanderContainer:
    """An expander. Draw its content only if `open` is true.

    Streamlit treats an expander with another label as another widget, which is closed. So its state is stored separately.
    """
    kept = f"unfolded/{key}"

    def moved() -> None:
        st.session_state[kept] = st.session_state[key]

    st.session_state[key] = st.session_state.get(kept, False)
    return st.expander(label, icon=icon, key=key, on_change=moved, type=type)
