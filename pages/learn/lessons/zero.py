"""Lesson 7: ZeRO."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine import catalog
from engine.papers.closed_forms import states
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from pages.charts import teaching
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, short, significant
from pages.learn import motion, tables
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.scene import Scene
from pages.learn.scenes import zero as buckets
from pages.learn.sizes import CARDS, PUBLISHED_GPT, card
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.shared import drawing

_STAGES, _REPLICAS = (0, 1, 2, 3), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_NODE = 8  # replicas in a group of hybrid sharding


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Data parallelism keeps the same parameters, gradients and optimizer state on every replica: dp copies "
            "of the same numbers. **ZeRO** keeps each number on one replica and gathers it where it is needed. Stage "
            "1 shards the optimizer’s state, stage 2 also the gradients, stage 3 also the parameters."
        )
    )
    state.text(
        say(
            "**ZeRO 3 and FSDP are the same method.** ZeRO 3 is its name in the paper and in DeepSpeed; PyTorch calls it *fully "
            "sharded data parallel* (`FullyShardedDataParallel`, now `fully_shard`). FSDP’s `SHARD_GRAD_OP` is ZeRO 2. "
            "Megatron-LM’s *distributed optimizer* is ZeRO 1."
        )
    )
    state.controls(
        state.pick("model", say("Model")),
        state.slide("dp", say("Replicas (dp)"), lambda n: f"{n:,}"),
        state.pick("device", say("Device")),
    )
    drawing.show(_bars(state["model"], state["dp"], state["device"], state.view), "zero")
    state.heading(say("One stage, with its formula"))
    state.controls(state.switch("zero", say("ZeRO stage"), lambda stage: "3 (FSDP)" if stage == 3 else str(stage)))
    _formula(state)
    state.text(
        say(
            "One step on four replicas, with a model of two layers. A square is a quarter of a layer’s numbers. Its colour says "
            "which replica owns it."
        )
    )
    motion.show(_scene(state["zero"], state.view), "zero", say, seconds=2.2)
    state.later(lambda: _steps(state))
    state.heading(say("What is gathered when"))
    _table(state)
    _in_groups(state)


def _in_groups(state: LessonState) -> None:
    """Hybrid sharding, with the sizes of the model and the replicas that are chosen above."""
    say, dp = state.say, state["dp"]
    text = say(
        "**Hybrid sharding** (FSDP’s `HYBRID_SHARD`) is between ZeRO 3 and plain copies. Replicas shard within a group, such as "
        "the {node} of a node, and all groups hold the same. So parameters are gathered over the fast links of a node. Between "
        "nodes only gradients travel, each share once a step.",
        node=_NODE,
    )
    if dp > _NODE:
        over_all, in_node = (sum(_per_rank(state["model"], 3, ranks).values()) for ranks in (dp, _NODE))
        text = say.together(
            text,
            say(
                "The price is memory: of {model}, each of {count} replicas has {in_node} of states, instead of {over_all}.",
                model=state["model"],
                count=f"{dp:,}",
                in_node=in_bytes(in_node),
                over_all=in_bytes(over_all),
            ),
        )
    state.text(text)


@st.cache_data(max_entries=16, show_spinner=False)
def _scene(zero: int, view: View) -> Scene:
    return buckets.scene(zero, look(view))


def _per_rank(name: str, zero: int, dp: int) -> dict[str, int]:
    return {category: term.value for category, term in states(catalog.model(name).parameters(), zero, dp).items()}


@st.cache_data(max_entries=128, show_spinner=False)
def _bars(name: str, dp: int, device: str, view: View) -> Drawing:
    style = look(view)
    say = style.say
    rows = pd.DataFrame(
        [
            {"bar": say("ZeRO {stage}", stage=zero), "category": category, "bytes": count}
            for zero in _STAGES
            for category, count in _per_rank(name, zero, dp).items()
        ]
    )
    totals = [sum(_per_rank(name, zero, dp).values()) for zero in _STAGES]
    fits = next((zero for zero, total in zip(_STAGES, totals, strict=True) if total <= card(device)), None)
    title = say("No stage fits one {device}: even ZeRO 3 leaves {least} on each", device=device, least=in_bytes(totals[-1]))
    if fits is not None:
        title = say(
            "From ZeRO {stage} on the states fit one {device}: {bytes} on each replica",
            stage=fits,
            device=device,
            bytes=in_bytes(totals[fits]),
        )
    captions = (
        say.plural("States of {model} on its only replica", "States of {model} on each of {count} replicas", dp, model=name),
        title,
        say("Parameters, gradients and optimizer in mixed precision, 16 bytes a parameter in all; activations come on top."),
    )
    return drawing.packed(teaching.stacks(rows, (device, card(device)), captions, style))


def _formula(state: LessonState) -> None:
    say, zero, dp = state.say, state["zero"], state["dp"]
    terms = states(catalog.model(state["model"]).parameters(), zero, dp)
    symbols = " + ".join(term.symbols.replace("bytes", str(term.factors[0].value)) for term in terms.values())
    numbers = " + ".join(term.numbers for term in terms.values())
    total = in_bytes(sum(term.value for term in terms.values()))
    state.formula(say("Parameters + gradients + optimizer, on each replica, ZeRO {stage}", stage=zero), symbols, numbers, total)


def _steps(state: LessonState) -> None:
    say, zero = state.say, state["zero"]
    workload = WorkloadSpec(microbatches=2)
    spec = RunSpec(model=catalog.model("gpt-tiny"), layout=LayoutSpec(dp=2, zero=zero), workload=workload)
    done = done_by(spec)
    split = {
        0: say("The batch. Every replica has everything."),
        1: say("The batch, and the optimizer’s state over the replicas."),
        2: say("The batch, the optimizer’s state and the gradients over the replicas."),
        3: say("The batch, and all states over the replicas."),
    }
    backward = {
        0: say("Gradients are averaged on all replicas."),
        1: say("Each replica receives the average of its share of the gradients."),
        2: say("After each microbatch, each replica receives its share of the gradients and drops the rest."),
        3: say("Parameters are gathered again, layer by layer; each replica receives its share of the gradients."),
    }
    update = {
        0: say("Every replica updates all parameters."),
        1: say("Each updates its shard, then all gather the updated parameters."),
        2: say("Each updates its shard, then all gather the updated parameters."),
        3: say("Each updates its shard. The parameters stay sharded."),
    }
    forward = (
        say("Independently.")
        if zero < 3
        else say("Each layer’s parameters are gathered just before their use, and dropped after it.")
    )
    steps = [
        LessonStep(say("Split"), split[zero]),
        LessonStep(say("Forward"), forward, *done["forward"]),
        LessonStep(say("Backward"), backward[zero], *done["backward"]),
        LessonStep(say("Update"), update[zero], *done["update"]),
    ]
    st.html(as_html(steps, say))
    st.caption(model_of(spec, say))


def _table(state: LessonState) -> None:
    """The collectives of each ZeRO stage, as in `engine.parallel.data`."""
    say = state.say
    passes = (
        say("all-reduce of the gradients, once a step"),
        say("reduce-scatter of the gradients, once a step; all-gather of the new parameters"),
        say("reduce-scatter of the gradients, for each microbatch; all-gather of the new parameters"),
        say("reduce-scatter of the gradients, for each microbatch; all-gather of each layer’s parameters around each use"),
    )
    rows = [
        ("0", "Ψ", "Ψ", "Ψ", passes[0]),
        ("1", "Ψ", "Ψ", "Ψ/dp", passes[1]),
        ("2", "Ψ", "Ψ/dp", "Ψ/dp", passes[2]),
        ("3", "Ψ/dp", "Ψ/dp", "Ψ/dp", passes[3]),
    ]
    names = ("ZeRO", say("parameters"), say("gradients"), say("optimizer"), say("communication between replicas"))
    st.html(tables.plain(names, rows))
    state.text(
        say(
            "A ring all-reduce is a reduce-scatter and an all-gather, one after the other: so ZeRO 1 sends no more "
            "than plain data parallelism. ZeRO 3 gathers the parameters for forward and again for backward."
        )
    )


def _published(state: LessonState) -> Question:
    """The numbers of figure 1 of Rajbhandari et al. 2020, computed."""
    say, count, dp, zero = state.say, 7_500_000_000, 64, 2
    terms = states(count, zero, dp)
    total = sum(term.value for term in terms.values())
    parts = " + ".join(term.numbers for term in terms.values())
    return Question(
        asked=say(
            "{count} parameters, {dp} replicas, ZeRO {zero}: optimizer (12 bytes) and gradients (2) are sharded, "
            "parameters (2) are not. How many GB (10⁹ bytes) of states are on each replica?",
            count=short(count, say),
            dp=dp,
            zero=zero,
        ),
        right=total / 1e9,
        said=say("{total} GB", total=significant(total / 1e9)),
        why=say(
            "The parameters alone are {values} GB; the rest, sharded over {dp} replicas, is small in comparison.",
            values=f"{2 * count / 1e9:g}",
            dp=dp,
        ),
        unit="GB",
        within=0.05,
        reveal=lambda: state.formula(say("On each replica"), "2·Ψ + (2 + 12)·Ψ/dp", parts, f"{total / 1e9:.1f} GB"),
    )


def _first_fit(state: LessonState) -> Question:
    say, name, dp, device = state.say, "gpt3-13b", 16, "a100-40gb"
    fits = [zero for zero in _STAGES if sum(_per_rank(name, zero, dp).values()) <= card(device)]
    return Question(
        asked=say(
            "{model} on {dp} devices with {memory} each, data parallelism only, activations left aside. Which is the "
            "first ZeRO stage whose states fit?",
            model=name,
            dp=dp,
            memory=in_bytes(card(device)),
        ),
        right=f"zero{fits[0]}" if fits else "none",
        said=say("ZeRO {stage}", stage=fits[0]) if fits else say("none of them"),
        why=say("The bars show where each stage ends and where the device does."),
        choices=(
            *(AnswerChoice(f"zero{z}", say("ZeRO {stage}", stage=z)) for z in _STAGES),
            AnswerChoice("none", say("none of them")),
        ),
        reveal=lambda: drawing.show(_bars(name, dp, device, state.view), "zero-answer"),
    )


LESSON = Lesson(
    title=lambda say: say("ZeRO"),
    goal=lambda say: say("How ZeRO shards what data parallelism keeps dp times, and what has to be gathered when."),
    knobs=(
        Knob("model", PUBLISHED_GPT, "gpt3-13b"),
        Knob("dp", _REPLICAS, 64),
        Knob("device", tuple(CARDS), "h100-80gb"),
        Knob("zero", _STAGES, 1),
    ),
    draw=_draw,
    questions=(_published, _first_fit),
)
