"""Lesson 10: a checklist for choosing a layout."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import streamlit as st

from engine import catalog
from engine.devices import DEVICES
from engine.launch.recording import with_ledgers
from engine.planner.advice import Lever, Try, advise, left_out
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import simulated
from engine.predict.timeline import simulate, textbook
from engine.schedule import plan
from engine.spec import LayoutSpec, RequestError
from pages.charts.names import schedule
from pages.charts.units import in_bytes, percent, significant
from pages.charts.words import Words
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.search_summary import SearchSummary, summarize_search
from pages.learn.sizes import CARDS, PUBLISHED
from pages.shared import navigation
from pages.shared.choice import Choice as FormChoice
from pages.shared.links import encode
from pages.shared.subprocesses import run_in_worker

_COUNTS, _BATCHES = (1, 8, 16, 64, 128, 512, 1024), (64, 256, 1024, 1536)
_ENOUGH = 4  # microbatches for each stage that make the bubble small


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Start with what costs least and stop at the first that fits. Answer four questions, and read the list "
            "from the top: each line adds one technique and gives the memory of the fullest rank."
        )
    )
    state.controls(
        state.pick("model", say("Which model?")),
        state.pick("device", say("Which device?")),
        state.slide("count", say("Number of devices?"), lambda n: f"{n:,}"),
        state.slide("batch", say("Sequences per step?"), lambda n: f"{n:,}"),
    )
    try:
        tried = tries(state["model"], state["count"], state["device"], state["batch"])
    except RequestError as error:
        st.warning(say("This does not go together: {reason}.", reason=say.sentence(error.sentence)), icon=":material/rule:")
    else:
        st.html(_list(say, tried, state["device"]))
        if missing := left_out(
            catalog.model(state["model"]), state["count"], DEVICES[state["device"]], state["batch"], tried[-1]
        ):
            st.caption(_missing(say, missing, state["batch"]))
        _verdict(state, tried[-1])
        _all_layouts(state, tried[-1])
    state.heading(say("Checklist"))
    state.text(
        "\n".join(
            f"{at}. {line}"
            for at, line in enumerate(
                (
                    say(
                        "**Does it fit?** 16 to 20 bytes a parameter, and activations. If so, replicas alone are "
                        "simplest and fastest."
                    ),
                    say("**ZeRO 1** costs no extra traffic. Use it wherever there are replicas."),
                    say("**Selective recompute** costs a few percent of time for most of the activations."),
                    say("**Tensor parallelism** next, up to the size of a node and no further; with sequence parallelism."),
                    say("**Pipeline parallelism** across nodes, as few stages as make it fit."),
                    say("**Data parallelism** takes the rest of the devices."),
                    say("**Microbatches**: at least four per stage, to keep the bubble small; otherwise use interleaved chunks."),
                    say("**Measure.** Run the small version in the Lab; the shapes of memory and traffic are the same."),
                ),
                start=1,
            )
        )
    )


@st.cache_data(max_entries=256, show_spinner=False)
def tries(model: str, count: int, device: str, batch: int) -> list[Try]:
    return with_ledgers(lambda: advise(catalog.model(model), count, DEVICES[device], batch))


def _names(say: Words) -> dict[Lever, tuple[str, str]]:
    """Each lever's name, and the reason for its place in the list."""
    return {
        "replicas": (say("data parallelism only"), say("only gradients are sent, once a step")),
        "zero": (say("ZeRO 1"), say("the optimizer’s state is sharded, with the same traffic")),
        "recompute": (say("selective recompute"), say("the attention’s scores are computed again")),
        "tensor": (say("tensor parallelism"), say("inside a node, where links are fast")),
        "pipeline": (say("pipeline parallelism"), say("across nodes, for little traffic and a bubble")),
        "full": (say("full recompute"), say("a third more time; only the layers’ inputs are kept")),
    }


def _list(say: Words, tried: list[Try], device: str) -> str:
    """HTML: a row for each lever that was tried."""
    names, holds = _names(say), CARDS[device]
    rows = ""
    for entry in tried:
        name, why = names[entry.lever]
        verdict = say("✓ fits") if entry.fits else say("{more} too much", more=in_bytes(entry.needs - holds))
        cells = (name, entry.spec.layout.code, in_bytes(entry.needs), verdict, why)
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
        rows += f"<tr><th scope=row>{escape(cells[0])}</th>{body}</tr>"
    head = (say("technique"), say("layout"), say("fullest rank"), say("in {memory}", memory=in_bytes(holds)), say("why here"))
    names_row = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<table class="ss-plain"><thead><tr>{names_row}</tr></thead><tbody>{rows}</tbody></table>'


def _missing(say: Words, left: list[tuple[Lever, int]], texts: int) -> str:
    """Why some levers are not in the list: "replicas alone, ZeRO 1 (dp1024); …"."""
    names = _names(say)
    by_replicas: dict[int, list[str]] = {}
    for lever, replicas in left:
        by_replicas.setdefault(replicas, []).append(names[lever][0])
    listed = "; ".join(f"{', '.join(levers)} (dp{replicas})" for replicas, levers in by_replicas.items())
    return say(
        "Left out of the list, because {texts} sequences do not divide evenly over that many replicas: {left}.",
        texts=f"{texts:,}",
        left=listed,
    )


