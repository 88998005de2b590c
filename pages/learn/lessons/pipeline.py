"""Lesson 5: pipeline parallelism, bubbles, microbatches."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isclose

import pandas as pd
import streamlit as st

from engine import catalog
from engine.schedule import SCHEDULES, in_flight, plan
from engine.schedule.timeline import Timeline, simulate, textbook
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, RunSpec, ScheduleName, WorkloadSpec
from pages.charts import teaching, timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.names import schedules
from pages.charts.units import in_bytes, percent
from pages.learn import motion
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.scene import Scene
from pages.learn.scenes import pipeline as stages
from pages.learn.sizes import card
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.shared import drawing
from pages.shared.predicted import peaks

_STAGES, _MICROBATCHES = (1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 6, 8, 12, 16)
_LARGE, _TP, _DEVICE = "gpt3-175b", 8, "h100-80gb"  # the model, tp and device for which stages are shown in bytes
_SPEC = RunSpec(model=catalog.model("gpt-tiny"), layout=LayoutSpec(pp=3), workload=WorkloadSpec(microbatches=2))
_SIMPLE: tuple[ScheduleName, ...] = ("gpipe", "1f1b")


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Give each device several consecutive **whole layers**, a *stage*: the embedding and the first layers to "
            "stage 0, and so on to the last layers and the head. A sequence goes forward through all stages, and its "
            "gradient goes back through them. With one sequence at a time all stages but one would wait; so the "
            "batch is divided into **microbatches** that follow each other."
        )
    )
    state.later(lambda: _cards(state))
    state.heading(say("The timeline"))
    state.controls(
        state.pick("schedule", say("Schedule"), schedules(say).__getitem__),
        state.slide("p", say("Stages p")),
        state.slide("m", say("Microbatches m")),
    )
    schedule, p, m = state["schedule"], state["p"], state["m"]
    try:
        layout = layout_of(schedule, p, m)
    except RequestError as error:
        st.warning(say("This does not go together: {reason}.", reason=say.sentence(error.sentence)), icon=":material/rule:")
    else:
        state.text(
            say(
                "Watch the squares: each is what a stage keeps of one microbatch, from its forward to its backward. Stage 0 "
                "starts first and gets its gradients last."
            )
        )
        motion.show(_scene(layout, m, state.view), "pipeline", say)
        drawing.show(_timeline(layout, m, state.view), "lesson-timeline")
        state.side_by_side(lambda: _bubble(state, layout, m), lambda: _held(state, layout, m))
        state.later(lambda: drawing.show(_in_bytes(layout, m, state.view), "in-bytes"))


def _cards(state: LessonState) -> None:
    say = state.say
    done = done_by(_SPEC, stage=1)
    steps = [
        LessonStep(say("Split"), say("The layers go to stages, the batch into microbatches.")),
        LessonStep(say("Forward"), say("A stage receives activations, computes, and sends its own on."), *done["forward"]),
        LessonStep(
            say("Backward"),
            say("Gradients come back in the opposite order, from the last stage to the first."),
            *done["backward"],
        ),
        LessonStep(
            say("Update"),
            say("After the last microbatch each stage updates its own layers. Only the gradients’ norm is added up."),
            *done["update"],
        ),
    ]
    st.html(as_html(steps, say))
    st.caption(say("Stage 1 of 3.") + " " + model_of(_SPEC, say))


def layout_of(schedule: ScheduleName, p: int, m: int) -> LayoutSpec:
    """A pipeline of p stages, with two chunks a stage if the schedule needs more than one. Raises `RequestError`."""
    layout = LayoutSpec(pp=p, schedule=schedule, chunks=SCHEDULE_FACTS[schedule].least_chunks)
    RunSpec(model=ModelSpec(layers=2 * max(_STAGES)), layout=layout, workload=WorkloadSpec(microbatches=m))
    return layout


def timed(layout: LayoutSpec, m: int) -> Timeline:
    """The simulated schedule in the papers' units: forward takes 1, backward 2."""
    return simulate(plan(layout, m), textbook(layout))


@st.cache_data(max_entries=128, show_spinner=False)
def _timeline(layout: LayoutSpec, m: int, view: View) -> Drawing:
    style = look(view)
    say, found = style.say, timed(layout, m)
    names = [say("stage {stage}", stage=stage) for stage in range(layout.pp)]
    return drawing.packed(timeline.textbook(list(found.timed), names, style))


@st.cache_data(max_entries=64, show_spinner=False)
def _scene(layout: LayoutSpec, m: int, view: View) -> Scene:
    return stages.scene(timed(layout, m), look(view))


