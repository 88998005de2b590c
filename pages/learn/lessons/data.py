"""Lesson 3: data parallelism."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from engine import catalog
from engine.papers.closed_forms import states
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from pages.charts import teaching
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.overlap import Bar, overlap
from pages.charts.units import in_bytes, percent, scientific
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.matrices import matrix, number, owners
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.learn.toys import Array, Regression, replicas
from pages.shared import drawing

_SAMPLES, _STEPS = 8, 12
_LAYERS, _RATIOS = 8, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the timeline with hidden communication
_SPEC = RunSpec(model=catalog.model("gpt-tiny"), layout=LayoutSpec(dp=2), workload=WorkloadSpec(microbatches=2))
_AT = np.array([0.5, 0.5, 0.5])  # the weights at which the gradients are shown


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "The simplest way to use more devices: give each the **whole model** and a **part of the batch**. Each "
            "computes its gradients independently. Then all of them average their gradients and make the same "
            "update: the copies stay equal."
        )
    )
    state.later(lambda: _steps(state))
    state.heading(say("Check that the result is the same"))
    state.text(
        say(
            "A model of three weights and a batch of {samples} samples. Choose how many replicas share them: the "
            "average of their gradients is the gradient of the whole batch.",
            samples=_SAMPLES,
        )
    )
    state.controls(
        state.switch("dp", say("Replicas (dp)")),
        state.switch("average", say("After backward"), lambda on: say("average gradients") if on else say("do not")),
    )
    st.html(_gradients(state))
    drawing.show(_apart(state["dp"], state["average"], state.view), "apart")
    _hide(state)
    state.heading(say("Savings and cost"))
    state.text(
        say(
            "It saves time: dp replicas read dp times as much in a step. It saves **no memory for the model**, since "
            "every replica holds all of it (ZeRO, lesson 7, changes that). It costs one all-reduce of all gradients a "
            "step, which can run beside the rest of the backward pass."
        )
    )


def _steps(state: LessonState) -> None:
    say = state.say
    done = done_by(_SPEC)
    steps = [
        LessonStep(say("Split"), say("Each replica gets its own part of the batch, and has the whole model.")),
        LessonStep(say("Forward"), say("Independently: no replica needs anything of another."), *done["forward"]),
        LessonStep(
            say("Backward"),
            say("Independently too; then the gradients are averaged over the replicas, layer by layer as they are ready."),
            *done["backward"],
        ),
        LessonStep(
            say("Update"),
            say("All replicas have the same gradients, so all make the same update. Of the loss, one number is averaged."),
            *done["update"],
        ),
    ]
    st.html(as_html(steps, say))
    st.caption(model_of(_SPEC, say))


def _hide(state: LessonState) -> None:
    """Communication behind computation."""
    say = state.say
    state.heading(say("Communication hidden behind computation"))
    state.text(
        say(
            "Backward goes from the last layer to the first. When a layer’s gradients are complete, their all-reduce can run "
            "while the layers before it are still computing. What runs beside computation is **hidden**: it costs no time. "
            "What is left when backward has ended is **exposed**: all wait for it."
        )
    )
    state.controls(
        state.slide("ratio", say("All-reduce of a layer ÷ its backward"), lambda ratio: f"{ratio:g}"),
        state.switch(
            "overlap", say("All-reduce"), lambda on: say("as soon as a layer is ready") if on else say("after backward")
        ),
    )
    drawing.show(_overlapped(state["ratio"], state["overlap"], state.view), "overlap")
    state.text(
        say(
            "The ratio falls with more tokens on each device: backward then takes longer, and the gradients are as large as "
            "before. Above 1 the all-reduces queue up, and those of the first layers, which come last, are exposed."
        )
    )


def overlapped(ratio: float, at_once: bool) -> list[Bar]:
    """Forward of `_LAYERS` layers in 1 unit each, backward in 2, and each layer's all-reduce in `ratio` times its backward."""
    bars = [Bar("forward", "F", 0.0, float(_LAYERS))]
    ends = _LAYERS + 2.0 * _LAYERS
    free = 0.0
    for done in range(_LAYERS):
        layer, start = str(_LAYERS - done), _LAYERS + 2.0 * done
        bars.append(Bar("backward", layer, start, start + 2.0))
        begin = max(free, start + 2.0 if at_once else ends)
        free = begin + 2.0 * ratio
        if begin < ends:
            bars.append(Bar("hidden", layer, begin, min(free, ends)))
        if free > ends:
            bars.append(Bar("exposed", layer, max(begin, ends), free))
    return bars


@st.cache_data(max_entries=32, show_spinner=False)
def _overlapped(ratio: float, at_once: bool, view: View) -> Drawing:
    style = look(view)
    say, bars = style.say, overlapped(ratio, at_once)
    time = {kind: sum(bar.end - bar.start for bar in bars if bar.kind == kind) for kind in ("hidden", "exposed")}
    captions = (
        say("One microbatch of {count} layers, and the all-reduce of their gradients", count=_LAYERS),
        say(
            "{hidden} of communication is hidden; {exposed} units are exposed, {share} of the time",
            hidden=percent(time["hidden"] / (time["hidden"] + time["exposed"])),
            exposed=f"{time['exposed']:g}",
            share=percent(time["exposed"] / max(bar.end for bar in bars)),
        ),
        say("A layer’s forward takes 1 unit and its backward 2. Numbers are layers. One all-reduce runs at a time."),
    )
    return drawing.packed(overlap(bars, captions, style))


