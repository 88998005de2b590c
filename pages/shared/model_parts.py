"""The parts of a model with sizes of its own, each as the family has it or another; and a model from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from engine.families import FAMILIES
from engine.imports import Imported
from engine.spec import MODEL_PARTS
from pages.charts.words import Words
from pages.shared import model_file
from pages.shared.choice import DEFAULTS, Bounds, Choice, description, options
from pages.shared.held import moved, shown, touch
from pages.shared.unfolding import unfolding

# Numbers that few models have.
_NUMBERS = (
    "vocab_multiple", "window", "global_every", "rotary_width", "rotary_base", "rotary_local_base", "spare_positions", "experts",
    "kv_lora_rank",
)  # fmt: skip
# Shown with a number of experts only.
_OF_EXPERTS = (
    "experts_per_token", "expert_ffn", "shared_ffn", "dense_layers", "expert_every", "expert_groups", "chosen_groups",
    "router_scale", "balancing_rate", "capacity_factor",
)  # fmt: skip
# Shown with a latent of keys and values only.
_OF_LATENTS = ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_PARTS_OF_EXPERTS = ("router", "normalized_router", "balancing")


@dataclass(frozen=True)
class Fields:
    """How a page keeps the fields of its model.

    name     of the part of the page, unique
    value    the value of a field
    key      the key of its widget, which will show that value; the last argument: whether its options have translated names
    moved    called with the field whose widget was moved
    """

    name: str
    value: Callable[[str], Any]
    key: Callable[[str, Any, bool], str]
    moved: Callable[[str], None]


def draw(choice: Choice, words: Words) -> None:
    """In the form of a run."""
    draw_fields(
        Fields(
            "form-parts",
            lambda name: choice[f"model.{name}"],
            lambda name, value, named: shown(f"model.{name}", value, named),
            lambda name: moved(f"model.{name}"),
        ),
        words,
    )


def draw_fields(fields: Fields, words: Words) -> None:
    """In a part of a page that unfolds. Its label says what differs from the family."""
    chosen = [name for name in MODEL_PARTS if fields.value(name) is not None]
    numbers = (*_NUMBERS, *(_OF_EXPERTS if fields.value("experts") else ()))
    numbers += _OF_LATENTS if fields.value("kv_lora_rank") else ()
    chosen += [name for name in numbers if fields.value(name) != DEFAULTS[f"model.{name}"]]
    label = words("Parts: {parts}", parts=words(", ").join(_labels(words)[name] for name in chosen)) if chosen else words("Parts")
    with unfolding(label, fields.name) as part:
        if part.open:
            for name in MODEL_PARTS:
                if fields.value("experts") or name not in _PARTS_OF_EXPERTS:
                    _part(fields, name, words)
            for name in numbers:
                _number(fields, name, words)


def _labels(words: Words) -> dict[str, str]:
    return {
        "norm": words("Norm"),
        "placement": words("Place of norms"),
        "qk_norm": words("Norm of queries and keys"),
        "parallel": words("Attention and MLP in parallel"),
        "position": words("Positions"),
        "inner": words("Nonlinearity"),
        "head": words("Before the output"),
        "tied": words("Tied output"),
        "output_bias": words("Output bias"),
        "attention_bias": words("Attention biases"),
        "mlp_bias": words("MLP biases"),
        "embedding_norm": words("Norm after the embedding"),
        "scaled_embedding": words("Scaled embedding"),
        "scaled_scores": words("Scaled scores"),
        "scaled_output": words("Scaled output"),
        "vocab_multiple": words("Multiple of the vocabulary"),
        "window": words("Window (tokens)"),
        "global_every": words("Layers until one without a window"),
        "rotary_width": words("Rotary width"),
        "rotary_base": words("Rotary base"),
        "rotary_local_base": words("Rotary base of layers with a window"),
        "spare_positions": words("Spare positions"),
        "experts": words("Experts"),
        "experts_per_token": words("Experts of a token"),
        "expert_ffn": words("Width of an expert"),
        "shared_ffn": words("Width of shared experts"),
        "dense_layers": words("First layers without experts"),
        "expert_every": words("Layers until one with experts"),
        "expert_groups": words("Groups of experts"),
        "chosen_groups": words("Groups that a token chooses"),
        "router_scale": words("Scale of the router's weights"),
        "balancing_rate": words("Rate of balancing"),
        "capacity_factor": words("Capacity factor"),
        "kv_lora_rank": words("Latent of keys and values"),
        "q_lora_rank": words("Latent of queries"),
        "qk_nope_head_dim": words("Head width without positions"),
        "qk_rope_head_dim": words("Head width with positions"),
        "v_head_dim": words("Head width of values"),
        "router": words("Router's scores"),
        "normalized_router": words("Router's weights add up to 1"),
        "balancing": words("Balancing of loads"),
    }


def _part(fields: Fields, name: str, words: Words) -> None:
    field = f"model.{name}"
    usual = _named(getattr(FAMILIES[fields.value("family")], name), words)
    kinds = (True, False) if "true" in options(field) else options(field)
    st.selectbox(
        _labels(words)[name],
        [None, *kinds],
        format_func=lambda kind: words("as the family ({usual})", usual=usual) if kind is None else _named(kind, words),
        key=fields.key(name, fields.value(name), True),
        help=words.described(description(field)),
        on_change=fields.moved,
        args=(name,),
    )


def _named(kind: Any, words: Words) -> str:
    """Names of parts are those of the command line; true and false are words."""
    return (words("yes") if kind else words("no")) if isinstance(kind, bool) else str(kind)


def _number(fields: Fields, name: str, words: Words) -> None:
    field = f"model.{name}"
    bounds, kind = Bounds.of(field), type(DEFAULTS[field])
    st.number_input(
        _labels(words)[name],
        min_value=kind(bounds.least),
        max_value=kind(bounds.most),
        key=fields.key(name, fields.value(name), False),
        help=words.described(description(field)),
        on_change=fields.moved,
        args=(name,),
    )


def from_file(words: Words) -> None:
    model_file.draw("form", _take, words)


def _take(found: Imported) -> None:
    """Choose what a file says. A callback."""
    changes: dict[str, Any] = {}
    for part, spec in (("model", found.model), ("layout", found.layout), ("workload", found.workload)):
        changes |= {f"{part}.{name}": value for name, value in spec or () if name != "text"}
    if found.layout is not None:
        changes["layout.split"] = ",".join(map(str, found.layout.split))
    touch(changes)
