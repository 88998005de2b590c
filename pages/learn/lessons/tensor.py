"""Lesson 4: tensor parallelism, step by step on matrices small enough to check by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import streamlit as st

from engine import catalog
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from pages.charts.look import View, look
from pages.learn import motion
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.matrices import dots, line, matrix, number, owners
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.scene import Scene
from pages.learn.scenes import tensor
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.learn.toys import Array, Slice, TwoLayers

_STEPS = ("split", "columns", "rows", "sum", "backward", "update")
_RATE = 0.1
_SPEC = RunSpec(model=catalog.model("gpt-tiny"), layout=LayoutSpec(tp=2), workload=WorkloadSpec(microbatches=2))


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "**Model parallelism** means that the model itself is divided over devices. There are two kinds. "
            "*Pipeline* parallelism gives whole layers to each device (lesson 5). *Tensor* parallelism cuts **inside** "
            "each layer: every large matrix, of the embedding, of attention and of the feed-forward part, goes to the "
            "ranks by columns or by rows."
        )
    )
    state.later(lambda: _cards(state))
    state.heading(say("Shard two matrices and combine the result"))
    state.text(
        say(
            "The feed-forward part of a layer, small enough to check by hand: **z = relu(x · A) · B**. A is cut by "
            "columns and B by rows. Colours say which rank holds a number."
        )
    )
    state.controls(
        state.switch("tp", say("Ranks (tp)")),
        state.switch("matrix", say("Matrices"), lambda index: say("set {index}", index=index)),
    )
    motion.show(_scene(state["tp"], state["matrix"], state.view), "tensor", say, seconds=2.2)
    state.text(
        say(
            "Now step by step, with all numbers. Point at a number of a result, or tap it: its row, its column and its sum "
            "are shown."
        )
    )
    state.switch("step", say("Step"), lambda step: _names(state)[step])()
    _show_step(state)
    state.heading(say("Savings and cost"))
    state.text(
        say(
            "Weights, gradients, optimizer and most activations are divided by tp. The price is collectives **inside "
            "every layer**, forward and backward, for every microbatch, and nothing can go on before they are done: so "
            "tensor parallelism wants the fastest links, those inside one node. Attention is cut the same way: each "
            "rank has some of the heads."
        )
    )


@st.cache_data(max_entries=32, show_spinner=False)
def _scene(tp: int, index: int, view: View) -> Scene:
    return tensor.scene(TwoLayers.drawn(index), tp, look(view))


def _names(state: LessonState) -> dict[str, str]:
    say = state.say
    texts = (say("1 split"), say("2 columns"), say("3 rows"), say("4 all-reduce"), say("5 backward"), say("6 update"))
    return dict(zip(_STEPS, texts, strict=True))


def _cards(state: LessonState) -> None:
    say = state.say
    done = done_by(_SPEC)
    steps = [
        LessonStep(say("Split"), say("Each large matrix by columns or by rows; every rank sees the same tokens.")),
        LessonStep(
            say("Forward"),
            say("Each rank computes with its slice; partial results are added up inside every layer."),
            *done["forward"],
        ),
        LessonStep(
            say("Backward"),
            say("The same in reverse: partial gradients of the layer’s input are added up."),
            *done["backward"],
        ),
        LessonStep(
            say("Update"),
            say("Each rank updates its own slice. Only the gradients’ norm, one number, is added up."),
            *done["update"],
        ),
    ]
    st.html(as_html(steps, say))
    st.caption(model_of(_SPEC, say))


def _show_step(state: LessonState) -> None:
    layers, tp = TwoLayers.drawn(state["matrix"]), state["tp"]
    slices, colours = layers.slices(tp), owners(state.style)[:tp]
    show = {"split": _split, "columns": _columns, "rows": _rows, "sum": _sum, "backward": _backward, "update": _update}
    show[state["step"]](state, layers, slices, colours)


def _of_ranks(colours: tuple[str, ...], tp: int) -> list[str]:
    """The colour of the owner, for each of four columns or rows."""
    return [colours[at * tp // 4] for at in range(4)]


def _split(state: LessonState, layers: TwoLayers, slices: list[Slice], colours: tuple[str, ...]) -> None:
    say = state.say
    marks = _of_ranks(colours, len(slices))
    st.html(
        line(
            matrix(say("x, on every rank"), layers.x),
            matrix(say("A, by columns"), layers.a, columns=marks),
            matrix(say("B, by rows"), layers.b, rows=marks),
        )
    )
    st.html(_key(state, colours))
    state.text(
        say.plural(
            "One rank holds all of A and B.",
            "Each of the {count} ranks holds {each} of 4 columns of A and the rows of B that belong to them.",
            len(slices),
            each=4 // len(slices),
        )
    )


def _key(state: LessonState, colours: tuple[str, ...]) -> str:
    boxes = "".join(
        f'<span style="border-bottom:4px solid {colour};font-size:.95rem">{state.say("rank {rank}", rank=rank)}</span>'
        for rank, colour in enumerate(colours)
    )
    return f'<div class="ss-line">{boxes}</div>'


def _each(state: LessonState, slices: list[Slice], colours: tuple[str, ...], parts: Sequence[tuple[str, ...]]) -> None:
    """A line of matrices for each rank."""
    for rank, shown in enumerate(parts):
        name = (
            f'<span style="border-bottom:4px solid {colours[rank]};font-size:1rem">{state.say("rank {rank}", rank=rank)}</span>'
        )
        st.html(line(name, *shown, product=True))


def _columns(state: LessonState, layers: TwoLayers, slices: list[Slice], colours: tuple[str, ...]) -> None:
    say = state.say
    parts = []
    for colour, own in zip(colours, slices, strict=True):
        mine = matrix(say("its columns of A"), own.a, owner=colour, part="right")
        sums = [[f"relu({told})" for told in row] for row in dots(layers.x, own.a)]
        out = matrix(say("relu of it"), own.inner, owner=colour, part="out", sums=sums)
        parts.append((matrix("x", layers.x, part="left"), "·", mine, "→", out))
    _each(state, slices, colours, parts)
    state.text(
        say(
            "Each rank has **some columns of the result, whole**: a column of x · A needs x and that column of A, "
            "nothing else. So relu can be applied at once, and nothing has to be sent."
        )
    )


def _rows(state: LessonState, layers: TwoLayers, slices: list[Slice], colours: tuple[str, ...]) -> None:
    say = state.say
    parts = []
    for colour, own in zip(colours, slices, strict=True):
        inner = matrix(say("what it has"), own.inner, owner=colour, part="left")
        mine = matrix(say("its rows of B"), own.b, owner=colour, part="right")
        out = matrix(say("partial sum"), own.partial, owner=colour, part="out", sums=dots(own.inner, own.b))
        parts.append((inner, "·", mine, "→", out))
    _each(state, slices, colours, parts)
    state.text(
        say(
            "The columns that a rank has match exactly the rows of B that it holds. The product has the full shape "
            "of z, but each number is only **this rank’s part of a sum**."
        )
    )


def _added(parts: list[str]) -> list[str]:
    """Matrices with a plus between them."""
    return [piece for index, part in enumerate(parts) for piece in (["+", part] if index else [part])]


def _sum(state: LessonState, layers: TwoLayers, slices: list[Slice], colours: tuple[str, ...]) -> None:
    say = state.say
    partials = [
        matrix(say("rank {rank}", rank=rank), own.partial, owner=colour)
        for rank, (colour, own) in enumerate(zip(colours, slices, strict=True))
    ]
    st.html(line(*_added(partials), "=", matrix(say("z, on every rank"), reduced(slices))))
    unsharded = np.maximum(layers.x @ layers.a, 0) @ layers.b
    st.html(line(matrix(say("z on one device"), unsharded)))
    state.text(
        say(
            "The **all-reduce** adds the partial sums and gives every rank the total. It is the only thing sent on the "
            "way forward: one all-reduce for the feed-forward part, and one for attention."
        )
    )
    _verdict(state, reduced(slices), unsharded)


def reduced(slices: list[Slice]) -> Array:
    """The result of the all-reduce on every rank: the sum of the partial results. (2, 4)"""
    return np.sum([own.partial for own in slices], axis=0)


def _verdict(state: LessonState, sharded: Array, whole: Array) -> None:
    difference = float(np.abs(sharded - whole).max())
    state.text(state.say("Largest difference from one device: **{difference}**.", difference=number(difference)))


def _backward(state: LessonState, layers: TwoLayers, slices: list[Slice], colours: tuple[str, ...]) -> None:
    say = state.say
    st.html(line(matrix(say("gradient of z, on every rank"), layers.gradient)))
    partials = [
        matrix(say("rank {rank}: part of x’s gradient", rank=rank), own.input_partial, owner=colour)
        for rank, (colour, own) in enumerate(zip(colours, slices, strict=True))
    ]
    total = np.sum([own.input_partial for own in slices], axis=0)
    st.html(line(*_added(partials), "=", matrix(say("gradient of x"), total)))
    inner = (layers.gradient @ layers.b.T) * (layers.x @ layers.a > 0)
    state.text(
        say(
            "Backward is the mirror image: the gradient of z goes back through each rank’s own rows of B and columns "
            "of A without being sent. The gradient of **x** is again a sum over ranks, so here is backward’s "
            "all-reduce."
        )
    )
    _verdict(state, total, inner @ layers.a.T)


def _update(state: LessonState, layers: TwoLayers, slices: list[Slice], colours: tuple[str, ...]) -> None:
    say = state.say
    parts = []
    for colour, own in zip(colours, slices, strict=True):
        before, gradient = (
            matrix(say("its columns of A"), own.a, owner=colour),
            matrix(say("their gradient"), own.a_gradient, owner=colour),
        )
        after = matrix(say("after the step"), own.a - _RATE * own.a_gradient, owner=colour)
        parts.append((before, f"− {_RATE} ·", gradient, "→", after))
    _each(state, slices, colours, parts)
    state.text(say("Each rank made the gradient of its own slice, so it can update it alone. B goes the same way."))


def _entry(seed: int, tp: int) -> Callable[[LessonState], Question]:
    def question(state: LessonState) -> Question:
        say = state.say
        slices = TwoLayers.drawn(seed).slices(tp)
        parts = [float(own.partial[0, 0]) for own in slices]
        return Question(
            asked=say(
                "{count} ranks hold these partial sums for the upper left number of z: {parts}. What does **rank 0** "
                "hold there after the all-reduce?",
                count=tp,
                parts=", ".join(f"**{number(part)}**" for part in parts),
            ),
            right=float(reduced(slices)[0, 0]),
            said=number(float(reduced(slices)[0, 0])),
            why=say("An all-reduce gives every rank the sum over all ranks, rank 0 as well as the others."),
            within=0.001,
            reveal=lambda: _sum(state, TwoLayers.drawn(seed), slices, owners(state.style)[:tp]),
        )

    return question


def _why_columns(state: LessonState) -> Question:
    say = state.say
    layers = TwoLayers.drawn(1)
    halves = (slice(0, 2), slice(2, 4))
    early = sum(np.maximum(layers.x[:, half] @ layers.a[half], 0) for half in halves)
    equal = bool(np.array_equal(early, np.maximum(layers.x @ layers.a, 0)))
    return Question(
        asked=say(
            "Suppose A were cut by **rows** instead, so that each rank had only a partial sum of x · A. Could each "
            "rank apply relu to its partial sum before the all-reduce?"
        ),
        right="yes" if equal else "no",
        said=say("no") if not equal else say("yes"),
        why=say("relu of a sum is not the sum of the relus; so A goes by columns, and one all-reduce a block is enough."),
        choices=(AnswerChoice("yes", say("yes, the result is the same")), AnswerChoice("no", say("no, the result differs"))),
        reveal=lambda: st.html(
            line(
                matrix(say("relu first, then added"), np.asarray(early)),
                matrix(say("added first, then relu"), np.maximum(layers.x @ layers.a, 0)),
            )
        ),
    )


LESSON = Lesson(
    title=lambda say: say("Tensor parallelism"),
    goal=lambda say: say(
        "How the columns and rows of a matrix are sharded over ranks, and why one all-reduce gives the whole result."
    ),
    knobs=(Knob("tp", (1, 2, 4), 2), Knob("matrix", (1, 2, 3), 1), Knob("step", _STEPS, "split")),
    draw=_draw,
    questions=(_entry(2, 2), _why_columns, _entry(3, 4)),
)
