"""Lesson 1: why memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import pandas as pd
import streamlit as st

from engine import catalog
from engine.papers.closed_forms import STATE_BYTES, layer_activations, states
from engine.planner.inference import cache, weights
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from engine.terms import Term, total
from pages.charts import teaching
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, short, significant
from pages.charts.words import Words
from pages.learn import symbols
from pages.learn.lesson_state import Lesson, LessonState
from pages.learn.question import AnswerChoice, Knob, Question
from pages.learn.sizes import CARDS, PUBLISHED_GPT, card
from pages.shared import drawing
from pages.shared.predicted import peaks

_BATCHES, _LENGTHS = (1, 4, 16, 64, 256), (512, 2048, 8192, 32768)


def _draw(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "A model is a long list of numbers, its parameters. To **use** it a device holds them once. To **train** "
            "it the device holds much more: for every parameter also its gradient and what the optimizer remembers, "
            "and for every token what each layer computed on the way forward, because the way back needs it again."
        )
    )
    state.controls(state.pick("model", say("Model")), state.pick("device", say("Device")))
    model = catalog.model(state["model"])
    state.heading(say("To train it"))
    drawing.show(_training(state["model"], state["device"], state.view), "training")
    _training_formulas(state, model)
    state.heading(say("To use it"))
    state.controls(
        state.slide("batch", say("Concurrent sequences")), state.slide("length", say("Tokens in each"), lambda n: f"{n:,}")
    )
    drawing.show(_using(state["model"], state["device"], state["batch"], state["length"], state.view), "using")
    kept = _cache(model, state["batch"], state["length"])
    state.formula(say("Keys and values of all tokens so far"), kept.symbols, kept.numbers, in_bytes(kept.value))
    state.text(
        say(
            "L layers, B sequences of T tokens, G key heads of width D (all of them on one device, tp = 1), e bytes "
            "a number; the first 2 is for keys and values. The memory of the weights does not depend on the number "
            "of sequences; this cache grows with every sequence and every token."
        )
    )


def _training_formulas(state: LessonState, model: ModelSpec) -> None:
    say, count = state.say, model.parameters()
    layer = layer_activations(model, 1)
    rows = [
        (
            say("States: parameter, gradient and optimizer"),
            f"(2 + 2 + 12) · Ψ = {STATE_BYTES} · Ψ",
            f"{STATE_BYTES} · {count:,}",
            states_in(count),
        ),
        (
            say("Activations of one sequence, in all L layers"),
            "L · (34·s·b·h + 5·a·s²·b)",
            f"{model.layers} · ({' + '.join(term.numbers for term in layer)})",
            in_bytes(model.layers * total(layer)),
        ),
    ]
    for row in rows:
        state.formula(*row)
    symbols.draw(state, model, "s", "b", "h", "a", "L")
    state.text(
        say(
            "Ψ is the number of parameters. In mixed precision each takes 2 bytes as a number to compute with, 2 as a "
            "gradient, and 12 in the optimizer: a precise copy and two averages, 4 bytes each. With gradients added up "
            "in fp32 it is 18, and with both kinds of gradient kept 20: so count on **16 to 20 bytes a parameter**. If the "
            "optimizer works in bf16 and keeps no precise copy, it is 8, and 10 with gradients in fp32; small updates are then "
            "lost to rounding."
        )
    )
    state.later(lambda: _own(state))


def _own(state: LessonState) -> None:
    say = state.say
    state.text(
        say(
            "This engine’s own count, tensor by tensor, is **{own}**: it accumulates gradients in fp32, has no "
            "dropout, never keeps the attention’s scores, and counts temporary tensors only while they exist.",
            own=in_bytes(_own_count(state["model"])),
        )
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _own_count(name: str) -> int:
    """Peak bytes of training on one device, as predicted by the engine."""
    workload = WorkloadSpec(microbatches=1, microbatch_size=1, precision="bf16")
    return peaks(RunSpec(model=catalog.model(name), workload=workload)).peaks[0].total


def _cache(model: ModelSpec, batch: int, length: int) -> Term:
    """Keys and values of a decoder on one device, in bf16."""
    return cache(model, LayoutSpec(), "bf16", 0, batch, length)[0]


def states_in(parameters: int) -> str:
    return in_bytes(sum(term.value for term in states(parameters).values()))


@st.cache_data(max_entries=64, show_spinner=False)
def _training(name: str, device: str, view: View) -> Drawing:
    style = look(view)
    say, model = style.say, catalog.model(name)
    kept = {category: term.value for category, term in states(model.parameters()).items()}
    kept["activations"] = model.layers * total(layer_activations(model, 1))
    rows = pd.DataFrame([{"bar": say("training"), "category": c, "bytes": n} for c, n in kept.items()])
    holds, all_of_it = card(device), sum(kept.values())
    captions = (
        say("Memory to train {model}, one sequence at a time", model=name),
        _against(style.say, all_of_it, device, holds),
        say("Each part is what one kind of number takes; the dashed line is what one {device} holds.", device=device),
    )
    return drawing.packed(teaching.stacks(rows, (device, holds), captions, style))


@st.cache_data(max_entries=128, show_spinner=False)
def _using(name: str, device: str, batch: int, length: int, view: View) -> Drawing:
    style = look(view)
    say, model = style.say, catalog.model(name)
    held, kept = total(weights(model, LayoutSpec(), "bf16", 0)), _cache(model, batch, length).value
    rows = pd.DataFrame(
        [
            {"bar": say("using"), "category": "parameters", "bytes": held},
            {"bar": say("using"), "category": "kv_cache", "bytes": kept},
        ]
    )
    captions = (
        say("Memory to generate with {model}", model=name),
        _against(say, held + kept, device, card(device)),
        say("The weights at 2 bytes each, and the keys and values of every token so far; one {device} is dashed.", device=device),
    )
    return drawing.packed(teaching.stacks(rows, (device, card(device)), captions, style))


def _against(say: Words, needed: int, device: str, holds: int) -> str:
    if needed <= holds:
        return say("It takes {needed}: one {device} is enough", needed=in_bytes(needed), device=device)
    return say(
        "It takes {needed}: more than {count} of {device} can hold",
        needed=in_bytes(needed),
        count=ceil(needed / holds) - 1,
        device=device,
    )


def _how_much(name: str, card_name: str) -> Callable[[LessonState], Question]:
    def question(state: LessonState) -> Question:
        say, model = state.say, catalog.model(name)
        count = model.parameters()
        right = sum(term.value for term in states(count).values()) / 2**30
        return Question(
            asked=say(
                "{model} has {count} parameters, and each takes {each} bytes of states in training. How many GiB is that? "
                "(1 GiB is about 1.07 billion bytes.)",
                model=name,
                count=short(count, say),
                each=STATE_BYTES,
            ),
            right=right,
            said=say("{right} GiB", right=significant(right)),
            why=say(
                "That is {times} times what one {device} holds, before a single activation.",
                times=significant(right * 2**30 / card(card_name)),
                device=card_name,
            ),
            unit="GiB",
            reveal=lambda: state.formula(say("States"), "16 · Ψ", f"16 · {count:,}", states_in(count)),
        )

    return question


def _weights_or_cache(state: LessonState) -> Question:
    say, name, batch, length = state.say, "llama3-8b", 32, 8192
    model = catalog.model(name)
    held, kept = total(weights(model, LayoutSpec(), "bf16", 0)), _cache(model, batch, length)
    return Question(
        asked=say(
            "{model} generates {batch} concurrent sequences of {length} tokens, at 2 bytes a number. What takes more memory?",
            model=name,
            batch=batch,
            length=f"{length:,}",
        ),
        right="cache" if kept.value > held else "weights",
        said=say("{cache} of keys and values, {weights} of weights", cache=in_bytes(kept.value), weights=in_bytes(held)),
        why=say("The weights are shared by all sequences; each sequence has its own keys and values for every token."),
        choices=(AnswerChoice("weights", say("its weights")), AnswerChoice("cache", say("its keys and values"))),
        reveal=lambda: state.formula(say("Keys and values"), kept.symbols, kept.numbers, in_bytes(kept.value)),
    )


LESSON = Lesson(
    title=lambda say: say("Why memory runs out"),
    goal=lambda say: say(
        "What a model of 175 billion parameters costs in training and in use, and why no single device has that."
    ),
    knobs=(
        Knob("model", PUBLISHED_GPT, "gpt3-175b"),
        Knob("device", tuple(CARDS), "h100-80gb"),
        Knob("batch", _BATCHES, 16),
        Knob("length", _LENGTHS, 2048),
    ),
    draw=_draw,
    questions=(_how_much("gpt3-13b", "h100-80gb"), _weights_or_cache),
)
