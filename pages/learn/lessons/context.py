"""Lesson 11: long sequences, and context parallelism."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from engine import catalog
from engine.predict.run import predict
from engine.spec import BYTES_OF, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from pages.charts import teaching
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, percent, significant
from pages.charts.words import Words
from pages.learn import motion, symbols, tables
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.matrices import number
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.ring import Cut, Running, idle
from pages.learn.scene import Scene
from pages.learn.scenes import ring
from pages.learn.sizes import card
from pages.learn.steps import LessonStep, as_html, done_by, model_of
from pages.shared import drawing
from pages.shared.predicted import with_ledgers_shown

_MODEL, _DEVICE, _DEVICES = "llama3-8b", "h100-80gb", 8
_LENGTHS, _DEGREES = (16384, 32768, 65536, 131072, 262144), (1, 2, 4, 8)
_SCORES, _VALUES = np.array([1.0, 3.0, 2.0, 4.0]), np.array([10.0, 20.0, 30.0, 40.0])  # of one row, in two parts
SPEC = RunSpec(model=catalog.model("gpt-tiny"), layout=LayoutSpec(cp=2), workload=WorkloadSpec(microbatches=2))


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Activations grow with the length of a sequence, and one sequence is the least that a replica can have. ZeRO shards "
            "states, not activations. Pipeline stages do not shorten a sequence. Tensor parallelism shards most "
            "activations, but its collectives want the links of one node. **Context parallelism** (cp) cuts the sequence itself: "
            "each rank has s/cp of its tokens in every layer."
        )
    )
    state.controls(state.slide("s", say("Tokens in a sequence"), lambda n: f"{n:,}"))
    symbols.draw(state, _model(state["s"]), "s", "h", "a")
    state.later(lambda: drawing.show(_bars(state["s"], state.view), "context"))
    state.later(lambda: _steps(state))
    state.heading(say("Attention over a ring of ranks"))
    state.text(
        say(
            "Norms and the MLP look at each token by itself, so a rank needs nothing for its own tokens. Attention is "
            "different: a query needs the keys and values of all tokens before it. In **ring attention** each rank keeps its "
            "queries. Keys and values go round the ring: in each pass a rank computes the scores for the keys that it has, and "
            "sends them on meanwhile."
        )
    )
    state.controls(
        state.switch("cp", say("Ranks (cp)")),
        state.switch("cut", say("Chunks of a rank"), lambda cut: say("in order") if cut == "order" else say("from both ends")),
    )
    motion.show(_scene(state["cp"], state["cut"], state.view), "ring", say, seconds=2.4)
    state.text(
        say(
            "Attention is causal, so late tokens see more than early ones. Cut in order, the last rank computes most, and in "
            "each later pass some ranks have nothing to do. If a rank has one chunk from each end, all have the same work: ranks "
            "idle {order} of the time with chunks in order, and {ends} with chunks from both ends.",
            order=percent(idle(state["cp"], "order")),
            ends=percent(idle(state["cp"], "ends")),
        )
    )
    state.heading(say("How a row is put together"))
    _row(state)
    state.heading(say("Three ways to attend across ranks"))
    _ways(state)


def _model(s: int) -> ModelSpec:
    return catalog.model(_MODEL).model_copy(update={"seq": s})


def _spec(s: int, cp: int) -> RunSpec:
    """One sequence for each cp group on eight devices, with ZeRO 3 over all of them, in bf16."""
    workload = WorkloadSpec(precision="bf16", microbatches=1, microbatch_size=1)
    layout = LayoutSpec(dp=_DEVICES // cp, cp=cp, zero=3, recompute="full")
    return RunSpec(model=_model(s), layout=layout, workload=workload)


@st.cache_data(max_entries=64, show_spinner=False)
def _peak(s: int, cp: int) -> pd.DataFrame:
    """The bytes of rank 0 at its peak, by category."""
    peak = with_ledgers_shown(lambda: predict(_spec(s, cp), spans=False)).tables["memory_peak"]
    return peak[peak["rank"] == 0][["category", "bytes"]]


@st.cache_data(max_entries=64, show_spinner=False)
def _bars(s: int, view: View) -> Drawing:
    style = look(view)
    say, held = style.say, card(_DEVICE)
    peaks = {cp: _peak(s, cp) for cp in _DEGREES}
    rows = pd.concat([peak.assign(bar=f"cp {cp}") for cp, peak in peaks.items()], ignore_index=True)
    sizes = {cp: int(peak["bytes"].sum()) for cp, peak in peaks.items()}
    fits = next((cp for cp, size in sizes.items() if size <= held), None)
    if fits is None:
        title = say("A sequence of {s} tokens does not fit, even with cp 8", s=f"{s:,}")
    elif fits == 1:
        title = say("A sequence of {s} tokens fits one device: {size}", s=f"{s:,}", size=in_bytes(sizes[1]))
    else:
        title = say("A sequence of {s} tokens fits from cp {cp} on: {size}", s=f"{s:,}", cp=fits, size=in_bytes(sizes[fits]))
    caption = (
        say("{model} on {count} devices, the memory of one", model=_MODEL, count=_DEVICES),
        title,
        say("Predicted in bf16, with ZeRO 3 over all devices, fused attention and full recomputation; dp is 8 ÷ cp."),
    )
    return drawing.packed(teaching.stacks(rows, (_DEVICE, held), caption, style))


def _steps(state: LessonState) -> None:
    say, done = state.say, done_by(SPEC)
    steps = [
        LessonStep(say("Split"), say("The tokens of each sequence over cp. Every rank has all parameters.")),
        LessonStep(say("Forward"), say("In attention, keys and values go round the ring."), *done["forward"]),
        LessonStep(say("Backward"), say("Keys and values go round again, and their gradients with them."), *done["backward"]),
        LessonStep(
            say("Update"), say("Each rank has gradients of its own tokens; they are added up over dp and cp."), *done["update"]
        ),
    ]
    st.html(as_html(steps, say))
    st.caption(model_of(SPEC, say))


@st.cache_data(max_entries=16, show_spinner=False)
def _scene(cp: int, cut: Cut, view: View) -> Scene:
    return ring.scene(cp, cut, look(view))


def _row(state: LessonState) -> None:
    """One row in two parts, against the row as a whole."""
    say, running = state.say, Running()
    state.text(
        say(
            "The softmax of a row needs the sum over all its keys, and a rank sees them a part at a time. It keeps three things "
            "for each row: the largest score so far, the sum of exponentials, and the mixture of the values. A larger score "
            "scales the old sum down. Here is a row of four keys that come in two parts."
        )
    )
    rows: list[tuple[str, ...]] = []
    for part in (slice(0, 2), slice(2, 4)):
        running.add(_SCORES[part], _VALUES[part])
        arrived = [", ".join(number(float(value)) for value in values[part]) for values in (_SCORES, _VALUES)]
        rows.append((str(len(rows) + 1), *arrived, number(running.largest), f"{running.total:.4f}", f"{running.mixed:.4f}"))
    shares = np.exp(_SCORES - _SCORES.max())
    whole = float(shares @ _VALUES / shares.sum())
    head = (say("pass"), say("scores"), say("values"), say("largest"), say("sum"), say("mixture"))
    st.html(tables.plain(head, rows))
    state.text(
        say(
            "The whole row at once gives {whole}. Difference: **{difference}**.",
            whole=f"{whole:.4f}",
            difference=f"{abs(whole - running.mixed):.0e}" if whole != running.mixed else "0",
        )
    )


def _sent(model: ModelSpec, cp: int) -> dict[str, float]:
    """Bytes that a rank sends in a layer's forward, in bf16."""
    tokens, size = model.seq / cp, BYTES_OF["bf16"]
    keys = 2 * model.head_width * model.key_heads
    around = (cp - 1) * tokens * keys * size
    swapped = (cp - 1) / cp * tokens * (2 * model.head_width * model.heads + keys) * size
    return {"ring": around, "all_gather": around, "ulysses": swapped}


