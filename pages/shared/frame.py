"""What is around every page: title, icon, and the few rules of style that Streamlit's settings cannot express."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.charts.look import Theme, View
from pages.charts.words import Words, words

_HERE = Path(__file__).parent
_SIDEBAR_WIDTH = 432  # pixels: the least in which three number fields in a row keep their buttons


def frame() -> None:
    st.set_page_config(
        page_title="Shardscope", page_icon=str(_HERE / "icon.svg"), layout="wide", initial_sidebar_state=_SIDEBAR_WIDTH
    )
    st.html(_HERE / "style.css")
    logo = str(_HERE / f"logo-{theme()}.svg")
    st.logo(logo, size="large", icon_image=logo)


def follow_theme() -> None:
    """Run the page anew when the reader changes the theme, so that charts take its colours; Streamlit does not."""
    _theme_watch()(key="theme", on_changed_change=lambda: None)


def theme() -> Theme:
    """The theme that this browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"


def view() -> View:
    """How this browser's reader sees the page."""
    return View(theme(), "en")


def say() -> Words:
    """The words of this reader's language."""
    return words(view().language)


@st.cache_resource(show_spinner=False)
def _theme_watch() -> ComponentRenderer:
    """An element as large as nothing, whose background fades to the new theme's: the end of that is the event."""
    return st.components.v2.component(
        "shardscope.theme",
        html="<i></i>",
        css="i { position: absolute; background: var(--st-background-color); transition: background 10ms; }",
        js="""
            export default function ({ parentElement, setTriggerValue }) {
                const probe = parentElement.querySelector("i");
                probe.ontransitionend = () => setTriggerValue("changed", getComputedStyle(probe).backgroundColor);
            }
        """,
    )
