"""Predict before you look: the formula or the run is shown after the reader has given an answer."""

from __future__ import annotations

import streamlit as st

from pages.learn.lesson_state import ANSWER, TURN, LessonState, note_move
from pages.learn.question import Question

_DONE = "learn/done"


def done() -> set[int]:
    """The lessons with an answered question in this session."""
    return st.session_state.setdefault(_DONE, set())


def draw(state: LessonState) -> None:
    say, question = state.say, state.question()
    with st.container(border=True, key="predict", gap="small"):
        st.markdown(f"#### :material/psychology_alt: {say('Predict before you look')}", anchors=False)
        st.markdown(question.asked)
        if state.answer is None:
            _ask(state, question)
        else:
            _reveal(state, question, state.answer)


def _ask(state: LessonState, question: Question) -> None:
    say, entry = state.say, state.key(f"entry-{state.turn}")
    with st.form(state.key("form"), border=False, enter_to_submit=True):
        if question.choices:
            labels = {choice.name: choice.label for choice in question.choices}
            st.radio(say("Your answer"), list(labels), key=entry, format_func=labels.__getitem__, index=None)
        else:
            label = say("Your answer ({unit})", unit=question.unit) if question.unit else say("Your answer")
            st.number_input(label, key=entry, value=None, width=260)
        st.form_submit_button(
            say("Commit"), type="primary", icon=":material/lock:", on_click=_commit, args=(state, entry, not question.choices)
        )
    if st.session_state.pop(state.key("nothing"), False):
        st.caption(say("Give an answer first; a guess is fine."))


def _commit(state: LessonState, entry: str, number: bool) -> None:
    given = st.session_state.get(entry)
    note_move()
    if given is None:
        state.put("nothing", True)
    else:
        state.put(ANSWER, float(given) if number else given)


def _reveal(state: LessonState, question: Question, answer: str | float) -> None:
    say = state.say
    labels = {choice.name: choice.label for choice in question.choices}
    given = _written(answer, question.unit) if isinstance(answer, float) else labels[answer]
    if question.right is None:
        st.info(say("You said: {given}.", given=given), icon=":material/lock:")
    elif question.judge(answer):
        st.success(say("Right: {said}. {why}", said=question.said, why=question.why), icon=":material/check_circle:")
    else:
        st.warning(
            say("You said {given}; it is {said}. {why}", given=given, said=question.said, why=question.why),
            icon=":material/lightbulb:",
        )
    question.reveal()
    another = len(state.lesson.questions) > 1
    st.button(
        say("Another question") if another else say("Answer again"),
        key=state.key("again"),
        icon=":material/refresh:",
        on_click=_next,
        args=(state,),
    )


def _written(number: float, unit: str) -> str:
    """ "16.6 GB", "29.8%", "15"."""
    return f"{number:,g}%" if unit == "%" else f"{number:,g} {unit}".strip()


def _next(state: LessonState) -> None:
    note_move()
    state.put(TURN, state.turn + 1)
    state.put(ANSWER, None)
