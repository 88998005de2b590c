"""Step through: one microbatch's way through a step, an event at a time, told in words and marked in the charts."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import NamedTuple

import streamlit as st

from engine.spec import RunSpec
from pages.charts.look import Look, lane, look
from pages.charts.words import Words
from pages.lab.events import Event, Way
from pages.lab.sentences import headline, sentences
from pages.shared import chosen, drawing, frame

WALK = "walk"  # the link's parameter: microbatch.event, or microbatch.event.replica.slice
_MICROBATCH, _EVENT, _DP, _TP = "walk/microbatch", "walk/event", "walk/dp", "walk/tp"
_BEFORE, _AFTER = 2, 20  # events listed around the one that is told
_MOST_LISTED = 1_024  # in a list to choose from, which is sent whole; of more, the number is written
_CODE = re.compile(r"(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5})\.(\d{1,5}))?")

Events = Callable[[Way], list[Event]]


class Step(NamedTuple):
    """Where the walk is: at `events[at]` of `way`."""

    way: Way
    at: int
    events: list[Event]

    @property
    def event(self) -> Event:
        return self.events[self.at]


def current(spec: RunSpec, events: Events) -> Step | None:
    """The event that the link points at; None as long as nobody walks. What is not there becomes the nearest that is."""
    found = _CODE.fullmatch(st.query_params.get(WALK, ""))
    return _step(spec, events, [int(part or 0) for part in found.groups()]) if found else None


def draw(spec: RunSpec, events: Events, in_units: bool) -> None:
    """The event in words, and controls that go on to another. `in_units`: its times are the textbook's, nothing has run yet."""
    say, step = frame.say(), current(spec, events)
    walking = step is not None
    step = step or _step(spec, events, [0, 0, 0, 0])
    with st.container(key="walk", gap="xsmall"):
        named = {"microbatch": step.way.microbatch, "number": step.at + 1, "count": len(step.events)}
        title = say("Microbatch {microbatch}, event {number} of {count}: {event}", event=headline(step.event, say), **named)
        style = look(frame.view())
        told, read = _told(step, spec, say, style, in_units), _read(walking, in_units, say)
        if not walking:
            st.html(drawing.heading_html(say("Step through"), title) + told + read)
            _button_on(spec, events, step, say)
        else:  # style.css keeps it in view from here on, so it is no higher than need be
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                drawing.heading(say("Step through"), title)
                _slider(spec, events, step, say)
                st.button(say("Stop"), icon=":material/close:", on_click=_stop, key="walk/stop", type="tertiary")
            st.html(told + _chips(step, say, style))
            _controls(spec, events, step, say)
    if walking:
        st.html(read)


def _read(walking: bool, in_units: bool, say: Words) -> str:
    told = say("What happens to one microbatch, each event after all that it needs; what is done once a step comes at the end.")
    more = say("As measured.") if not in_units else say("Nothing has run yet: times are the textbook's, bytes predicted.")
    if not walking:
        more += " " + say("Press Next, and each event is marked in the charts as well.")
    return f'<p class="ss-read">{escape(f"{told} {more}")}</p>'


def _step(spec: RunSpec, events: Events, asked: list[int]) -> Step:
    microbatch, at, dp, tp = asked
    layout = spec.layout
    way = Way(min(microbatch, spec.workload.microbatches - 1), min(dp, layout.dp - 1), min(tp, layout.tp - 1))
    found = events(way)
    return Step(way, min(at, len(found) - 1), found)


