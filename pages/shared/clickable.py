"""HTML with buttons for ranks. `st.html` would draw them, but it reports no clicks."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer


def clickable(html: str, key: str, on_rank: Callable[[int], None]) -> None:
    """Draw `html`, and call `on_rank` before the next rerun when one of its buttons is pressed.

    The caller must have escaped `html`. A button has its rank in data-rank. The page's style applies.
    """
    mounted = f"clickable-{key}"

    def pressed() -> None:
        on_rank(int(st.session_state[mounted]["rank"]))

    _component()(key=mounted, data={"html": html}, on_rank_change=pressed)


@st.cache_resource(show_spinner=False)
def _component() -> ComponentRenderer:
    return st.components.v2.component(
        "shardscope.clickable",
        html='<div class="stHtml"></div>',
        isolate_styles=False,
        js="""
            export default function ({ parentElement, data, setTriggerValue }) {
                const place = parentElement.querySelector("div");
                if (place.shown !== data.html) {
                    // What had the focus keeps it, so that one can go on by keyboard.
                    const focused = place.querySelector("[data-rank]:focus")?.dataset.rank;
                    place.innerHTML = place.shown = data.html;
                    place.querySelector(`[data-rank="${focused}"]`)?.focus();
                }
                place.onclick = (event) => {
                    const button = event.target.closest("[data-rank]");
                    if (button) setTriggerValue("rank", Number(button.dataset.rank));
                };
            }
        """,
    )
