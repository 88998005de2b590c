from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import catalog
from engine.spec import MODEL_PARTS
from engine.topology import AXES
from pages.shared.choice import DEFAULTS, Bounds, Choice, options
from pages.shared.links import LETTERS, LinkError, decode, encode


def whole(field: str, most: int = 10**9) -> st.SearchStrategy[int]:
    bounds = Bounds.of(field)
    return st.integers(int(bounds.least), min(int(bounds.most), most))


def one_of(field: str) -> st.SearchStrategy[str]:
    return st.sampled_from(options(field))


NUMBERS = ("layers", "hidden", "heads", "vocab", "seq", "ffn", "kv_heads", "head_dim", "decoder_layers")
NUMBERS += ("rotary_width", "rotary_base", "rotary_local_base", "spare_positions", "window", "vocab_multiple", "global_every")
NUMBERS += ("experts", "experts_per_token", "expert_ffn", "shared_ffn", "dense_layers", "expert_every", "expert_groups")
NUMBERS += ("chosen_groups", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
FRACTIONS = ("router_scale", "balancing_rate", "capacity_factor")
NAMES = [f"model.{name}" for name in MODEL_PARTS]
SHAPES = st.fixed_dictionaries(
    {"model.family": one_of("model.family")}
    | {f"model.{n}": whole(f"model.{n}") for n in NUMBERS}
    | {f"model.{n}": st.integers(1, 10_000).map(lambda n: n / 1000) for n in FRACTIONS}
    | {name: st.none() | one_of(name).map(lambda text: {"true": True, "false": False}.get(text, text)) for name in NAMES}
)
NAMED = st.sampled_from([{f"model.{k}": v for k, v in model} for model in catalog.MODELS.values()])
OTHERS = st.fixed_dictionaries(
    {f"layout.{name}": whole(f"layout.{name}") for name in (*AXES, "chunks", "zero", "ep")}
    | {f"layout.{name}": whole(f"layout.{name}") for name in ("recompute_layers", "recompute_every")}
    | {f"workload.{name}": whole(f"workload.{name}") for name in ("microbatches", "microbatch_size", "steps", "seed")}
    | {
        f: one_of(f)
        for f in (
            "layout.schedule",
            "layout.context_parallel",
            "layout.recompute",
            "workload.optimizer",
            "workload.precision",
            "workload.accumulate",
            "workload.attention",
            "workload.weights",
        )
    }
    | {
        "layout.sequence_parallel": st.booleans(),
        "workload.balanced_router": st.booleans(),
        "layout.split": st.lists(st.integers(0, 9999), max_size=8).map(lambda split: ",".join(map(str, split))),
        "workload.learning_rate": st.integers(1, 10_000).map(lambda n: n / 1000),
        "workload.momentum": st.integers(0, 99).map(lambda n: n / 100),
        "workload.time_limit": st.integers(1, 86_400).map(float),
        "workload.text": st.one_of(st.just(""), st.text("0123456789abcdef", min_size=16, max_size=16)),
        "generate.prompt": st.text(st.characters(codec="utf-8"), max_size=100),
        "generate.new_tokens": whole("generate.new_tokens"),
        "generate.temperature": st.integers(0, 1000).map(lambda n: n / 10),
        "generate.skip_training": st.booleans(),
        "parity": st.booleans(),
    }
)


def test_every_field_of_a_spec_is_in_links():
    drawn = {f"model.{n}" for n in ("family", *NUMBERS, *FRACTIONS, *MODEL_PARTS)} | set(LETTERS.values())
    assert drawn | {f"layout.{axis}" for axis in (*AXES, "schedule")} == set(DEFAULTS)


@given(st.one_of(SHAPES, NAMED), OTHERS)
def test_every_choice_survives_its_link(model: dict[str, Any], others: dict[str, Any]):
    choice = Choice(DEFAULTS | model | others)
    assert decode(encode(choice)) == choice


def test_the_default_is_short_and_plain():
    assert encode(Choice.default()) == "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0"


@pytest.mark.parametrize(
    ("field", "value"),
    [("workload.momentum", 0.999999999), ("workload.learning_rate", 1e-7 / 3), ("workload.time_limit", 86_399.9375)],
)
def test_a_number_survives_a_link_exactly(field: str, value: float):
    assert decode(encode(Choice.default().with_changes({field: value})))[field] == value


def test_links_have_only_characters_that_need_no_escape():
    every = Choice.default().with_changes(
        {"layout.split": "3,1", "workload.text": "0123456789abcdef", "parity": True, "model.seq": 63, "generate.prompt": "ÿ>?"}
    )
    assert set(encode(every)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-~")


def test_a_prompt_has_its_temperature_in_the_link():
    """Links of old have none: then the default was to take the most likely token."""
    assert decode("gpt-tiny~dp2~1f1b~yVGhl")["generate.temperature"] == 0
    now = Choice.default().with_changes({"generate.prompt": "The"})
    assert now["generate.temperature"] == 0.8
    assert decode(encode(now)) == now


def test_an_invalid_split_is_left_out_of_the_link():
    assert encode(Choice.default().with_changes({"layout.split": "three and one"})) == encode(Choice.default())


def test_parts_that_are_computed_again_are_written_with_full_stops():
    for text, kept in (("layernorm.mlp_act", "layernorm+mlp_act"), ("selective", "core_attn")):  # the latter in links of old
        choice = decode(f"gpt-tiny~dp2~1f1b~a{text}")
        assert choice["layout.recompute"] == kept
        assert f"~a{kept.replace('+', '.')}" in encode(choice)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("", "is not of the form"),
        ("gpt-tiny~dp2", "is not of the form"),
        ("x" * 2000, "is not of the form"),
        ("gpt-huge~dp2~1f1b", "neither a name, such as gpt-tiny,"),
        ("gpt.l4.h64~dp2~1f1b", "nor of the form gpt.l4.h64.a4"),
        ("gpt.l4.h64.a4.v256.s64.f0.q1~dp2~1f1b", "nor of the form gpt.l4"),
        ("cnn.l4.h64.a4.v256.s64.f0~dp2~1f1b", "nor of the form gpt.l4"),
        ("gpt.l0.h64.a4.v256.s64.f0~dp2~1f1b", "model.layers=0 is not between 1 and 1024"),
        ("gpt-tiny~dp2.tq2~1f1b", "dp2.tq2"),
        ("gpt-tiny~dp999999~1f1b", "layout.dp=999999 is not between 0 and"),
        ("gpt-tiny~dp2~2f2b", "2f2b"),
        ("gpt-tiny~dp2~1f1b~14", "“14” is not known"),
        ("gpt-tiny~dp2~1f1b~q4", "sequence_parallel “4” cannot be read"),
        ("gpt-tiny~dp2~1f1b~ahalf", "recompute “half” is not one of none, core_attn, "),
        ("gpt-tiny~dp2~1f1b~y!", "prompt “!” cannot be read"),
        ("gpt-tiny~dp2~1f1b~y_w", "prompt “_w” cannot be read"),
        ("gpt-tiny~dp2~1f1b~", "“” is not known"),
        ("gpt-tiny~dp2~1f1b~mfour", "“four” is not a number"),
        ("gpt-tiny~dp2~1f1b~m" + "9" * 400, "workload.microbatches “999999999999999999999999999999” cannot be read"),
        ("gpt-tiny~dp2~1f1b~m-1", "workload.microbatches=-1 is not between"),
        ("gpt-tiny~dp2~1f1b~rnan", "workload.learning_rate=nan is not between"),
        ("gpt-tiny~dp2~1f1b~x../../etc/passwd", "workload.text “../../etc/passwd” cannot be read"),
        ("gpt-tiny~dp2~1f1b~k3..1", "layout.split “3..1” cannot be read"),
        ("gpt-tiny~dp2~1f1b~pyes", "parity “yes” cannot be read"),
    ],
)
def test_a_bad_link_is_refused_with_a_sentence(code: str, sentence: str):
    with pytest.raises(LinkError) as error:
        decode(code)
    assert sentence in str(error.value)
    assert str(error.value).endswith(".")


@given(st.text(max_size=60))
def test_any_text_is_read_as_a_link_or_refused(code: str):
    for text in (code, f"gpt-tiny~{code}~1f1b", f"gpt-tiny~dp2~{code}", f"{code}~dp2~1f1b", f"gpt-tiny~dp2~1f1b~{code}"):
        with suppress(LinkError):
            decode(text)
