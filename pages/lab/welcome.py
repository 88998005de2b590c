"""The first thing that a new reader sees: what this is, and four ways in."""

from __future__ import annotations

import streamlit as st

from pages.shared import held, navigation, runbar
from pages.shared.frame import say
from pages.shared.generating import text_at_once
from pages.shared.service import EXAMPLE
from pages.shared.texts import Texts


def draw(texts: Texts) -> None:
    words = say()
    with st.container(key="welcome", gap="small"):
        st.markdown(
            "#### "
            + words(
                "Shardscope trains a Transformer as real processes on this machine and shows where every byte and every "
                "microsecond goes: first predicted, then measured."
            ),
            anchors=False,
        )
        run, text, plan, learn = st.columns(4, gap="medium")
        with run:
            st.button(
                words("See a finished run"),
                type="primary",
                icon=":material/monitoring:",
                on_click=_see_example,
                key="welcome/run",
            )
            st.caption(words("Eight processes: memory, traffic, timeline and loss, measured beside predicted."))
        with text:
            st.button(
                words("Generate text"),
                icon=":material/text_fields:",
                on_click=text_at_once,
                args=(texts,),
                key="welcome/text",
            )
            st.caption(words("Eight processes together are one trained model, which continues a sentence. Then press **Run**."))
        with plan:
            navigation.link("plan", words("Plan a model"), "map", {})
            st.caption(words("Which layouts of a large model fit on your devices, and how fast each one is."))
        with learn:
            navigation.link("learn", words("Learn"), "school", {})
            st.caption(words("Short lessons with live numbers, each with a question to answer before you look."))


def _see_example() -> None:
    """Show the run that comes with the program. A callback."""
    held.touch()
    st.query_params[runbar.RUN] = EXAMPLE
