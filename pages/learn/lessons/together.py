"""Lesson 6: the three together, with a real run."""

from __future__ import annotations

from html import escape

import streamlit as st

from engine import catalog
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from engine.tables import COORDINATE, RunResult
from engine.topology import Axis, Mesh
from pages.charts.units import in_bytes, percent
from pages.learn import run, tables
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.shared import navigation
from pages.shared.choice import Choice as FormChoice
from pages.shared.links import encode

_AXES: tuple[Axis, ...] = ("dp", "tp", "pp")  # cp has a lesson of its own
_DEGREES, _NODES = (1, 2, 4), (2, 4, 8)
_MOST_RANKS = 4**3
# It trains for a second on any machine, and uses every axis.
SPEC = RunSpec(
    model=catalog.model("gpt-tiny"),
    layout=LayoutSpec(dp=2, tp=2, pp=2),
    workload=WorkloadSpec(microbatches=4, steps=3),
    parity=True,
)


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "The three kinds of parallelism combine: ranks = dp × tp × pp, and each rank has a coordinate on every "
            "axis. Its **tp group** holds the other slices of the same layers, its **pp group** is its pipeline, and "
            "its **dp group** holds the same slice of the same layers for other data."
        )
    )
    state.controls(*(state.switch(axis, axis) for axis in _AXES), state.switch("node", say("Devices in a node")))
    mesh = Mesh({axis: state[axis] for axis in _AXES})
    state.controls(state.slide("rank", say("Look at rank"), options=range(mesh.size)))
    st.html(_nodes(state, mesh))
    _groups(state, mesh)
    state.text(
        say(
            "The axis that communicates most needs the fastest links. Tensor parallelism communicates in every layer "
            "and waits for the result: **inside a node**. A pipeline sends one activation for each microbatch "
            "between two stages: it can go **across nodes**. Data parallelism communicates once a step, overlapped "
            "with compute: **the rest**. That is why ranks are numbered with tp fastest, then dp, then pp."
        )
    )
    state.heading(say("One step of one rank"))
    state.later(lambda: _steps(state))