def _bubble(state: LessonState, layout: LayoutSpec, m: int) -> None:
    say, p, found = state.say, layout.pp, timed(layout, m)
    state.heading(say("The bubble"))
    state.text(
        say(
            "A stage idles while the pipeline fills and while it drains; that is the *bubble*. Papers quote it in two "
            "ways: as a share of the **total** time, or of the **ideal** time, which is total less bubble. Always ask "
            "which."
        )
    )
    of_total, of_ideal = closed_forms(layout, m)
    state.formula(say("Share of total time"), *of_total, percent(found.bubble))
    state.formula(say("Share of ideal time"), *of_ideal, percent(found.bubble_of_ideal))
    drawing.show(_shrinking(layout.schedule, p, m, state.view), "bubbles")


def closed_forms(layout: LayoutSpec, m: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """The bubble's formula with symbols and with numbers, as a share of total and of ideal time.

    If there are too few microbatches to fill the pipeline, the schedule's closed form is not valid: then idle time ÷ that time.
    """
    found, p, v = timed(layout, m), layout.pp, layout.chunks
    idle, busy = f"{sum(found.idle):g}", f"{sum(found.busy):g}"
    by_hand = ("idle ÷ (p × makespan)", f"{idle} ÷ ({p} × {found.pipeline:g})"), ("idle ÷ busy", f"{idle} ÷ {busy}")
    total = layout.facts.bubble.replace("/", "÷")
    fills = re.fullmatch(r"\(p − 1\) ÷ \((.+) \+ p − 1\)", total)
    if not fills or not isclose(found.bubble, layout.facts.bubble_share(p, m, v), abs_tol=1e-9):
        return by_hand
    ideal = f"(p − 1) ÷ ({fills[1]})" if "·" in fills[1] else f"(p − 1) ÷ {fills[1]}"
    values = {"p": p, "m": m, "v": v}

    def put_in(symbols: str) -> str:
        return re.sub(r"\b[pmv]\b", lambda symbol: str(values[symbol[0]]), symbols)

    return (total, put_in(total)), (ideal, put_in(ideal))


@st.cache_data(max_entries=128, show_spinner=False)
def _bubbles(schedule: ScheduleName, p: int) -> dict[int, float]:
    """The bubble for each number of microbatches that the schedule accepts."""
    found = {}
    for m in _MICROBATCHES:
        try:
            found[m] = timed(layout_of(schedule, p, m), m).bubble
        except RequestError:  # the schedule does not accept this number
            continue
    return found


@st.cache_data(max_entries=128, show_spinner=False)
def _shrinking(schedule: ScheduleName, p: int, here: int, view: View) -> Drawing:
    style = look(view)
    say, found = style.say, _bubbles(schedule, p)
    name = schedules(say)[schedule]
    least = min(found, key=found.__getitem__)
    rows = pd.DataFrame([{"x": m, "y": share, "series": name} for m, share in found.items()])
    captions = (
        say("Bubble by number of microbatches, {count} stages", count=p),
        say(
            "{share} of total time with {here} microbatches; with {most} it is {least}",
            share=percent(found[here]),
            here=here,
            most=least,
            least=percent(found[least]),
        ),
        say("Each point is a timeline as above with that many microbatches; those that the schedule does not take are left out."),
    )
    axes = (say("microbatches"), say("bubble, share of total time"))
    return drawing.packed(teaching.curves(rows, axes, here, {name: style.blue}, captions, style, form=".0%"))


def _held(state: LessonState, layout: LayoutSpec, m: int) -> None:
    say = state.say
    state.heading(say("Which stage needs the most memory"))
    state.text(
        say(
            "Between a microbatch’s forward and its backward a stage must keep its activations. Under 1F1B **stage 0 "
            "starts first and gets its first gradient last**: by then it has started p microbatches. The last stage "
            "runs each backward right after its forward and keeps one. GPipe runs all forwards first, so every stage "
            "keeps all m."
        )
    )
    drawing.show(_in_flight(layout, m, state.view), "in-flight")
    if layout.schedule == "1f1b":
        p = layout.pp
        kept = ", ".join(str(in_flight(plan(layout, m), stage)) for stage in range(p))
        state.formula(say("Kept by stage i, from stage 0 on"), "min(m, p − i)", f"min({m}, {p} − i)", kept)


@st.cache_data(max_entries=128, show_spinner=False)
def _in_flight(layout: LayoutSpec, m: int, view: View) -> Drawing:
    style = look(view)
    say, schedule = style.say, plan(layout, m)
    kept = [in_flight(schedule, stage) / layout.chunks for stage in range(layout.pp)]
    rows = pd.DataFrame({"name": [say("stage {stage}", stage=stage) for stage in range(layout.pp)], "value": kept})
    title = say("Every stage keeps the activations of {count} at most", count=f"{kept[0]:g}")
    if min(kept) < max(kept):
        title = say(
            "Stage {stage} keeps the most: {most} microbatches at a time; the fewest are {least}",
            stage=kept.index(max(kept)),
            most=f"{max(kept):g}",
            least=f"{min(kept):g}",
        )
    captions = (
        say("Microbatches in flight"),
        title,
        say("The most microbatches that a stage has run forward and not yet backward, in units of its whole run of layers."),
    )
    return drawing.packed(teaching.columns(rows, (say("stage"), say("microbatches kept")), captions, style))


@st.cache_data(max_entries=128, show_spinner=False)
def _in_bytes(layout: LayoutSpec, m: int, view: View) -> Drawing:
    style = look(view)
    say = style.say
    model = catalog.model(_LARGE)
    workload = WorkloadSpec(microbatches=m, microbatch_size=1, precision="bf16")
    found = peaks(RunSpec(model=model, layout=layout.model_copy(update={"tp": _TP}), workload=workload)).peaks
    rows = pd.DataFrame(
        [
            {"bar": say("stage {stage}", stage=peak.stage), "category": category, "bytes": count}
            for peak in found
            for category, count in peak.bytes.items()
        ]
    )
    most, least = max(found, key=lambda peak: peak.total), min(found, key=lambda peak: peak.total)
    title = say("Each rank of the only stage needs {most}", most=in_bytes(most.total))
    if len(found) > 1:
        title = say(
            "A rank of stage {stage} needs most: {most}, against {least} on stage {other}",
            stage=most.stage,
            most=in_bytes(most.total),
            least=in_bytes(least.total),
            other=least.stage,
        )
    captions = (
        say("The same in bytes: {model}, its layers’ matrices cut over tp = {tp}", model=_LARGE, tp=_TP),
        title,
        say(
            "Peak memory of one rank of each stage with {m} microbatches, by the engine’s own formula, in bf16; the "
            "dashed line is what one {device} holds.",
            m=m,
            device=_DEVICE,
        ),
    )
    return drawing.packed(teaching.stacks(rows, (_DEVICE, card(_DEVICE)), captions, style))


# ------------------------------------------------------------------------------------------------------------- questions


def _who(p: int, m: int) -> Callable[[LessonState], Question]:
    def question(state: LessonState) -> Question:
        say = state.say
        layout = LayoutSpec(pp=p)
        kept = [in_flight(plan(layout, m), stage) for stage in range(p)]
        fullest = kept.index(max(kept))
        return Question(
            asked=say(
                "1F1B with {p} stages and {m} microbatches, the same number of layers on each stage. Which stage needs "
                "the most memory for activations?",
                p=p,
                m=m,
            ),
            right=f"stage{fullest}" if kept.count(max(kept)) == 1 else "all",
            said=say("stage {stage}, with {count} microbatches in flight", stage=fullest, count=kept[fullest]),
            why=say(
                "It starts first and its gradients arrive last, so by its first backward it has run {count} forwards "
                "and must keep them all.",
                count=kept[fullest],
            ),
            choices=(
                *(AnswerChoice(f"stage{stage}", say("stage {stage}", stage=stage)) for stage in range(p)),
                AnswerChoice("all", say("all the same")),
            ),
            reveal=lambda: drawing.show(_in_flight(layout, m, state.view), "in-flight-answer"),
        )

    return question


def _share(state: LessonState) -> Question:
    say, p, m = state.say, 4, 12
    layout = LayoutSpec(pp=p)
    found = timed(layout, m)
    return Question(
        asked=say("1F1B with {p} stages and {m} microbatches: what share of the **total** time is bubble, in percent?", p=p, m=m),
        right=100 * found.bubble,
        said=percent(found.bubble),
        why=say(
            "Of the ideal time it would be {ideal}: a bubble means little without its denominator.",
            ideal=percent(found.bubble_of_ideal),
        ),
        unit="%",
        within=0.05,
        reveal=lambda: drawing.show(_timeline(layout, m, state.view), "timeline-answer"),
    )


def _gpipe(state: LessonState) -> Question:
    say, p, m = state.say, 4, 16
    kept = {name: in_flight(plan(LayoutSpec(pp=p, schedule=name), m), 0) for name in _SIMPLE}
    return Question(
        asked=say(
            "{p} stages, {m} microbatches. How many microbatches does stage 0 keep under **GPipe**, which runs all "
            "forwards first?",
            p=p,
            m=m,
        ),
        right=float(kept["gpipe"]),
        said=say.plural("{count} microbatch", "{count} microbatches", kept["gpipe"]),
        why=say("1F1B has the same bubble and keeps {count}: that is why it is used.", count=kept["1f1b"]),
        unit=say("microbatches"),
        within=0.001,
        reveal=lambda: drawing.show(_in_flight(LayoutSpec(pp=p, schedule="gpipe"), m, state.view), "gpipe-answer"),
    )


LESSON = Lesson(
    title=lambda say: say("Pipeline parallelism"),
    goal=lambda say: say("What a bubble is, how microbatches shrink it, and why stage 0 needs the most memory under 1F1B."),
    knobs=(
        Knob("schedule", SCHEDULES, "1f1b"),
        Knob("p", _STAGES, 4),
        Knob("m", _MICROBATCHES, 6),
    ),
    draw=_draw,
    questions=(_who(4, 8), _share, _gpipe),
)
