"""The state of a lesson: the values that its reader set, the controls that set them, and parts of its page.

The session has one entry for each knob. Their code in the link, such as pp-4~m-8~answer-0, is read when a session starts or the
user edited the link. Otherwise the link follows the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.charts.look import Look, View, look
from pages.charts.words import Words
from pages.learn.glossary import READABLE_PX, unfolding
from pages.learn.question import Knob, Question
from pages.shared.frame import view
from pages.shared.service import Service

LESSON, WITH = "lesson", "with"  # the link's parameters: the lesson's number, and its values
BETWEEN, ANSWER, TURN = "~", "answer", "turn"
_OPEN, _CODE = "learn/open", "learn/code"
_MOVED = "learn/moved"
_PART_PX = 400  # the least width of a part beside another


def moved() -> bool:
    """Whether the reader moved a control since the last call. Its value then wins over the link's."""
    return bool(st.session_state.pop(_MOVED, False))


def note_move() -> None:
    st.session_state[_MOVED] = True


@dataclass(frozen=True)
class Lesson:
    """`questions` are asked one after the other, the next when the reader wants another."""

    title: Callable[[Words], str]
    goal: Callable[[Words], str]
    knobs: tuple[Knob, ...]
    draw: Callable[[LessonState], None]
    questions: tuple[Callable[[LessonState], Question], ...]


def written() -> tuple[int | None, str | None]:
    """The lesson that is open, and the code of its values that was written into the link last."""
    return st.session_state.get(_OPEN), st.session_state.get(_CODE)


def open_lesson(number: int) -> None:
    st.session_state[_OPEN] = number
    note_move()