def bubble_of(pp: int, microbatches: int) -> float:
    """The bubble of 1F1B in textbook times, as a share of total time."""
    return simulate(plan(LayoutSpec(pp=pp), microbatches), textbook(LayoutSpec(pp=pp))).bubble


def _verdict(state: LessonState, last: Try) -> None:
    say, layout = state.say, last.spec.layout
    if not last.fits:
        st.warning(
            say(
                "It does not fit: even {layout} with all of these needs {needs} on its fullest rank. Next would be "
                "more devices, larger devices, or ZeRO 3.",
                layout=layout.code,
                needs=in_bytes(last.needs),
            ),
            icon=":material/block:",
        )
        return
    m = last.spec.workload.microbatches
    lines = [say("**Advice: {layout}**, {needs} on the fullest rank.", layout=layout.code, needs=in_bytes(last.needs))]
    if layout.pp > 1:
        share = percent(bubble_of(layout.pp, m))
        lines.append(
            say.plural(
                "With {count} microbatch for {p} stages the bubble is {share} of total time.",
                "With {count} microbatches for {p} stages the bubble is {share} of total time.",
                m,
                p=layout.pp,
                share=share,
            )
        )
        if m < _ENOUGH * layout.pp:
            lines.append(say("That is fewer than four a stage: a larger batch, or interleaved chunks, would help."))
    st.success(say.together(*lines), icon=":material/check_circle:")
    link = encode(FormChoice.of(last.spec, state.service.texts))
    navigation.link("lab", say("Open this layout in the Lab"), "science", {"spec": link, "device": state["device"]})


def _all_layouts(state: LessonState, last: Try) -> None:
    """A search of all layouts, on a button because it takes a second or more, and the list's layout beside its best."""
    say, asked = state.say, (state["model"], state["count"], state["device"], state["batch"])
    if st.session_state.get(state.key("weighed")) != asked:
        st.button(
            say("Compare with all layouts"),
            icon=":material/balance:",
            key=state.key("weigh"),
            on_click=state.put,
            args=("weighed", asked),
        )
        return
    try:
        with st.spinner(say("Comparing all layouts of {count} devices", count=f"{state['count']:,}")):
            found = search_summary(*asked)
    except RequestError as error:
        st.warning(say("There is nothing to compare: {reason}.", reason=say.sentence(error.sentence)))
        return
    if not found.fit:
        state.text(say("Of {all} layouts none fits.", all=f"{found.all:,}"))
        return
    state.text(
        say(
            "Of {all} layouts {fit} fit, and the planner expects the fastest to be **{best}** under {schedule}: "
            "{seconds} s a step.",
            all=f"{found.all:,}",
            fit=f"{found.fit:,}",
            best=found.best,
            schedule=schedule(found.schedule, say),
            seconds=significant(found.seconds),
        )
    )
    if last.fits:
        own, _ = with_ledgers(lambda: simulated(last.spec, DEVICES[state["device"]], Assumptions()))
        state.text(
            say(
                "The checklist’s {layout} would take {own} s, {more} more. A checklist finds a layout that fits; to "
                "find the fastest, compare all layouts.",
                layout=last.spec.layout.code,
                own=significant(own),
                more=percent(own / found.seconds - 1),
            )
        )


@st.cache_data(max_entries=64, show_spinner=False)
def search_summary(model: str, count: int, device: str, batch: int) -> SearchSummary:
    """Raises `RequestError` if there is no layout."""
    return run_in_worker(summarize_search, model, count, device, batch)


def _tp_of(model: str, count: int, device: str, batch: int) -> Callable[[LessonState], Question]:
    def question(state: LessonState) -> Question:
        say, tried = state.say, tries(model, count, device, batch)
        layout = tried[-1].spec.layout
        return Question(
            asked=say(
                "{model} on {count} devices of type {device}, {node} to a node. By the list above: over how many ranks "
                "will each layer’s matrices be cut?",
                model=model,
                count=f"{count:,}",
                device=device,
                node=DEVICES[device].node_size,
            ),
            right=f"tp{layout.tp}",
            said=say("tp = {tp}, in {layout}", tp=layout.tp, layout=layout.code),
            why=say("Tensor parallelism is used before pipeline parallelism, within a node; links between nodes are too slow."),
            choices=tuple(AnswerChoice(f"tp{tp}", f"tp = {tp}") for tp in (1, 2, 4, 8, 16)),
            reveal=lambda: st.html(_list(state.say, tried, device)),
        )

    return question


LESSON = Lesson(
    title=lambda say: say("Choosing a layout"),
    goal=lambda say: say("A checklist: which technique first, which next, and when to stop."),
    knobs=(
        Knob("model", PUBLISHED, "gpt3-175b"),
        Knob("device", tuple(CARDS), "h100-80gb"),
        Knob("count", _COUNTS, 1024),
        Knob("batch", _BATCHES, 1536),
    ),
    draw=_draw,
    questions=(_tp_of("gpt3-175b", 512, "a100-80gb", 1536), _tp_of("gpt2-1.5b", 64, "h100-80gb", 512)),
)