def _gradients(state: LessonState) -> str:
    """HTML: a row for each replica, their average, and the gradient of the whole batch."""
    say, dp = state.say, state["dp"]
    data, colours = Regression.drawn(_SAMPLES), owners(state.style)
    each = _SAMPLES // dp
    rows, parts = [], []
    for index in range(dp):
        gradient = data.part(index, dp).gradient(_AT)
        parts.append(gradient)
        first = index * each
        name = say("replica {index}: samples {first} to {last}", index=index, first=first, last=first + each - 1)
        if each == 1:
            name = say("replica {index}: sample {first}", index=index, first=first)
        rows.append((name, gradient, colours[index]))
    whole, mean = data.gradient(_AT), np.mean(parts, axis=0)
    rows.append((say("average of the {count} replicas", count=dp) if dp > 1 else say("average of one replica"), mean, ""))
    rows.append((say("one device, the whole batch"), whole, ""))
    body = "".join(
        f"<tr><th scope=row style='border-left:5px solid {colour or 'transparent'};padding-left:.5rem'>{name}</th>"
        + "".join(
            f'<td data-label="{say("gradient of w{index}", index=index)}">{number(round(float(value), 2))}</td>'
            for index, value in enumerate(gradient)
        )
        + "</tr>"
        for name, gradient, colour in rows
    )
    head = "".join(f"<th>{say('gradient of w{index}', index=index)}</th>" for index in range(3))
    difference = float(np.abs(whole - mean).max())
    said = say(
        "largest difference between the last two rows: {difference}", difference="0" if not difference else scientific(difference)
    )
    return f'<table class="ss-plain"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table><p>{said}</p>'


@st.cache_data(max_entries=32, show_spinner=False)
def _apart(dp: int, average: bool, view: View) -> Drawing:
    style = look(view)
    say = style.say
    weights = replicas(Regression.drawn(_SAMPLES), dp, _STEPS, average)
    spread = spread_of(weights)
    rows = pd.DataFrame({"x": range(_STEPS + 1), "y": spread, "series": say("largest difference")})
    title = say("The {count} copies stay equal: averaged gradients make the same update everywhere", count=dp)
    if dp == 1:
        title = say("One replica: nothing to compare")
    elif not average:
        title = say(
            "Without averaging, the copies diverge: by up to {most} after {steps} steps", most=f"{spread[-1]:.2f}", steps=_STEPS
        )
    captions = (
        say("Difference between the replicas’ weights"),
        title,
        say("The largest difference of any weight between any two replicas, after each step of training."),
    )
    axes = (say("step"), say("largest difference"))
    return drawing.packed(teaching.curves(rows, axes, None, {say("largest difference"): style.blue}, captions, style, form=".2f"))


def spread_of(weights: Array) -> Array:
    """The largest difference between two replicas at each step. (steps, dp, 3) → (steps,)"""
    return (weights.max(axis=1) - weights.min(axis=1)).max(axis=1)


def _saves(state: LessonState) -> Question:
    say, parameters, dp = state.say, 1_000_000_000, 4
    alone, shared = (sum(term.value for term in states(parameters, 0, count).values()) for count in (1, dp))
    ratio = shared / alone
    return Question(
        asked=say(
            "One device trains a model of 1 B parameters. Now {dp} devices train it with data parallelism. How much memory do "
            "parameters, gradients and optimizer take on **each** of them?",
            dp=dp,
        ),
        right={1.0: "same", 1 / dp: "quarter"}[ratio],
        said=say("{bytes}, as on one device alone", bytes=in_bytes(shared)),
        why=say("Every replica holds the whole model: only the batch is split."),
        choices=(
            AnswerChoice("quarter", say("a quarter each")),
            AnswerChoice("half", say("half each")),
            AnswerChoice("same", say("as much as before, each")),
        ),
        reveal=lambda: state.formula(
            say("States of each replica, without ZeRO"), "(2 + 2 + 12) · Ψ", f"16 · {parameters:,}", in_bytes(shared)
        ),
    )


def _average(state: LessonState) -> Question:
    say, dp = state.say, 2
    data = Regression.drawn(4, seed=8)
    first, second = (float(data.part(index, dp).gradient(_AT)[0]) for index in range(dp))
    whole = float(data.gradient(_AT)[0])
    return Question(
        asked=say(
            "Two replicas took half of a batch each. For one weight the first has the gradient {first}, the second "
            "{second}. What is that weight’s gradient over the whole batch?",
            first=f"**{number(round(first, 2))}**",
            second=f"**{number(round(second, 2))}**",
        ),
        right=whole,
        said=number(round(whole, 2)),
        why=say(
            "The loss is a mean over samples, so its gradient is the mean of the replicas’ gradients when their parts are equal."
        ),
        within=0.02,
        reveal=lambda: st.html(matrix(say("whole batch"), np.array([[whole]]))),
    )


LESSON = Lesson(
    title=lambda say: say("Data parallelism"),
    goal=lambda say: say("Why copies that see different data stay the same model, and what that does not save."),
    knobs=(
        Knob("dp", (1, 2, 4, 8), 4),
        Knob("average", (True, False), True),
        Knob("ratio", _RATIOS, 1.25),
        Knob("overlap", (True, False), True),
    ),
    draw=_draw,
    questions=(_saves, _average),
)
