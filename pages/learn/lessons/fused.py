"""Lesson 9: fused attention, and the loss in chunks."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine import catalog
from engine.predict.run import predict
from engine.spec import BYTES_OF, WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from pages.charts import teaching
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, percent, significant
from pages.charts.words import Words
from pages.learn import symbols
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.sizes import card
from pages.shared import drawing
from pages.shared.predicted import with_ledgers_shown

_MODELS = ("gpt2-1.5b", "gpt3-13b", "llama3-8b")
_LENGTHS, _DEVICES = (1024, 2048, 4096, 8192, 16384), 8
_DEVICE = "h100-80gb"
_STEPS: dict[str, dict[str, str | int]] = {
    "written": {"attention": "written", "loss_chunk": WHOLE_LOSS},
    "fused": {"attention": "fused", "loss_chunk": WHOLE_LOSS},
    "chunked": {"attention": "fused", "loss_chunk": 0},
}  # the levers, one after the other


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Two tensors grow faster than all others. In each layer, attention has a score for every pair of tokens: "
            "a · s² numbers. At the end of the model, each token has a logit for every word of the vocabulary: s · v numbers. "
            "Neither has to exist as a whole."
        )
    )
    state.controls(
        state.pick("model", say("Model")),
        state.slide("s", say("Tokens in a sequence"), lambda n: f"{n:,}"),
    )
    symbols.draw(state, _model(state["model"], state["s"]), "s", "a", "v")
    state.later(lambda: drawing.show(_bars(state["model"], state["s"], state.view), "fused"))
    state.heading(say("Fused attention"))
    state.text(
        say(
            "Written step by step, attention computes all scores, then their softmax, then the mixture of the values. Backward "
            "needs the softmax, so it is kept. **Fused** attention goes through the keys in tiles. It keeps a running maximum "
            "and a running sum for each row, and corrects the mixture when a tile has a larger score. A tile of scores exists "
            "only inside the kernel. For backward it keeps queries, keys, values, the output, and one number for each row: the "
            "logarithm of the sum of exponentials. Backward computes each tile again."
        )
    )
    _scores(state)
    state.heading(say("The loss in chunks"))
    state.text(
        say(
            "The loss of a token needs the logits of that token alone. So the loss takes a chunk of tokens at a time: it "
            "computes the chunk’s logits, their loss, and at once the gradients, which overwrite the logits. Then the next chunk "
            "uses the same buffer. Nothing is computed twice. The gradients are ready when the loss is, so all of this belongs "
            "to backward."
        )
    )
    _logits(state)


def _model(name: str, s: int) -> ModelSpec:
    return catalog.model(name).model_copy(update={"seq": s})


def _spec(name: str, s: int, step: str) -> RunSpec:
    """One text on each of eight devices, with ZeRO 3, in bf16."""
    workload = WorkloadSpec.model_validate({"precision": "bf16", "microbatches": 1, "microbatch_size": 1, **_STEPS[step]})
    return RunSpec(model=_model(name, s), layout=LayoutSpec(dp=_DEVICES, zero=3), workload=workload)


@st.cache_data(max_entries=64, show_spinner=False)
def _peak(name: str, s: int, step: str) -> pd.DataFrame:
    """The bytes of rank 0 at its peak, by category."""
    peak = with_ledgers_shown(lambda: predict(_spec(name, s, step), spans=False)).tables["memory_peak"]
    return peak[peak["rank"] == 0][["category", "bytes"]]


def _named(say: Words) -> dict[str, str]:
    return {
        "written": say("written attention, whole loss"),
        "fused": say("fused attention, whole loss"),
        "chunked": say("fused attention, loss in chunks"),
    }


@st.cache_data(max_entries=64, show_spinner=False)
def _bars(name: str, s: int, view: View) -> Drawing:
    style = look(view)
    say, held = style.say, card(_DEVICE)
    labels = _named(say)
    peaks = {step: _peak(name, s, step) for step in _STEPS}
    rows = pd.concat([peak.assign(bar=labels[step]) for step, peak in peaks.items()], ignore_index=True)
    sizes = {step: int(peak["bytes"].sum()) for step, peak in peaks.items()}
    found = {step: in_bytes(size) for step, size in sizes.items()}
    caption = (
        say("{model} on {count} devices, the memory of one", model=name, count=_DEVICES),
        say("Fused attention takes the peak from {written} to {fused}, and chunks of the loss to {chunked}", **found),
        say("Predicted for one sequence of {s} tokens on each device, in bf16, with ZeRO 3 and no recomputation.", s=f"{s:,}"),
    )
    return drawing.packed(teaching.stacks(rows, (_DEVICE, held), caption, style))


def _scores_of(model: ModelSpec) -> int:
    """Bytes of the scores of one layer, in bf16."""
    return model.heads * model.seq**2 * BYTES_OF["bf16"]


def _logits_of(model: ModelSpec) -> int:
    """Bytes of the logits of one text, in fp32."""
    return model.seq * model.vocab * BYTES_OF["fp32"]


def _scores(state: LessonState) -> None:
    model = _model(state["model"], state["s"])
    state.formula(
        state.say("Scores of one layer, in bf16"),
        "a · s² · 2",
        f"{model.heads} · {model.seq:,}² · 2",
        in_bytes(_scores_of(model)),
    )


def _logits(state: LessonState) -> None:
    model = _model(state["model"], state["s"])
    state.formula(
        state.say("Logits of one sequence, in fp32"),
        "s · v · 4",
        f"{model.seq:,} · {model.vocab:,} · 4",
        in_bytes(_logits_of(model)),
    )


def _kept(state: LessonState) -> Question:
    say = state.say
    return Question(
        asked=say("Besides queries, keys, values and its output, what does fused attention keep for backward?"),
        right="row",
        said=say("one number for each row"),
        why=say("With the logarithm of the row’s sum of exponentials, backward computes any tile of the softmax again."),
        choices=(
            AnswerChoice("scores", say("the scores")),
            AnswerChoice("softmax", say("the softmax of the scores")),
            AnswerChoice("row", say("one number for each row")),
        ),
        reveal=lambda: drawing.show(_bars(state["model"], state["s"], state.view), "fused-answer"),
    )


def _doubled(state: LessonState) -> Question:
    say, name, s = state.say, "llama3-8b", 8192
    model = _model(name, s)
    kept = (model.heads * 4, model.heads * s * 2)  # of one token in one layer: a number a row in fp32; a row of scores in bf16
    return Question(
        asked=say(
            "{model} has {a} heads, and a sequence has {s} tokens. Written attention keeps s numbers of 2 bytes for "
            "each row of each head, fused attention one number of 4 bytes. How many times as much does written "
            "attention keep?",
            model=name,
            a=model.heads,
            s=f"{s:,}",
        ),
        right=kept[1] / kept[0],
        said=say("{times} times", times=f"{kept[1] / kept[0]:,g}"),
        why=say("s · 2 bytes against 4 bytes. The longer the sequence, the larger the difference."),
        unit=say("times"),
        within=0.01,
        reveal=lambda: state.formula(say("How many times as much"), "s · 2 ÷ 4", f"{s:,} · 2 ÷ 4", f"{kept[1] / kept[0]:,g}"),
    )


def _vocabulary(state: LessonState) -> Question:
    say, name, s = state.say, "llama3-8b", 8192
    model = _model(name, s)
    gib = _logits_of(model) / 2**30
    saved = 1 - _peak(name, s, "chunked")["bytes"].sum() / _peak(name, s, "fused")["bytes"].sum()
    return Question(
        asked=say(
            "{model} has a vocabulary of {v}. How many GiB are the logits of one sequence of {s} tokens, in numbers of 4 bytes?",
            model=name,
            v=f"{model.vocab:,}",
            s=f"{s:,}",
        ),
        right=gib,
        said=say("{size} GiB", size=significant(gib)),
        why=say(
            "Loss and gradients need more than one tensor of this size. Chunks take {share} off the peak.", share=percent(saved)
        ),
        unit="GiB",
        within=0.05,
        reveal=lambda: state.formula(
            say("Logits of one sequence, in fp32"), "s · v · 4", f"{s:,} · {model.vocab:,} · 4", in_bytes(_logits_of(model))
        ),
    )


LESSON = Lesson(
    title=lambda say: say("Fused attention and loss"),
    goal=lambda say: say("Where the scores and the logits went, and what each takes off the peak of a device."),
    knobs=(Knob("model", _MODELS, "llama3-8b"), Knob("s", _LENGTHS, 8192)),
    draw=_draw,
    questions=(_kept, _doubled, _vocabulary),
)
