"""Lesson 10: a checklist for choosing a layout, beside the planner's answer."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from engine import catalog
from engine.devices import DEVICES
from engine.launch.recording.client import with_ledgers
from engine.planner.advice import Lever, Try, advice, advise, left_out
from engine.schedule import plan
from engine.schedule.timeline import simulate, textbook
from engine.spec import LayoutSpec, RequestError
from pages.charts.units import in_bytes, percent, significant
from pages.charts.words import Words
from pages.learn import planned, tables
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.sizes import CARDS, PUBLISHED
from pages.shared import navigation
from pages.shared.choice import Choice as FormChoice
from pages.shared.links import encode

_COUNTS, _BATCHES = (1, 8, 16, 64, 128, 512, 1024), (64, 128, 256, 512, 1024, 1536)
_EXAMPLE: planned.Example = ("llama3-70b", 64, "h100-80gb", 128)  # one of the well-known runs of the Plan page
_ENOUGH = 4  # microbatches for each stage that make the bubble small


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "There are two ways to make a model fit. **Shard the states** over all replicas: ZeRO, up to ZeRO 3, which "
            "PyTorch calls FSDP. Or **shard the model**: tensor parallelism inside a node, then pipeline parallelism "
            "across nodes, and data parallelism for the rest. Go along each way from what costs least, and stop at the "
            "first that fits. Then compare the time of a step."
        )
    )
    state.controls(
        state.pick("model", say("Which model?")),
        state.pick("device", say("Which device?")),
        state.slide("count", say("Number of devices?"), lambda n: f"{n:,}"),
        state.slide("batch", say("Sequences per step?"), lambda n: f"{n:,}"),
    )
    example = (state["model"], state["count"], state["device"], state["batch"])
    try:
        tried = tries(*example)
    except RequestError as error:
        st.warning(say("This does not go together: {reason}.", reason=say.sentence(error.sentence)), icon=":material/rule:")
    else:
        st.html(_list(say, tried, state["device"]))
        if missing := left_out(catalog.model(example[0]), example[1], DEVICES[example[2]], example[3], tried):
            st.caption(_missing(say, missing, state["batch"]))
        _verdict(state, tried)
        planned.draw(state, example, advice(tried), at_once=example == _EXAMPLE)
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
                    say(
                        "**Fused attention** is faster and keeps less, and **the loss in chunks** costs next to nothing. "
                        "Use both always."
                    ),
                    say("**ZeRO 1** costs no extra traffic. Use it wherever there are replicas."),
                    say("**Selective recompute** costs a few percent of time for most of the activations."),
                    say(
                        "**ZeRO 3 (FSDP)** if each replica has enough work to hide its gathers: many tokens for each "
                        "device, fast links. It gathers all parameters for forward and again for backward of **each** microbatch."
                    ),
                    say("**Tensor parallelism** up to the size of a node and no further; with sequence parallelism."),
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
    """Each technique's name, and the reason for its place in the list."""
    cheap = say("what is large and cheap to compute is computed again")
    return {
        "replicas": (say("data parallelism only"), say("only gradients are sent, once a step")),
        "zero": (say("ZeRO 1"), say("the optimizer’s state is sharded, with the same traffic")),
        "recompute": (say("ZeRO 1, selective recompute"), cheap),
        "fsdp": (
            say("ZeRO 3 (FSDP), selective recompute"),
            say("all states are sharded; parameters are gathered around each use"),
        ),
        "fsdp_full": (say("ZeRO 3 (FSDP), full recompute"), say("a third more time; only the layers’ inputs are kept")),
        "tensor": (say("tensor parallelism"), say("inside a node, where links are fast")),
        "pipeline": (say("pipeline parallelism"), say("across nodes, for little traffic and a bubble")),
        "full": (say("full recompute"), say("a third more time; only the layers’ inputs are kept")),
    }


