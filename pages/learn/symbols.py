"""The symbols of the papers' formulas, with their values for a model."""

from __future__ import annotations

import streamlit as st

from engine.spec import ModelSpec
from pages.learn.lesson_state import LessonState


def draw(state: LessonState, model: ModelSpec, *shown: str, b: int = 1) -> None:
    """A line that names the symbols `shown`, as Korthikanti et al. 2022 do, where a lesson uses them first."""
    say = state.say
    known = {
        "s": (say("tokens in a sequence"), model.seq),
        "b": (say("sequences in a microbatch"), b),
        "h": (say("hidden size: numbers in a token’s vector"), model.hidden),
        "a": (say("attention heads"), model.heads),
        "L": (say("layers"), model.layers),
        "v": (say("words of the vocabulary"), model.vocab),
    }
    named = " · ".join(f"**{symbol}** {known[symbol][0]} ({known[symbol][1]:,})" for symbol in shown)
    st.caption(say("The names in the formulas: {named}.", named=named))