def _nodes(state: LessonState, mesh: Mesh) -> str:
    """HTML: a box for each node, in it a cell for each rank, which names the groups shared with the chosen rank."""
    say, style, chosen = state.say, state.style, state["rank"]
    shared = {axis: set(mesh.group(axis, chosen)) for axis in _AXES}
    boxes = ""
    for node in range(-(-mesh.size // state["node"])):
        cells = ""
        for rank in range(node * state["node"], min((node + 1) * state["node"], mesh.size)):
            at = mesh.coordinate(rank)
            with_it = [axis for axis in _AXES if rank in shared[axis] and rank != chosen]
            ring = f";border-color:{style.axis[with_it[0]]}" if with_it else ""
            mark = say("this one") if rank == chosen else ", ".join(with_it)
            label = say("rank {rank}: stage {pp}, replica {dp}, slice {tp}", rank=rank, pp=at.pp, dp=at.dp, tp=at.tp)
            place = " ".join(f"{axis}{at[axis]}" for axis in COORDINATE if axis in _AXES)
            own = " data-self" if rank == chosen else ""
            cells += (
                f'<div class="ss-peer" role="img" aria-label="{escape(label)} {escape(mark)}"{own} '
                f'style="--stage:{style.stage(at.pp, mesh.pp)}{ring}">'
                f"<b>{rank}</b> {escape(mark)}<br>{place}</div>"
            )
        boxes += f'<section class="ss-node"><header>{escape(say("node {node}", node=node))}</header><div>{cells}</div></section>'
    return f'<div class="ss-nodes">{boxes}</div>'


def _groups(state: LessonState, mesh: Mesh) -> None:
    say, chosen = state.say, state["rank"]
    talk: dict[Axis, tuple[str, str]] = {
        "tp": (say("partial sums of activations, and of their gradients"), say("in every layer of every microbatch")),
        "pp": (say("activations forward, their gradients backward"), say("once a microbatch at each cut")),
        "dp": (say("gradients of its weights"), say("once a step")),
    }
    rows = []
    for axis, (what, when) in talk.items():
        inside = inside_nodes(mesh, axis, state["node"])
        members = ", ".join(str(rank) for rank in mesh.group(axis, chosen))
        where = say("nothing to send") if mesh[axis] == 1 else say("inside a node") if inside else say("between nodes")
        rows.append((axis, members, what, when, where))
    names = (say("group"), say("ranks in it"), say("what is sent"), say("when"), say("over links"))
    st.html(tables.plain(names, rows))


def inside_nodes(mesh: Mesh, axis: Axis, node: int) -> bool:
    """Whether every group along the axis is inside one node, if ranks fill nodes in order."""
    return all(len({rank // node for rank in group}) == 1 for group in mesh.groups(axis))


def _steps(state: LessonState) -> None:
    say = state.say
    done = done_by(SPEC)
    steps = [
        LessonStep(say("Split"), say("Layers over pp, matrices over tp, the batch over dp and then into microbatches.")),
        LessonStep(
            say("Forward"),
            say("Compute, with an all-reduce over tp in every layer; send activations to the next stage."),
            *done["forward"],
        ),
        LessonStep(
            say("Backward"),
            say("The same in reverse; when a layer’s gradients are complete, average them over dp."),
            *done["backward"],
        ),
        LessonStep(say("Update"), say("Each rank its own slice of its own layers."), *done["update"]),
    ]
    st.html(as_html(steps, say))
    caption = model_of(SPEC, say)
    tie = say("The tie adds up the gradient of the embedding, which stage 0 shares with the head on the last stage.")
    st.caption(say.together(caption, tie))


# ------------------------------------------------------------------------------------------- questions that a run answers


def fullest_stage(result: RunResult) -> int:
    """The stage of the rank with the highest measured peak."""
    peak = result.tables["memory_peak"]
    rank = peak.groupby("rank")["bytes"].sum().idxmax()
    return int(peak.loc[peak["rank"] == rank, "pp"].iloc[0])


def busiest_axis(result: RunResult) -> str:
    """The axis along which the most bytes were sent."""
    return str(result.tables["traffic"].groupby("axis")["wire_bytes"].sum().idxmax())


def _run(state: LessonState) -> None:
    run.draw(state, SPEC)
    form = FormChoice.of(SPEC, state.service.texts)
    navigation.link("lab", state.say("Open this layout in the Lab"), "science", {"spec": encode(form)})


def _memory(state: LessonState) -> Question:
    say, done = state.say, run.result(state, SPEC)
    right, said = None, ""
    if done is not None:
        stage = fullest_stage(done)
        totals = done.tables["memory_peak"].groupby("pp")["bytes"].sum() / SPEC.layout.mesh.stride("pp")
        right = f"stage{stage}"
        said = say(
            "stage {stage}; its ranks hold {most} each, those of the other {least}",
            stage=stage,
            most=in_bytes(totals.max()),
            least=in_bytes(totals.min()),
        )
    return Question(
        asked=say(
            "*gpt-tiny* on {layout}, 1F1B, {m} microbatches, two layers on each stage. Commit, then run it: on which "
            "stage will the ranks’ **measured** peak memory be higher?",
            layout=SPEC.layout.code,
            m=SPEC.workload.microbatches,
        ),
        right=right,
        said=said,
        why=say(
            "Stage 0 has two microbatches in flight where the last stage has one; the last stage, for its part, has "
            "the head and the loss."
        ),
        choices=(
            AnswerChoice("stage0", say("on stage 0")),
            AnswerChoice("stage1", say("on stage 1, the last")),
            AnswerChoice("same", say("the same on both")),
        ),
        reveal=lambda: _run(state),
    )


def _traffic(state: LessonState) -> Question:
    say, done = state.say, run.result(state, SPEC)
    right, said = None, ""
    if done is not None:
        sent = done.tables["traffic"].groupby("axis")["wire_bytes"].sum()
        right = busiest_axis(done)
        said = say("{axis}, with {share} of all bytes sent", axis=right, share=percent(float(sent.max() / sent.sum())))
    return Question(
        asked=say(
            "The same run of *gpt-tiny* on {layout}. Along which axis will the most bytes be sent?", layout=SPEC.layout.code
        ),
        right=right,
        said=said,
        why=say("tp sends in every layer of every microbatch, both ways; pp once a microbatch at each cut; dp once a step."),
        choices=tuple(AnswerChoice(axis, axis) for axis in _AXES),
        reveal=lambda: _run(state),
    )


LESSON = Lesson(
    title=lambda say: say("The three together"),
    goal=lambda say: say("What each group does, where to place it, and what a real run of eight processes measures."),
    knobs=(
        *(Knob(axis, _DEGREES, 2) for axis in _AXES),
        Knob("node", _NODES, 4),
        Knob("rank", tuple(range(_MOST_RANKS)), 0),
    ),
    draw=_draw,
    questions=(_memory, _traffic),
)