def _controls(spec: RunSpec, events: Events, step: Step, say: Words) -> None:
    """Widgets take their values from the link and write them back to it, so that it always says where the walk is."""
    st.session_state.update({_MICROBATCH: step.way.microbatch, _DP: step.way.dp, _TP: step.way.tp})
    ways = (
        (_MICROBATCH, say("Microbatch"), spec.workload.microbatches, lambda n: say("microbatch {number}", number=n)),
        (_DP, say("Replica (dp)"), spec.layout.dp, lambda n: say("replica {number}", number=n)),
        (_TP, say("Slice (tp)"), spec.layout.tp, lambda n: say("slice {number}", number=n)),
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button(
            say("Previous"), icon=":material/chevron_left:", disabled=step.at == 0, on_click=_go,
            args=(spec, events, *step.way, step.at - 1), key="walk/previous", shortcut="P",
        )  # fmt: skip
        _button_on(spec, events, step, say)
        for key, label, count, named in ways:
            if count > _MOST_LISTED:
                st.number_input(label, 0, count - 1, key=key, on_change=_moved, args=(spec, events, step), width=142)
            elif count > 1:
                st.selectbox(
                    label, range(count), key=frame.labelled(key), format_func=named, on_change=_moved,
                    args=(spec, events, step), label_visibility="collapsed", width=142,
                )  # fmt: skip


def _slider(spec: RunSpec, events: Events, step: Step, say: Words) -> None:
    if len(step.events) > 1:
        st.session_state[_EVENT] = step.at + 1
        st.slider(
            say("Event"), 1, len(step.events), key=_EVENT, on_change=_moved, args=(spec, events, step),
            label_visibility="collapsed", width=240,
        )  # fmt: skip


def _button_on(spec: RunSpec, events: Events, step: Step, say: Words) -> None:
    """All that there is before one walks."""
    st.button(
        say("Next"), icon=":material/chevron_right:", icon_position="right", disabled=step.at == len(step.events) - 1,
        on_click=_go, args=(spec, events, *step.way, step.at + 1), key="walk/next", type="primary", shortcut="N",
    )  # fmt: skip


def _go(spec: RunSpec, events: Events, microbatch: int, dp: int, tp: int, at: int) -> None:
    """Put the event into the link, and choose its rank, so that all charts show it."""
    step = _step(spec, events, [microbatch, at, dp, tp])
    way = step.way
    st.query_params[WALK] = f"{way.microbatch}.{step.at}" + (f".{way.dp}.{way.tp}" if way.dp or way.tp else "")
    if chosen.rank(spec.layout.mesh) != step.event.rank:
        chosen.choose(step.event.rank)


def _stop() -> None:
    """A callback. The rank stays chosen."""
    st.query_params.pop(WALK, None)


def _moved(spec: RunSpec, events: Events, shown: Step) -> None:
    """A slider or a list was moved: they hold where to go.

    A browser also tells of a slider that was drawn anew because there are other events now; nobody moved that.
    """
    asked = *(st.session_state.get(key, 0) for key in (_MICROBATCH, _DP, _TP)), max(0, st.session_state.get(_EVENT, 1) - 1)
    if asked != (*shown.way, shown.at):
        _go(spec, events, *asked)


def _told(step: Step, spec: RunSpec, say: Words, style: Look, in_units: bool) -> str:
    """The sentences: the first large, the others beneath. Read aloud when they change."""
    first, *others = sentences(step.event, spec, say, in_units)
    rest = f"<span>{escape(' '.join(others))}</span>" if others else ""
    return f'<div class="ss-told" role="status" style="--stage:{_colour(step.event, style)}"><p>{escape(first)}</p>{rest}</div>'


def _chips(step: Step, say: Words, style: Look) -> str:
    """The events around the one that is told, in a row that ends where the page does, in the colours of the timeline."""
    first = max(0, step.at - _BEFORE)
    shown = step.events[first : step.at + _AFTER]
    chips = []
    for i, event in enumerate(shown, first):
        here = ' aria-current="step"' if i == step.at else ""
        text = escape(headline(event, say))
        chips.append(f'<li style="--stage:{_colour(event, style)}"{here}>{text}</li>')
    label = escape(say("Events of this microbatch"))
    return f'<ol class="ss-walk" start="{first + 1}" aria-label="{label}">{"".join(chips)}</ol>'


def _colour(event: Event, style: Look) -> str:
    """The colour that the event has in the timeline."""
    kind = event.passed.collective if event.is_call and event.passed else event.action.kind
    return style.lane[lane(kind)]