def _ways(state: LessonState) -> None:
    say, model = state.say, _model(state["s"])
    sent = {way: in_bytes(round(size)) for way, size in _sent(model, _DEVICES).items()}
    rows = [
        (say("ring"), say("keys and values, cp − 1 times"), sent["ring"], say("beside attention"), say("none")),
        (
            say("all-gather"),
            say("keys and values, at once"),
            sent["all_gather"],
            say("before attention"),
            say("keys of the whole sequence must fit"),
        ),
        (
            say("Ulysses"),
            say("queries, keys, values and output, by all-to-all"),
            sent["ulysses"],
            say("before and after attention"),
            say("cp is at most the number of heads"),
        ),
    ]
    head = (say("way"), say("what is sent"), say("by a rank, in a layer’s forward"), say("when"), say("limit"))
    st.html(tables.plain(head, rows))
    state.text(
        say(
            "The bytes are those of {model} with cp {cp} and {s} tokens. It has {g} key heads for {a} heads, so keys and values "
            "are small. **Ulysses** gives each rank some heads of the whole sequence, instead of all heads of some tokens.",
            model=_MODEL,
            cp=_DEVICES,
            s=f"{model.seq:,}",
            g=model.key_heads,
            a=model.heads,
        )
    )


def _idle(state: LessonState) -> Question:
    say, cp = state.say, 4
    found = 100 * idle(cp, "order")
    return Question(
        asked=say(
            "A sequence is cut **in order** over a ring of {cp} ranks. In the first pass every rank computes 2 blocks of scores. "
            "In each of the {passes} others some ranks compute 4 blocks and some none, and all wait for the fullest. On average "
            "a rank computes 8 blocks. How much of the time do ranks idle?",
            cp=cp,
            passes=cp - 1,
        ),
        right=found,
        said=f"{significant(found)}%",
        why=say("The passes take 2 + 3 · 4 = 14 blocks of time, and 8 of them are work. From both ends, nobody idles."),
        unit="%",
        within=0.03,
        reveal=lambda: motion.show(_scene(cp, "order", state.view), "ring-answer", say, seconds=2.4),
    )