def _list(say: Words, tried: list[Try], device: str) -> str:
    """HTML: a row for each technique that was tried."""
    names, holds = _names(say), CARDS[device]
    rows = []
    for entry in tried:
        name, why = names[entry.lever]
        if entry.spec.layout.zero == 3 and entry.fits:
            why = f"{why}; {say('the time is predicted with full overlap')}"
        verdict = say("✓ fits") if entry.fits else say("{more} too much", more=in_bytes(entry.needs - holds))
        step = "" if entry.step_s is None else say("{seconds} s", seconds=significant(entry.step_s))
        rows.append((name, entry.spec.layout.code, in_bytes(entry.needs), verdict, step, why))
    memory = say("in {memory}", memory=in_bytes(holds))
    head = (say("technique"), say("layout"), say("fullest rank"), memory, say("a step"), say("why here"))
    return tables.plain(head, rows)


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


def _verdict(state: LessonState, tried: list[Try]) -> None:
    say, taken = state.say, advice(tried)
    if taken is None:
        least = min(tried, key=lambda entry: entry.needs)
        st.warning(
            say(
                "Nothing in the list fits. {layout} needs the least: {needs} on its fullest rank. Next would be more "
                "devices, or larger ones.",
                layout=least.spec.layout.code,
                needs=in_bytes(least.needs),
            ),
            icon=":material/block:",
        )
        return
    layout, m = taken.spec.layout, taken.spec.workload.microbatches
    lines = [
        say(
            "**The fastest of the list: {layout}, {technique}**. It needs {needs} on the fullest rank, and {seconds} s a step.",
            layout=layout.code,
            technique=_names(say)[taken.lever][0],
            needs=in_bytes(taken.needs),
            seconds=significant(taken.step_s or 0.0),
        )
    ]
    if any(entry.fits and entry.spec.layout.zero == 3 for entry in tried):
        lines.append(planned.overlap_caveat(say))
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
    link = encode(FormChoice.of(taken.spec, state.service.texts))
    navigation.link("lab", say("Open this layout in the Lab"), "science", {"spec": link, "device": state["device"]})


def _name(entry: Try) -> str:
    """The entry's name in links."""
    return f"{entry.lever}.tp{entry.spec.layout.tp}.pp{entry.spec.layout.pp}"


def _fastest(model: str, count: int, device: str, batch: int) -> Callable[[LessonState], Question]:
    """The right answer shards the model, and ZeRO 3 is slower even with full overlap: so it does not depend on the overlap."""

    def question(state: LessonState) -> Question:
        say, tried = state.say, tries(model, count, device, batch)
        taken, names = advice(tried), _names(say)
        assert taken
        offered = tried[-6:]
        return Question(
            asked=say(
                "{model} on {count} devices of type {device}, {node} to a node, {batch} sequences a step. Which of these is "
                "the fastest that **fits**?",
                model=model,
                count=f"{count:,}",
                device=device,
                node=DEVICES[device].node_size,
                batch=f"{batch:,}",
            ),
            right=_name(taken),
            said=say("{technique}, {layout}", technique=names[taken.lever][0], layout=taken.spec.layout.code),
            why=say.together(
                say(
                    "It needs {needs} of {holds}, and {seconds} s a step.",
                    needs=in_bytes(taken.needs),
                    holds=in_bytes(CARDS[device]),
                    seconds=significant(taken.step_s or 0.0),
                ),
                say("ZeRO 3 is slower here, even with full overlap."),
            ),
            choices=tuple(AnswerChoice(_name(entry), f"{names[entry.lever][0]}: {entry.spec.layout.code}") for entry in offered),
            reveal=lambda: st.html(_list(state.say, tried, device)),
        )

    return question


LESSON = Lesson(
    title=lambda say: say("Choosing a layout"),
    goal=lambda say: say("A checklist: which technique first, which next, when to stop, and how the planner decides."),
    knobs=(
        Knob("model", PUBLISHED, _EXAMPLE[0]),
        Knob("device", tuple(CARDS), _EXAMPLE[2]),
        Knob("count", _COUNTS, _EXAMPLE[1]),
        Knob("batch", _BATCHES, _EXAMPLE[3]),
    ),
    draw=_draw,
    questions=(_fastest("gpt3-175b", 128, "a100-80gb", 1536), _fastest("llama3-8b", 8, "a100-40gb", 64)),
)
