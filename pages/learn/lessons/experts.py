"""Lesson 12: mixture of experts, and expert parallelism."""

from __future__ import annotations

from math import ceil

import streamlit as st

from engine import catalog
from engine.spec import BYTES_OF, LayoutSpec, RunSpec, WorkloadSpec
from pages.charts.look import View, look
from pages.charts.units import in_bytes, percent, short, significant
from pages.learn import motion, tables
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.matrices import line, matrix, owners
from pages.learn.question import Knob, Question
from pages.learn.routing import EXPERTS, RANKS, Routing, expert_rank
from pages.learn.scene import Scene
from pages.learn.scenes import experts
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.shared import navigation
from pages.shared.choice import Choice as FormChoice
from pages.shared.links import encode

_MODELS = ("mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "qwen3-235b-a22b")
_SKEWS = (0.0, 1.0, 2.0, 4.0)
_CAPACITIES = (0.0, 1.0, 1.25, 2.0)
SPEC = RunSpec(
    model=catalog.model("gpt-tiny-moe"),
    layout=LayoutSpec(dp=4, ep=2),
    workload=WorkloadSpec(microbatches=4, steps=12),
)


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "A larger MLP makes a model better, and every token pays for it. In a **mixture of experts** a layer has many MLPs, "
            "the experts, and a small matrix, the **router**, which scores them for each token. A token goes through the best k "
            "of them only. So the model has many parameters, and a token uses few."
        )
    )
    _sizes(state)
    state.text(
        say(
            "**Expert parallelism** (ep) puts the experts of a layer on different ranks. These ranks are replicas too: each has "
            "its own tokens. So tokens travel: an **all-to-all** takes each one to the rank of its expert, and another one back."
        )
    )
    state.later(lambda: _steps(state))
    state.heading(say("Twelve tokens, four experts, two ranks"))
    state.controls(
        state.switch("k", say("Experts of a token")),
        state.slide("skew", say("The router prefers expert 1 by"), lambda skew: f"{skew:g}"),
        state.slide("capacity", say("Capacity factor"), lambda factor: f"{factor:g}" if factor else say("no limit")),
    )
    routing = _routing(state)
    motion.show(_scene(state["k"], state["skew"], state["capacity"], state.view), "experts", say, seconds=2.4)
    _numbers(state, routing)
    state.heading(say("What unequal load costs"))
    state.text(
        say(
            "The rank with the most rows decides how long a layer takes, and its activations decide what must fit. Here it has "
            "**{times} times** an even share, so {share} of the expert ranks’ time is lost. There are three remedies. An "
            "**auxiliary loss** grows with unequal load, and so trains the router to spread tokens. A **bias** on the scores, "
            "moved a little after each step, does it without a loss (DeepSeek-V3). A **capacity** bounds what an expert takes: "
            "what has no room is dropped, and skips the layer.",
            times=f"{routing.unevenness:.2f}",
            share=percent(1 - 1 / routing.unevenness),
        )
    )
    form = FormChoice.of(SPEC, state.service.texts)
    navigation.link("lab", say("Open a model with experts in the Lab"), "science", {"spec": encode(form)})


def _sizes(state: LessonState) -> None:
    say = state.say
    rows = []
    for name in _MODELS:
        model = catalog.model(name)
        total, active = model.parameters(), model.active_parameters()
        chosen = say("{k} of {count}", k=model.expert_choices, count=model.experts)
        rows.append((name, chosen, short(total, say), short(active, say), percent(active / total)))
    head = (say("model"), say("experts of a token"), say("parameters"), say("used by a token"), say("share"))
    st.html(tables.plain(head, rows))


def _steps(state: LessonState) -> None:
    say = state.say
    done = done_by(SPEC.model_copy(update={"workload": SPEC.workload.model_copy(update={"balanced_router": True})}))
    steps = [
        LessonStep(say("Split"), say("The batch over dp. The experts of each layer over ep of the replicas.")),
        LessonStep(say("Forward"), say("In each layer tokens go to their experts, and come back."), *done["forward"]),
        LessonStep(say("Backward"), say("Their gradients take the same ways, the other way round."), *done["backward"]),
        LessonStep(
            say("Update"),
            say("Gradients of experts are averaged over the ranks that have the same experts, all others over dp."),
            *done["update"],
        ),
    ]
    st.html(as_html(steps, say))
    st.caption(model_of(SPEC, say))


def _routing(state: LessonState) -> Routing:
    return Routing.drawn(state["k"], state["skew"], state["capacity"])


@st.cache_data(max_entries=32, show_spinner=False)
def _scene(k: int, skew: float, capacity: float, view: View) -> Scene:
    return experts.scene(Routing.drawn(k, skew, capacity), look(view))


