"""A task of a lesson: a goal that the reader reaches with a few settings of a layout. The engine judges each choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from engine.planner.search import MIXED
from engine.spec import LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from pages.charts.look import Look
from pages.charts.units import in_bytes, percent, significant
from pages.charts.words import Words
from pages.learn.glossary import READABLE_PX
from pages.learn.lesson_state import LessonState
from pages.learn.outcome import Outcome, outcome, outcomes
from pages.learn.planned import overlap_caveat
from pages.learn.question import Knob

_SOLVED = "learn/solved"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One control of a task."""

    name: str
    label: Callable[[Words], str]
    options: Sequence[Any]
    first: Any  # its value before the reader moves it
    written: Callable[[Words, Any], str] = lambda say, value: f"{value:,}"

    @property
    def knob(self) -> Knob:
        """Its value in the session and in links, apart from the knobs of the lesson."""
        return Knob(f"task.{self.name}", self.options, self.first)


@dataclass(frozen=True)
class Goal:
    """One thing that a layout must have, whether it does, and the numbers."""

    met: bool
    said: str


@dataclass(frozen=True)
class Task:
    """`spec`: the layout of the reader's values; it raises `RequestError` if they do not go together. `goals`: what is asked of
    it. `hints`: opened one by one. `zero`: the stage of ZeRO if no setting chooses it. The first values do not solve a task.
    """

    device: str
    asked: Callable[[Words], str]
    settings: tuple[Setting, ...]
    spec: Callable[[Values], RunSpec]
    goals: Callable[[Task, Outcome, Words], list[Goal]]
    hints: tuple[Callable[[Words], str], ...]
    zero: int = 0

    @property
    def first(self) -> dict[str, Any]:
        return {setting.name: setting.first for setting in self.settings}

    @property
    def knobs(self) -> tuple[Knob, ...]:
        return tuple(setting.knob for setting in self.settings)

    def choices(self) -> list[dict[str, Any]]:
        """Every combination of values that makes a layout."""
        names = [setting.name for setting in self.settings]
        found = []
        for values in product(*(setting.options for setting in self.settings)):
            choice = dict(zip(names, values, strict=True))
            try:
                self.spec(choice)
            except RequestError:
                continue
            found.append(choice)
        return found

    def fastest(self) -> float:
        """Seconds of a step of the fastest choice that fits."""
        by_workload: dict[str, list[RunSpec]] = {}
        for choice in self.choices():
            spec = self.spec(choice)
            alike = spec.workload.model_dump_json(exclude={"microbatches", "microbatch_size"})
            by_workload.setdefault(alike, []).append(spec)
        found = [one for specs in by_workload.values() for one in outcomes(specs, self.device)]
        return min(one.step_s for one in found if one.fits)


def spec(
    model: ModelSpec, sequences: int, *, dp: int, size: int, workload: Mapping[str, Any] | None = None, **layout: Any
) -> RunSpec:
    """The spec of `sequences` a step in microbatches of `size`, with a search's workload. Raises `RequestError`."""
    microbatches = max(1, sequences // (dp * size))
    given = MIXED.model_dump() | dict(workload or {}) | {"microbatches": microbatches, "microbatch_size": size}
    return RunSpec(model=model, layout=LayoutSpec(dp=dp, **layout), workload=WorkloadSpec.model_validate(given))


# -------------------------------------------------------------------------------------------------------------- goals


def fits(found: Outcome, say: Words) -> Goal:
    if found.fits:
        return Goal(True, say("It fits: {needs} of {holds}.", needs=in_bytes(found.needs), holds=in_bytes(found.holds)))
    return Goal(
        False,
        say(
            "It does not fit: the fullest rank needs {needs} of {holds}, {more} too much.",
            needs=in_bytes(found.needs),
            holds=in_bytes(found.holds),
            more=in_bytes(found.needs - found.holds),
        ),
    )


def talks_little(found: Outcome, most: float, say: Words) -> Goal:
    return Goal(
        found.communication <= most,
        say(
            "Communication that is not hidden takes {share} of a step; at most {most} is wanted.",
            share=percent(found.communication),
            most=percent(most),
        ),
    )


def not_in_full(found: Outcome, say: Words) -> Goal:
    if found.recompute == "full":
        return Goal(False, say("All layers are computed again; no full recomputation is wanted."))
    return Goal(True, say("There is no full recomputation."))


def is_fast(task: Task, found: Outcome, slack: float, say: Words) -> Goal:
    """Near to the fastest choice that fits."""
    least = fastest(task)
    return Goal(
        found.step_s <= (1 + slack) * least,
        say(
            "A step takes {seconds} s; at most {most} s is wanted, {slack} over the fastest that fits.",
            seconds=significant(found.step_s),
            most=significant((1 + slack) * least),
            slack=percent(slack),
        ),
    )


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs={Task: hash})
def fastest(task: Task) -> float:
    """Takes seconds at first. There are few tasks, each made once for the process, so the hash of its fields is its key."""
    return task.fastest()


