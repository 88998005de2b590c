"""Step through: the path of one microbatch through a step, one event at a time, in words and as marks in the charts."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import NamedTuple

import streamlit as st

from engine.spec import RunSpec
from pages.charts.look import Look, lane, look
from pages.charts.words import Words
from pages.lab.events import Event, MicrobatchPath
from pages.lab.sentences import headline, sentences
from pages.shared import chosen, drawing, frame

WALK = "walk"  # the link's parameter: microbatch.event, or microbatch.event.replica.slice
_MICROBATCH, _EVENT, _DP, _TP = "walk/microbatch", "walk/event", "walk/dp", "walk/tp"
_BEFORE, _AFTER = 2, 20  # events listed before and after the current one
_MOST_LISTED = 1_024  # entries of a select box, which is sent whole; for more, a number field
_CODE = re.compile(r"(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5})\.(\d{1,5}))?")

Events = Callable[[MicrobatchPath], list[Event]]


class Step(NamedTuple):
    """The current event of the walk: `events[at]`, of the microbatch `path`."""

    path: MicrobatchPath
    at: int
    events: list[Event]

    @property
    def event(self) -> Event:
        return self.events[self.at]


def current(spec: RunSpec, events: Events) -> Step | None:
    """The event that the link names; None without one. A number that is too large becomes the largest that there is."""
    found = _CODE.fullmatch(st.query_params.get(WALK, ""))
    return _step(spec, events, [int(part or 0) for part in found.groups()]) if found else None


def draw(spec: RunSpec, events: Events, in_units: bool) -> None:
    """The event in words, and the controls. `in_units`: nothing has run yet, and times are in the textbook's units."""
    say, step = frame.say(), current(spec, events)
    walking = step is not None
    step = step or _step(spec, events, [0, 0, 0, 0])
    with st.container(key="walk", gap="xsmall"):
        named = {"microbatch": step.path.microbatch, "number": step.at + 1, "count": len(step.events)}
        title = say("Microbatch {microbatch}, event {number} of {count}: {event}", event=headline(step.event, say), **named)
        style = look(frame.view())
        sentences_html, read = _sentences_html(step, spec, say, style, in_units), _read(walking, in_units, say)
        if not walking:
            st.html(drawing.heading_html(say("Step through"), title) + sentences_html + read)
            _button_on(spec, events, step, say)
        else:  # style.css keeps it in view while the page scrolls, so it is low
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                drawing.heading(say("Step through"), title)
                _slider(spec, events, step, say)
                st.button(say("Stop"), icon=":material/close:", on_click=_stop, key="walk/stop", type="tertiary")
            st.html(sentences_html + _chips(step, say, style))
            _controls(spec, events, step, say)
    if walking:
        st.html(read)


def _read(walking: bool, in_units: bool, say: Words) -> str:
    text = say("All events of one microbatch, in order of dependency; events that happen once per step come last.")
    more = say("As measured.") if not in_units else say("Nothing has run yet: times are the textbook's, bytes are predicted.")
    if not walking:
        more = say.together(more, say("Press Next: each event is also marked in the charts."))
    return f'<p class="ss-read">{escape(say.together(text, more))}</p>'


def _step(spec: RunSpec, events: Events, asked: list[int]) -> Step:
    microbatch, at, dp, tp = asked
    layout = spec.layout
    path = MicrobatchPath(min(microbatch, spec.workload.microbatches - 1), min(dp, layout.dp - 1), min(tp, layout.tp - 1))
    found = events(path)
    return Step(path, min(at, len(found) - 1), found)


def _controls(spec: RunSpec, events: Events, step: Step, say: Words) -> None:
    """Controls of the walk. They show the values in the link, and write changes to it."""
    st.session_state.update({_MICROBATCH: step.path.microbatch, _DP: step.path.dp, _TP: step.path.tp})
    ways = (
        (_MICROBATCH, say("Microbatch"), spec.workload.microbatches, lambda n: say("microbatch {number}", number=n)),
        (_DP, say("Replica (dp)"), spec.layout.dp, lambda n: say("replica {number}", number=n)),
        (_TP, say("Slice (tp)"), spec.layout.tp, lambda n: say("slice {number}", number=n)),
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button(
            say("Previous"), icon=":material/chevron_left:", disabled=step.at == 0, on_click=_go,
            args=(spec, events, *step.path, step.at - 1), key="walk/previous", shortcut="P",
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
    """The button Next: the only control before the walk begins."""
    st.button(
        say("Next"), icon=":material/chevron_right:", icon_position="right", disabled=step.at == len(step.events) - 1,
        on_click=_go, args=(spec, events, *step.path, step.at + 1), key="walk/next", type="primary", shortcut="N",
    )  # fmt: skip


def _go(spec: RunSpec, events: Events, microbatch: int, dp: int, tp: int, at: int) -> None:
    """Write the event into the link, and choose its rank, so that all charts show it."""
    step = _step(spec, events, [microbatch, at, dp, tp])
    path = step.path
    st.query_params[WALK] = f"{path.microbatch}.{step.at}" + (f".{path.dp}.{path.tp}" if path.dp or path.tp else "")
    if chosen.rank(spec.layout.mesh) != step.event.rank:
        chosen.choose(step.event.rank)


def _stop() -> None:
    """End the walk. A callback. The rank stays chosen."""
    st.query_params.pop(WALK, None)


def _moved(spec: RunSpec, events: Events, shown: Step) -> None:
    """Go to the event that the controls hold. A callback.

    A browser also calls it when a slider is drawn again with another number of events. Then nothing has changed.
    """
    asked = *(st.session_state.get(key, 0) for key in (_MICROBATCH, _DP, _TP)), max(0, st.session_state.get(_EVENT, 1) - 1)
    if asked != (*shown.path, shown.at):
        _go(spec, events, *asked)


def _sentences_html(step: Step, spec: RunSpec, say: Words, style: Look, in_units: bool) -> str:
    """The sentences as HTML: the first is large. Screen readers read them when they change."""
    first, *others = sentences(step.event, spec, say, in_units)
    rest = f"<span>{escape(' '.join(others))}</span>" if others else ""
    return f'<div class="ss-told" role="status" style="--stage:{_colour(step.event, style)}"><p>{escape(first)}</p>{rest}</div>'


def _chips(step: Step, say: Words, style: Look) -> str:
    """The events around the current one in a row, in the colours of the timeline. The page's edge cuts it off."""
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
    """The colour of the event in the timeline."""
    kind = event.communication.collective if event.is_call and event.communication else event.action.kind
    return style.lane[lane(kind)]