def _numbers(state: LessonState, routing: Routing) -> None:
    """The router's shares, and the rows from rank to rank."""
    say, colours = state.say, owners(state.style)
    st.caption(say("Shares that the router gives: a row for each token, a column for each expert."))
    shares = matrix(
        say("shares of the router"),
        routing.shares.round(2),
        columns=[colours[expert_rank(expert)] for expert in range(EXPERTS)],
    )
    st.html(line(shares))
    rows = [
        (say("from rank {rank}", rank=rank), *(f"{routing.sent(rank, other)}" for other in range(RANKS))) for rank in range(RANKS)
    ]
    head = (say("rows sent"), *(say("to rank {rank}", rank=rank) for rank in range(RANKS)))
    st.html(tables.plain(head, rows))


def _active(state: LessonState) -> Question:
    say, model = state.say, catalog.model("mixtral-8x7b")
    one = 3 * model.hidden * model.expert_width
    active = model.active_parameters()
    idle = model.experts - model.expert_choices
    return Question(
        asked=say(
            "*mixtral-8x7b* has {total} parameters, in {layers} layers of {count} experts. An expert has {one} parameters, and a "
            "token goes through {k} experts of each layer. How many billion parameters does a token use?",
            total=short(model.parameters(), say),
            layers=model.layers,
            count=model.experts,
            one=short(one, say),
            k=model.expert_choices,
        ),
        right=active / 1e9,
        said=short(active, say),
        why=say("It goes past {idle} experts in each of {layers} layers. All else is used.", idle=idle, layers=model.layers),
        unit="B",
        within=0.03,
        reveal=lambda: state.formula(
            say("Used by a token"),
            "Ψ − L · (E − k) · 3 · h · f",
            f"{short(model.parameters(), say)} − {model.layers} · {idle} · {short(one, say)}",
            short(active, say),
        ),
    )


def _replicas(state: LessonState) -> Question:
    say, dp, ep = state.say, 8, 4
    return Question(
        asked=say("dp is {dp} and ep is {ep}. Over how many ranks are the gradients of one expert averaged?", dp=dp, ep=ep),
        right=float(dp // ep),
        said=f"{dp // ep}",
        why=say("Each expert is on dp ÷ ep ranks. What is no expert is on all {dp}, and is averaged over these.", dp=dp),
        within=0.001,
        reveal=lambda: _steps(state),
    )


def _dropped(state: LessonState) -> Question:
    say, tokens, count, factor, most = state.say, 64, 4, 1.25, 30
    room = ceil(factor * tokens / count)
    return Question(
        asked=say(
            "{tokens} tokens choose one of {count} experts each. The capacity factor is {factor}. {most} tokens want expert 1. "
            "How many of them are dropped?",
            tokens=tokens,
            count=count,
            factor=factor,
            most=most,
        ),
        right=float(most - room),
        said=f"{most - room}",
        why=say(
            "An expert has room for {factor} · {tokens} ÷ {count} = {room}.", factor=factor, tokens=tokens, count=count, room=room
        ),
        within=0.001,
        reveal=lambda: state.formula(say("Dropped"), "n − c · T/E", f"{most} − {factor} · {tokens}/{count}", f"{most - room}"),
    )


def _carried(state: LessonState) -> Question:
    say, model, ep = state.say, catalog.model("qwen3-235b-a22b"), 8
    size = 2 * model.expert_choices * model.hidden * BYTES_OF["bf16"] * (ep - 1) / ep
    return Question(
        asked=say(
            "*qwen3-235b-a22b* has vectors of {h} numbers, and a token goes to {k} experts, spread evenly over ep {ep}. How many "
            "KiB of a token go to other ranks and back, in the forward of one layer, in bf16?",
            h=f"{model.hidden:,}",
            k=model.expert_choices,
            ep=ep,
        ),
        right=size / 2**10,
        said=in_bytes(round(size)),
        why=say("k vectors go there and come back; one expert in {ep} is on the token’s own rank.", ep=ep),
        unit="KiB",
        within=0.03,
        reveal=lambda: state.formula(
            say("Of a token in a layer"),
            "2 · k · h · 2 · (ep − 1)/ep",
            f"2 · {model.expert_choices} · {model.hidden:,} · 2 · {ep - 1}/{ep}",
            f"{significant(size / 2**10)} KiB",
        ),
    )


LESSON = Lesson(
    title=lambda say: say("Mixture of experts"),
    goal=lambda say: say("Why a token uses few of many parameters, how it gets to its experts, and what unequal load costs."),
    knobs=(Knob("k", (1, 2), 2), Knob("skew", _SKEWS, 1.0), Knob("capacity", _CAPACITIES, 0.0)),
    draw=_draw,
    questions=(_active, _replicas, _dropped, _carried),
)