def _bytes(state: LessonState) -> Question:
    say, s, cp = state.say, 65536, 8
    model = _model(s)
    sent = _sent(model, cp)["ring"]
    return Question(
        asked=say(
            "{model} has {g} key heads of {d} numbers. {s} tokens are cut over cp {cp}. How many MiB of keys and values does a "
            "rank send round the ring in the forward of one layer, in bf16?",
            model=_MODEL,
            g=model.key_heads,
            d=model.head_width,
            s=f"{s:,}",
            cp=cp,
        ),
        right=sent / 2**20,
        said=f"{sent / 2**20:g} MiB",
        why=say("It sends the keys and values of s/cp tokens, and it does so cp − 1 times."),
        unit="MiB",
        within=0.03,
        reveal=lambda: state.formula(
            say("Sent by a rank"),
            "(cp − 1) · s/cp · 2 · g · d · 2",
            f"{cp - 1} · {s // cp:,} · 2 · {model.key_heads} · {model.head_width} · 2",
            f"{sent / 2**20:g} MiB",
        ),
    )


def _limit(state: LessonState) -> Question:
    say = state.say
    return Question(
        asked=say("A model has 32 heads. A sequence shall be cut over 64 ranks. Which way can **not** do it?"),
        right="ulysses",
        said=say("Ulysses"),
        why=say("Each rank would attend with half a head. Ring and all-gather cut tokens, of which there are enough."),
        choices=_choices(say),
        reveal=lambda: _ways(state),
    )


def _choices(say: Words) -> tuple[AnswerChoice, ...]:
    return (
        AnswerChoice("ring", say("ring")),
        AnswerChoice("all_gather", say("all-gather")),
        AnswerChoice("ulysses", say("Ulysses")),
    )


LESSON = Lesson(
    title=lambda say: say("Long sequences"),
    goal=lambda say: say("How a sequence is cut over ranks, how attention still sees all of it, and what that sends."),
    knobs=(Knob("s", _LENGTHS, 131072), Knob("cp", (2, 4), 4), Knob("cut", ("order", "ends"), "order")),
    draw=_draw,
    questions=(_idle, _bytes, _limit),
)
