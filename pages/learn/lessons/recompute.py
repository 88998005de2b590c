"""Lesson 8: recompute."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from engine import catalog
from engine.papers.closed_forms import layer_activations, layer_flops
from engine.schedule import plan
from engine.schedule.timeline import Durations, simulate, textbook
from engine.spec import LayoutSpec, ModelSpec, Recompute, RunSpec, WorkloadSpec
from engine.terms import total
from pages.charts import teaching, timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, percent, significant
from pages.learn import symbols, tables
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.sizes import PUBLISHED_GPT
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.shared import drawing

_KINDS: tuple[Recompute, ...] = ("none", "core_attn", "full")
_LENGTHS, _BATCHES = (1024, 2048, 4096, 8192, 16384), (1, 2, 4, 8)
_P, _M = 4, 8  # stages and microbatches of the pipeline whose step time is shown


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Activations are kept from forward to backward. But they need not be: what was computed once can be "
            "**computed again** when backward needs it. That trades time for memory. It is best to drop what is "
            "large and cheap to recompute."
        )
    )
    names = {"none": say("none"), "core_attn": say("selective"), "full": say("full")}
    state.controls(
        state.pick("model", say("Model")),
        state.slide("s", say("Tokens in a sequence"), lambda n: f"{n:,}"),
        state.slide("b", say("Sequences in a microbatch")),
    )
    drawing.show(_kept(state["model"], state["s"], state["b"], state.view), "kept")
    state.heading(say("Kept and recomputed"))
    _table(state)
    symbols.draw(state, _model(state["model"], state["s"]), "s", "b", "h", "a", b=state["b"])
    state.controls(state.switch("kind", say("Recompute"), names.__getitem__))
    _formula(state)
    state.later(lambda: _steps(state))
    state.heading(say("Cost"))
    state.text(
        say(
            "Backward takes about twice as long as forward, because it computes two gradients where forward computes "
            "one result. Full recomputation runs the forward pass once more before it."
        )
    )
    drawing.show(_priced(state["kind"], state["model"], state["s"], state["b"], state.view), "price")


def _model(name: str, s: int) -> ModelSpec:
    return catalog.model(name).model_copy(update={"seq": s})


@st.cache_data(max_entries=128, show_spinner=False)
def _kept(name: str, s: int, b: int, view: View) -> Drawing:
    style = look(view)
    say, model = style.say, _model(name, s)
    labels = {"none": say("none"), "core_attn": say("selective"), "full": say("full")}
    sizes = {kind: model.layers * total(layer_activations(model, b, kind)) for kind in _KINDS}
    rows = pd.DataFrame([{"bar": labels[kind], "category": "activations", "bytes": size} for kind, size in sizes.items()])
    caption = (
        say("Activations of one microbatch in all {layers} layers of {model}", layers=model.layers, model=name),
        say(
            "Selective keeps {selective} of what a run without recomputation keeps, full {full}",
            selective=percent(sizes["core_attn"] / sizes["none"]),
            full=percent(sizes["full"] / sizes["none"]),
        ),
        say("Kept from forward to backward, on one device without tensor parallelism (Korthikanti et al. 2022)."),
    )
    return drawing.packed(teaching.stacks(rows, None, caption, style))


def _table(state: LessonState) -> None:
    say = state.say
    rows = [
        (say("none"), say("everything that backward needs"), say("nothing at all"), "34·s·b·h + 5·a·s²·b"),
        (
            say("selective"),
            say("all but the attention’s scores and weights"),
            say("q·kᵀ, softmax and its product with v"),
            "34·s·b·h",
        ),
        (say("full"), say("each layer’s input"), say("the whole layer"), "2·s·b·h"),
    ]
    names = (say("recompute"), say("kept"), say("computed again"), say("bytes a layer"))
    st.html(tables.plain(names, rows))


def _formula(state: LessonState) -> None:
    say, model = state.say, _model(state["model"], state["s"])
    terms = layer_activations(model, state["b"], state["kind"])
    state.formula(
        say("Kept in one layer"),
        " + ".join(term.symbols for term in terms),
        " + ".join(term.numbers for term in terms),
        in_bytes(total(terms)),
    )


def _steps(state: LessonState) -> None:
    say, kind = state.say, state["kind"]
    layout, workload = LayoutSpec(tp=2, recompute=kind), WorkloadSpec(microbatches=2, attention="written")
    spec = RunSpec(model=catalog.model("gpt-tiny"), layout=layout, workload=workload)
    done = done_by(spec)
    forward = {
        "none": say("Every layer keeps what its backward needs."),
        "core_attn": say("The attention’s scores and weights are dropped after use; the rest is kept."),
        "full": say("A layer keeps its input only."),
    }
    backward = {
        "none": say("Uses what was kept."),
        "core_attn": say("Computes scores and attention weights again, then continues."),
        "full": say("Runs the layer’s forward again from its input, its collectives too, then its backward."),
    }
    steps = [
        LessonStep(say("Split"), say("Nothing is split: recomputation works on each rank independently, in any layout.")),
        LessonStep(say("Forward"), forward[kind], *done["forward"]),
        LessonStep(say("Backward"), backward[kind], *done["backward"]),
        LessonStep(
            say("Update"), say("As without recomputation. The gradients are the same, bit for bit or nearly."), *done["update"]
        ),
    ]
    st.html(as_html(steps, say))
    st.caption(model_of(spec, say))


def backward_time(kind: Recompute, model: ModelSpec, b: int) -> float:
    """Backward time of one microbatch, in units of its forward: two, and the recomputed share of forward."""
    flops = layer_flops(model, b)
    again: dict[Recompute, float] = {"none": 0.0, "core_attn": flops["attention"] / sum(flops.values()), "full": 1.0}
    return 2.0 + again[kind]


def step_time(backward: float) -> float:
    """Time of a step of 1F1B with 4 stages and 8 microbatches, if forward takes 1."""
    return simulate(plan(LayoutSpec(pp=_P), _M), _durations(backward)).pipeline


def _durations(backward: float) -> Durations:
    unit = textbook(LayoutSpec(pp=_P))
    return replace(
        unit, compute={(kind, chunk): backward if kind == "B" else time for (kind, chunk), time in unit.compute.items()}
    )


@st.cache_data(max_entries=128, show_spinner=False)
def _priced(kind: Recompute, name: str, s: int, b: int, view: View) -> Drawing:
    style = look(view)
    say, backward = style.say, backward_time(kind, _model(name, s), b)
    before, after = step_time(2.0), step_time(backward)
    found = simulate(plan(LayoutSpec(pp=_P), _M), _durations(backward))
    names = [say("stage {stage}", stage=stage) for stage in range(_P)]
    drawn = timeline.textbook(list(found.timed), names, style)
    title = say("Nothing is computed again: a step takes {before} units", before=f"{before:g}")
    if kind != "none":
        title = say(
            "A step takes {after} units in place of {before}: {more} more",
            after=f"{after:.3g}",
            before=f"{before:g}",
            more=percent(after / before - 1),
        )
    caption = replace(
        drawn,
        subject=say("A step of 1F1B, {p} stages and {m} microbatches", p=_P, m=_M),
        title=title,
        reading=say(
            "Forward takes 1 unit, backward {backward}: 2, and what it does again. Of selective recomputation that is "
            "the attention’s share of a layer’s arithmetic.",
            backward=f"{backward:.3g}",
        ),
    )
    return drawing.packed(caption)


def _left(state: LessonState) -> Question:
    say, name = state.say, "gpt3-175b"
    model = catalog.model(name)
    all_of_it, left = (total(layer_activations(model, 1, kind)) for kind in ("none", "core_attn"))
    ratio = 5 * model.heads * model.seq / model.hidden
    return Question(
        asked=say(
            "In {model}, s = {s}, a = {a} heads, h = {h}. Selective recomputation drops 5·a·s²·b and keeps 34·s·b·h. "
            "What share of a layer’s activations is left, in percent?",
            model=name,
            s=f"{model.seq:,}",
            a=model.heads,
            h=f"{model.hidden:,}",
        ),
        right=100 * left / all_of_it,
        said=percent(left / all_of_it),
        why=say(
            "Most of what a layer keeps is scores and attention weights, and computing them again costs a few "
            "percent of the FLOPs."
        ),
        unit="%",
        within=0.07,
        reveal=lambda: state.formula(
            say("What is left"), "34 ÷ (34 + 5·a·s/h)", f"34 ÷ (34 + {ratio:g})", percent(left / all_of_it)
        ),
    )


def _longer(state: LessonState) -> Question:
    say = state.say
    before, after = step_time(2.0), step_time(backward_time("full", catalog.model("gpt3-175b"), 1))
    return Question(
        asked=say(
            "Forward takes 1 unit of time and backward 2. By how many percent does **full** recomputation lengthen a step?"
        ),
        right=100 * (after / before - 1),
        said=percent(after / before - 1),
        why=say("1 + 2 units become 1 + 1 + 2, and the bubble grows along with them."),
        unit="%",
        within=0.06,
        reveal=lambda: state.formula(
            say("Longer by"),
            "(F + F + B) ÷ (F + B) − 1",
            f"{significant(after)} ÷ {significant(before)} − 1",
            percent(after / before - 1),
        ),
    )


def _dropped(state: LessonState) -> Question:
    say = state.say
    model = catalog.model("gpt3-175b")
    sizes = {kind: total(layer_activations(model, 1, kind)) for kind in _KINDS}
    least = min(sizes, key=sizes.__getitem__)
    return Question(
        asked=say("Which keeps the fewest bytes, and so costs the most time?"),
        right=least,
        said={"none": say("none"), "core_attn": say("selective"), "full": say("full")}[least],
        why=say("It keeps 2·s·b·h a layer, the input alone, and computes all the rest again."),
        choices=(
            AnswerChoice("none", say("none")),
            AnswerChoice("core_attn", say("selective")),
            AnswerChoice("full", say("full")),
        ),
        reveal=lambda: drawing.show(_kept("gpt3-175b", model.seq, 1, state.view), "kept-answer"),
    )


LESSON = Lesson(
    title=lambda say: say("Recompute"),
    goal=lambda say: say("What need not be kept, what recomputing it costs, and when that is worth it."),
    knobs=(
        Knob("model", PUBLISHED_GPT, "gpt3-175b"),
        Knob("s", _LENGTHS, 2048),
        Knob("b", _BATCHES, 1),
        Knob("kind", _KINDS, "core_attn"),
    ),
    draw=_draw,
    questions=(_left, _longer, _dropped),
)
