"""Learn: twelve short lessons with computed numbers. The link has the lesson, its values, and the reader's answer."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from pages.learn import glossary, predict, task
from pages.learn.lesson_state import LESSON, WITH, LessonState, moved, open_lesson, written
from pages.learn.lessons import LESSONS, TASKS
from pages.shared import frame
from pages.shared.service import Service

_UNREAD = "learn/unread"
_STYLE = Path(__file__).parent / "style.css"


def show(service: Service) -> None:
    st.html(_STYLE)
    state = _follow_link(service)
    if state.answer is not None:
        predict.done().add(state.number)
    contents, lesson = st.columns([1, 3.7], gap="large")
    with contents:
        _contents(state.number)
    with lesson, st.container(key="lesson", gap="small"):
        _lesson(state)
    state.write_link()


def _follow_link(service: Service) -> LessonState:
    """The lesson to show. The link wins, unless a control was moved just now: the link sent with it can be old."""
    number, code = st.query_params.get(LESSON, ""), st.query_params.get(WITH, "")
    held, held_code = written()
    if moved() and held:
        st.session_state.pop(_UNREAD, None)
        return _lesson_state(service, held)
    if held and not number:
        return _lesson_state(service, held)
    wanted = int(number) if number.isdecimal() and 1 <= int(number) <= len(LESSONS) else 1
    state = _lesson_state(service, wanted)
    if held and wanted == held and code == held_code:
        return state
    good = (not number or number == str(wanted)) and (not code or state.decode(code))
    st.session_state[_UNREAD] = not good
    return state


def _lesson_state(service: Service, number: int) -> LessonState:
    return LessonState(number, LESSONS[number - 1], service, task_knobs=TASKS[number].knobs if number in TASKS else ())


def _contents(current: int) -> None:
    """The list of lessons. Completed ones have a mark."""
    say, finished = frame.say(), predict.done()
    with st.container(key="contents", gap=None):
        st.markdown(f"##### {say('Lessons')}", anchors=False)
        for number, lesson in enumerate(LESSONS, start=1):
            mark = "check_circle" if number in finished else "radio_button_unchecked"
            with st.container(key=f"lesson-{'open' if number == current else 'other'}-{number}", gap=None):
                st.button(
                    f"{number}  {lesson.title(say)}",
                    key=f"learn/to/{number}",
                    type="tertiary",
                    icon=f":material/{mark}:",
                    width="stretch",
                    on_click=open_lesson,
                    args=(number,),
                )
        st.caption(
            say("{done} of {all} answered", done=len(finished), all=len(LESSONS))
            + " · "
            + say("{done} of {all} tasks solved", done=len(task.solved()), all=len(TASKS))
        )


def _lesson(state: LessonState) -> None:
    say, number = state.say, state.number
    if st.session_state.get(_UNREAD):
        st.warning(
            say("Part of this link could not be read; the lesson's defaults are used instead."), icon=":material/link_off:"
        )
    st.caption(say("Lesson {number} of {all}", number=number, all=len(LESSONS)))
    st.markdown(f"# {state.lesson.title(say)}", anchors=False)
    st.markdown(f"*{state.lesson.goal(say)}*", width=glossary.READABLE_PX)
    state.lesson.draw(state)
    predict.draw(state)
    tasks = st.container()
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        for step, icon in ((-1, ":material/arrow_back:"), (1, ":material/arrow_forward:")):
            if 1 <= number + step <= len(LESSONS):
                st.button(
                    LESSONS[number + step - 1].title(say),
                    key=f"learn/step/{step}",
                    icon=icon,
                    icon_position="left" if step < 0 else "right",
                    on_click=open_lesson,
                    args=(number + step,),
                )
    glossary.draw(say)
    # What may take seconds comes after all text.
    state.draw_later()
    if number in TASKS:
        with tasks:
            task.draw(state, TASKS[number])