# --------------------------------------------------------------------------------------------------------------- page


def solved() -> set[int]:
    """The lessons whose task was solved in this session."""
    return st.session_state.setdefault(_SOLVED, set())


@st.fragment
def draw(state: LessonState, task: Task) -> None:
    """The task, its controls, what the engine says of the choice, and hints."""
    say = state.say
    with st.container(border=True, key="task", gap="small"):
        st.markdown(f"#### :material/target: {say('Task')}", anchors=False)
        st.markdown(task.asked(say), width=READABLE_PX)
        state.controls(*(_control(state, setting) for setting in task.settings))
        values = {setting.name: state[setting.knob.name] for setting in task.settings}
        state.write_link()  # a fragment's rerun does not reach the end of the page
        with st.spinner(say("Comparing all choices of the task")):  # for a while when the task is first shown
            goals = judged(task, values, say)
        _goals()(key=state.key("goals"), data={"html": _listed(goals, state.style)})
        if values.get("zero", task.zero) == 3:
            st.caption(overlap_caveat(say), width=READABLE_PX)
        if all(goal.met for goal in goals):
            st.success(say("Solved. Other choices may do it too: try one."), icon=":material/check_circle:")
            if state.number not in solved():
                solved().add(state.number)
                st.rerun()  # the list of lessons has a mark for it
        _hints(state, task)


def judged(task: Task, values: Values, say: Words) -> list[Goal]:
    """The goals of a choice. If it makes no layout, there is one goal, with the reason."""
    try:
        made = task.spec(values)
    except RequestError as error:
        return [Goal(False, say("This does not go together: {reason}.", reason=say.sentence(error.sentence)))]
    return task.goals(task, outcome(made, task.device), say)


def _control(state: LessonState, setting: Setting) -> Callable[[], Any]:
    say, key = state.say, state.key_with_value(setting.knob.name)
    return lambda: st.select_slider(
        setting.label(say),
        setting.options,
        key=key,
        format_func=lambda value: setting.written(say, value),
        persist_state="session",
    )


def _listed(goals: list[Goal], style: Look) -> str:
    """HTML: an item for each goal."""
    lines, say = "", style.say
    for goal in goals:
        colour = style.green if goal.met else style.orange
        word = say("met") if goal.met else say("not met")
        lines += f'<li style="border-color:{colour}"><b>{word}</b> {escape(goal.said)}</li>'
    return lines


@st.cache_resource(show_spinner=False)
def _goals() -> ComponentRenderer:
    """A list that stays in the page when its lines change, so that screen readers say what is new."""
    return st.components.v2.component(
        "shardscope.goals",
        html='<ul class="ss-goals" aria-live="polite"></ul>',
        isolate_styles=False,
        js="""
            export default function ({ parentElement, data }) {
                const list = parentElement.querySelector("ul");
                if (list.told === data.html) return;
                list.told = data.html;
                list.innerHTML = data.html;
            }
        """,
    )


def _hints(state: LessonState, task: Task) -> None:
    say, key, count = state.say, state.key("hints"), len(task.hints)
    opened = int(st.session_state.setdefault(key, 0))
    for number, hint in enumerate(task.hints[:opened], start=1):
        st.markdown(say("**Hint {number}.** {hint}", number=number, hint=hint(say)), width=READABLE_PX)
    if opened < count:
        st.button(
            say("Show hint {number} of {count}", number=opened + 1, count=count),
            key=state.key("hint"),
            icon=":material/lightbulb:",
            on_click=state.put,
            args=("hints", opened + 1),
        )
