"""Lesson 2: attention and positions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from engine import catalog
from engine.papers.closed_forms import layer_activations
from pages.charts import teaching
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import byte_unit, in_bytes, percent
from pages.learn import symbols
from pages.learn.glossary import READABLE_PX
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import Knob, Question
from pages.learn.toys import attention, learned, rotated, scores_by_distance, sinusoids
from pages.shared import drawing

_SENTENCES = {
    "dog": "the cat saw the dog and the dog ran",
    "sea": "she sells shells and shells she sells",
    "rose": "a rose is a rose is a rose",
}
_WIDTH = 32  # of the small model's embeddings
_PLACES = 48
_FIRST, _FURTHEST = (0, 20), 16  # positions of the first of two equal words; the largest distance of the second
_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_MODEL = "gpt3-175b"


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "Every token makes three vectors: a **query**, a **key** and a **value**. It compares its query with "
            "every key, turns the scores into weights that add up to 1 (softmax), and takes the weighted sum of the "
            "values."
        )
    )
    _formula(r"\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^{\mathsf T}}{\sqrt{d_k}}\right) V")
    _formula(r"\mathrm{MultiHead} = \mathrm{Concat}(\mathrm{head}_1, \ldots, \mathrm{head}_h)\, W^O")
    _formula(r"\mathrm{head}_i = \mathrm{Attention}(Q W_i^Q,\; K W_i^K,\; V W_i^V)")
    state.text(
        say(
            "Several heads do this side by side, each with matrices of its own: remember that they are independent, because "
            "tensor parallelism will give each rank some of the heads."
        )
    )
    state.side_by_side(lambda: _who_looks_at_whom(state), lambda: _layers(state))
    _where(state)
    _cost(state)


def _formula(latex: str) -> None:
    """A formula, centred above its text and as wide as it."""
    st.latex(latex, width=READABLE_PX)


def _who_looks_at_whom(state: LessonState) -> None:
    say = state.say
    state.heading(say("Attention weights"))
    state.pick("sentence", say("Sentence"), _SENTENCES.__getitem__)()
    state.controls(
        state.switch("mask", say("A token sees"), lambda causal: say("the past") if causal else say("all")),
        state.switch("places", say("Positions"), lambda on: say("added") if on else say("left out")),
    )
    drawing.show(_weights(state["sentence"], state["mask"], state["places"], state.view), "attention")


def _where(state: LessonState) -> None:
    say = state.say
    state.heading(say("Position encoding"))
    state.text(
        say(
            "Attention itself does not know the order of words: without positions, a word gives equal weight to each "
            "of its copies. So each token gets its position. There are three usual ways:"
        )
    )
    named = {"sinusoidal": say("sinusoidal"), "learned": say("learned"), "rotary": say("rotary")}
    state.switch("encoding", say("Position encoding"), named.__getitem__)()
    encoding = state["encoding"]
    if encoding == "sinusoidal":
        state.text(
            say("**Sinusoidal**: sines and cosines of many wavelengths are **added** to the embedding (Vaswani et al. 2017).")
        )
        _formula(r"PE(pos, 2i) = \sin\!\left(pos / 10000^{2i/d}\right)")
        _formula(r"PE(pos, 2i+1) = \cos\!\left(pos / 10000^{2i/d}\right)")
    elif encoding == "learned":
        state.text(
            say(
                "**Learned**: a table with one row for each position, trained like all parameters, is **added** to the embedding "
                "(BERT, GPT-2, GPT-3). It has s · h parameters, and no row for a position beyond its end."
            )
        )
    else:
        state.text(
            say(
                "**Rotary** (RoPE): nothing is added. In each layer, queries and keys are **rotated**, two numbers at a time, by "
                "an angle that grows with the position (Su et al. 2021; Llama, Qwen, Mistral). So q · k depends on the distance "
                "of two tokens, not on where they are."
            )
        )
        _formula(r"q_m \cdot k_n = (R_m\, q)^{\mathsf T} (R_n\, k) = q^{\mathsf T} R_{n-m}\, k")
    state.side_by_side(
        lambda: drawing.show(_positions(encoding, state.view), "positions"),
        lambda: drawing.show(_by_distance(encoding, state.view), "by-distance"),
    )


def _cost(state: LessonState) -> None:
    say = state.say
    state.heading(say("Cost: S²"))
    state.text(
        say(
            "Every token is compared with every other one, so S tokens make S² scores in each head. All else in a layer grows "
            "with S alone."
        )
    )
    symbols.draw(state, catalog.model(_MODEL), "s", "b", "h", "a")
    state.slide("length", say("Sequence length in tokens"), lambda n: f"{n:,}")()
    drawing.show(_growth(state["length"], state.view), "growth")


def _layers(state: LessonState) -> None:
    say = state.say
    state.heading(say("Encoder and decoder"))
    state.text(
        say(
            "An **encoder layer** is self-attention, then a feed-forward part: two matrices with a nonlinearity "
            "between them. Every token sees the whole input."
        )
    )
    state.text(
        say(
            "A **decoder layer** is *masked* self-attention (a token sees itself and what came before), then attention to the "
            "encoder’s output, then a feed-forward part."
        )
    )
    state.text(
        say(
            "Around each part stand a residual connection (the input is added to the output) and a LayerNorm. GPT is a stack of "
            "decoder layers without the middle part; BERT is a stack of encoder layers."
        )
    )


@st.cache_data(max_entries=32, show_spinner=False)
def _weights(sentence: str, causal: bool, places: bool, view: View) -> Drawing:
    style = look(view)
    say, tokens = style.say, _SENTENCES[sentence].split()
    shares = attention(tokens, _WIDTH, causal, places)
    shown = np.where(np.triu(np.ones_like(shares), 1) > 0, np.nan, shares) if causal else shares
    # The last repeated word, and its earlier position.
    again = max(at for at, token in enumerate(tokens) if token in tokens[:at])
    before = max(at for at in range(again) if tokens[at] == tokens[again])
    captions = (
        say("Attention weights, one row per token"),
        say(
            "The last “{word}” takes {own} from itself and {other} from the “{word}” before it",
            word=tokens[again],
            own=percent(float(shares[again, again])),
            other=percent(float(shares[again, before])),
        ),
        say(
            "Each row adds up to 1. Nothing is trained here: the query and the key of a word are the same random "
            "vector, so a word gives most weight to equal words, and with positions also to words nearby. Empty "
            "cells are masked."
        ),
    )
    axes = (say("query token"), say("key token"))
    return drawing.packed(teaching.heat(shown, tokens, tokens, axes, captions, style, written=True, height=38 * len(tokens)))


@st.cache_data(max_entries=8, show_spinner=False)
def _positions(encoding: str, view: View) -> Drawing:
    style = look(view)
    say = style.say
    drawn = {
        "sinusoidal": sinusoids(_PLACES, _WIDTH),
        "learned": np.clip(learned(_PLACES, _WIDTH), -1, 1),
        "rotary": rotated(np.full(_WIDTH, 0.5**0.5), np.arange(float(_PLACES))),
    }[encoding]
    subject, title = {
        "sinusoidal": (
            say("Sinusoidal positions"),
            say("Each position has a pattern of its own: fast waves at the left, slow ones at the right"),
        ),
        "learned": (
            say("Learned positions, before training"),
            say("Each position has a row of its own; neighbours have nothing in common yet"),
        ),
        "rotary": (
            say("A vector whose numbers are all equal, rotated by its position"),
            say("The first pairs of numbers turn fast, the last ones hardly at all"),
        ),
    }[encoding]
    reading = say("A row is a position, a column one of {width} dimensions.", width=_WIDTH)
    names = [str(place) for place in range(_PLACES)], [str(dim) for dim in range(_WIDTH)]
    axes = (say("position"), say("dimension"))
    return drawing.packed(teaching.heat(drawn, *names, axes, (subject, title, reading), style, signed=True, height=290))


@st.cache_data(max_entries=8, show_spinner=False)
def _by_distance(encoding: str, view: View) -> Drawing:
    style = look(view)
    say = style.say
    colours = {
        say("first word at position {place}", place=place): colour
        for place, colour in zip(_FIRST, (style.blue, style.orange), strict=True)
    }
    rows = pd.DataFrame(
        [
            {"x": distance, "y": float(score), "series": series}
            for place, series in zip(_FIRST, colours, strict=True)
            for distance, score in enumerate(scores_by_distance(encoding, place, _FURTHEST, _WIDTH))
        ]
    )
    title = {
        "sinusoidal": say("The score falls at first, then goes up and down, and depends a little on where the words are"),
        "learned": say("Before training, the score says nothing about the distance"),
        "rotary": say("The score depends on the distance alone: both lines are the same"),
    }[encoding]
    captions = (
        say("Score of a word with a copy of itself, by distance"),
        title,
        say("q · k of the two, relative to distance 0, where q and k are the word’s random vector with its position."),
    )
    axes = (say("distance in tokens"), say("relative score"))
    return drawing.packed(teaching.curves(rows, axes, None, colours, captions, style, form=".1f"))


@st.cache_data(max_entries=32, show_spinner=False)
def _growth(here: int, view: View) -> Drawing:
    style = look(view)
    say, model = style.say, catalog.model(_MODEL)
    found = {seq: [t.value for t in layer_activations(model.model_copy(update={"seq": seq}), 1)] for seq in _LENGTHS}
    unit = byte_unit(max(found[_LENGTHS[-1]]))
    rest, scores = say("everything else"), say("attention scores")
    rows = pd.DataFrame(
        [
            {"x": seq, "y": value / unit.size, "series": name}
            for seq, values in found.items()
            for name, value in zip((rest, scores), values, strict=True)
        ]
    )
    share = found[here][1] / sum(found[here])
    captions = (
        say("Activations of one layer of {model}, one sequence", model=_MODEL),
        say("At {length} tokens the scores are {share} of what the layer keeps", length=f"{here:,}", share=percent(share)),
        say("5·a·s²·b bytes for the scores, 34·s·b·h for the rest (Korthikanti et al. 2022); the dashed line is your length."),
    )
    axes = (say("sequence length in tokens"), say("bytes ({unit})", unit=unit.name))
    colour = {scores: style.category["activations"], rest: style.grey}
    return drawing.packed(teaching.curves(rows, axes, here, colour, captions, style, log=True))


def _four_times_longer(state: LessonState) -> Question:
    say, before, after = state.say, 2048, 8192
    model = catalog.model(_MODEL)
    short, long = (layer_activations(model.model_copy(update={"seq": seq}), 1)[1] for seq in (before, after))
    return Question(
        asked=say(
            "Sequences grow from {before} to {after} tokens. How many times as much memory do the attention scores take?",
            before=f"{before:,}",
            after=f"{after:,}",
        ),
        right=long.value / short.value,
        said=say("{times} times", times=f"{long.value / short.value:g}"),
        why=say("Each token is compared with each other one, so four times as many tokens make sixteen times as many scores."),
        unit=say("times"),
        within=0.01,
        reveal=lambda: state.formula(say("Scores of one layer"), long.symbols, long.numbers, in_bytes(long.value)),
    )


def _hidden(state: LessonState) -> Question:
    say = state.say
    tokens = _SENTENCES["dog"].split()
    shares = attention(tokens, _WIDTH, causal=True, places=True)
    right = int((shares == 0).sum())
    size = len(tokens)
    return Question(
        asked=say(
            "A decoder reads {count} tokens. How many of its {all} attention weights does the causal mask set to 0?",
            count=size,
            all=size**2,
        ),
        right=float(right),
        said=say("{right} weights", right=right),
        why=say("All pairs in which the key comes after the query: S · (S − 1) ÷ 2 of them."),
        unit=say("weights"),
        within=0.001,
        reveal=lambda: state.formula(say("Masked weights"), "S · (S − 1) ÷ 2", f"{size} · {size - 1} ÷ 2", str(right)),
    )


LESSON = Lesson(
    title=lambda say: say("Attention and positions"),
    goal=lambda say: say("How attention combines tokens, how positions are encoded, and which part grows with S²."),
    knobs=(
        Knob("sentence", tuple(_SENTENCES), "dog"),
        Knob("mask", (True, False), True),
        Knob("places", (True, False), True),
        Knob("encoding", ("sinusoidal", "learned", "rotary"), "sinusoidal"),
        Knob("length", _LENGTHS, 2048),
    ),
    draw=_draw,
    questions=(_four_times_longer, _hidden),
)