@dataclass(frozen=True)
class LessonState:
    """`task_knobs`: the settings of the lesson's task. The link has those that the reader moved."""

    number: int
    lesson: Lesson
    service: Service
    view: View = field(default_factory=view)
    task_knobs: tuple[Knob, ...] = ()
    _seen: set[str] = field(default_factory=set, compare=False, init=False)  # terms that unfold earlier on the page
    _later: list[tuple[DeltaGenerator, Callable[[], object]]] = field(default_factory=list, compare=False, init=False)

    @property
    def style(self) -> Look:
        return look(self.view)

    @property
    def say(self) -> Words:
        return self.style.say

    # ------------------------------------------------------------------------------------------------------ values

    def key(self, name: str) -> str:
        """The key of an entry in the session."""
        return f"learn/{self.number}/{name}"

    def knob(self, name: str) -> Knob:
        return next(knob for knob in (*self.lesson.knobs, *self.task_knobs) if knob.name == name)

    def __getitem__(self, name: str) -> Any:
        return st.session_state.setdefault(self.key(name), self.knob(name).default)

    def put(self, name: str, value: Any) -> None:
        st.session_state[self.key(name)] = value

    @property
    def turn(self) -> int:
        """The index of the current question."""
        return int(st.session_state.get(self.key(TURN), 0)) % len(self.lesson.questions)

    @property
    def answer(self) -> str | float | None:
        """The reader's answer; None before there is one."""
        return st.session_state.get(self.key(ANSWER))

    def question(self) -> Question:
        return self.lesson.questions[self.turn](self)

    def encode(self) -> str:
        moved = [knob for knob in self.task_knobs if self[knob.name] != knob.default]
        parts = [f"{knob.name}-{self[knob.name]}" for knob in (*self.lesson.knobs, *moved)]
        if self.turn:
            parts.append(f"{TURN}-{self.turn}")
        if self.answer is not None:
            given = self.answer
            parts.append(f"{ANSWER}-{given:g}" if isinstance(given, float) else f"{ANSWER}-{given}")
        return BETWEEN.join(parts)

    def decode(self, code: str) -> bool:
        """Set the values of a link. Returns whether all of it could be read.

        A setting of the task that the link does not have gets its first value. Other values do not change.
        """
        parts = dict(part.partition("-")[::2] for part in code.split(BETWEEN))
        turn, answer = parts.pop(TURN, "0"), parts.pop(ANSWER, None)
        for knob in self.task_knobs:
            self.put(knob.name, knob.default)
        knobs = (*self.lesson.knobs, *self.task_knobs)
        known = {knob.name: knob.read(parts.pop(knob.name)) for knob in knobs if knob.name in parts}
        for name, value in known.items():
            if value is not None:
                self.put(name, value)
        good = not parts and None not in known.values() and turn.isdecimal()
        self.put(TURN, int(turn) if turn.isdecimal() else 0)
        read = None if answer is None else self.question().read(answer)
        self.put(ANSWER, read)
        return good and (answer is None or read is not None)

    def write_link(self) -> None:
        """Write the lesson and its values into the page's link. All controls must have been drawn."""
        code = self.encode()
        st.session_state[_OPEN], st.session_state[_CODE] = self.number, code
        st.query_params[LESSON], st.query_params[WITH] = str(self.number), code

    # --------------------------------------------------------------------------------------------------------- controls

    def controls(self, *draw: Callable[[], Any]) -> None:
        """Controls side by side, up to four in a row."""
        with st.grid(columns=min(4, len(draw)), min_column_width=190, gap="medium", vertical_alignment="bottom") as grid:
            for one in draw:
                with grid.cell():
                    one()

    def side_by_side(self, *draw: Callable[[], object]) -> None:
        """Parts of a lesson in two columns, or one below the other on a narrow page."""
        with st.grid(columns=2, min_column_width=_PART_PX, gap="large") as grid:
            for part in draw:
                with grid.cell():
                    part()

    def slide(
        self, name: str, label: str, written: Callable[[Any], str] = str, options: Sequence[Any] | None = None
    ) -> Callable[[], Any]:
        """A slider over the knob's options, or over `options`, some of them."""
        options = options or self.knob(name).options
        if self[name] not in options:
            self.put(name, options[-1])
        return lambda: st.select_slider(
            label,
            options,
            key=self.key_with_value(name),
            format_func=written,
            on_change=note_move,
            persist_state="session",
        )

    def pick(self, name: str, label: str, written: Callable[[Any], str] = str) -> Callable[[], Any]:
        """A select box, for options with long names."""
        return lambda: st.selectbox(
            label,
            self.knob(name).options,
            key=self.key_with_value(name),
            format_func=written,
            on_change=note_move,
            persist_state="session",
        )

    def switch(self, name: str, label: str, written: Callable[[Any], str] = str) -> Callable[[], Any]:
        """Buttons side by side, for few options."""
        return lambda: st.segmented_control(
            label, self.knob(name).options, key=self.key_with_value(name), format_func=written, on_change=note_move,
            required=True, persist_state="session",
        )  # fmt: skip

    def key_with_value(self, name: str) -> str:
        """The knob's key. Sets its default if the session has no value."""
        _ = self[name]
        return self.key(name)

    # ------------------------------------------------------------------------------------------------------------- words

    def text(self, markdown: str) -> None:
        """A paragraph of readable width. Terms of the glossary unfold where the lesson has them first."""
        st.markdown(unfolding(markdown, self.say, self._seen), width=READABLE_PX, unsafe_allow_html=True)

    def later(self, draw: Callable[[], object]) -> None:
        """A place for what may take long, as where ledgers are recorded first. It is drawn when the page has all its text."""
        self._later.append((st.container(), draw))

    def draw_later(self) -> None:
        """Draw what has a place only. Whatever takes long says so in its place meanwhile."""
        for place, draw in self._later:
            with place, st.spinner(self.say("Predicting")):  # seen only after a moment
                draw()
        self._later.clear()

    def heading(self, words: str) -> None:
        st.markdown(f"#### {words}", anchors=False)

    def formula(self, name: str, symbols: str, numbers: str, value: str) -> None:
        """A formula with symbols, and again with numbers."""
        st.html(formulas([(name, symbols, numbers, value)]))


def formulas(rows: list[tuple[str, str, str, str]]) -> str:
    """HTML: each row is (name, formula with symbols, formula with numbers, value)."""
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(symbols)}</dd><dd>= {escape(numbers)}</dd>"
        f"<dd><b>= {escape(value)}</b></dd></div>"
        for name, symbols, numbers, value in rows
    )
    return f'<dl class="ss-formula">{lines}</dl>'
