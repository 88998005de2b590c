"""Specs: reading and writing them, their fields, and the sentence that refuses a wrong one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine import catalog
from engine.families import FamilyName
from engine.spec import (
    FaultSpec,
    LayoutSpec,
    ModelSpec,
    RequestError,
    RunSpec,
    ScheduleName,
    Spec,
    WorkloadSpec,
)
from tests.engine.any_specs import runs

PARTS: dict[str, type[Spec]] = {"model": ModelSpec, "layout": LayoutSpec, "workload": WorkloadSpec, "fault": FaultSpec}
DRILL = FaultSpec(kind="raise", rank=0, step=1)
SCHEMA = jsonschema.Draft202012Validator(RunSpec.model_json_schema())
FULL = RunSpec(fault=DRILL)  # every part is present


# ------------------------------------------------------------------------------------------------------ reading and writing


@given(runs())
def test_a_spec_survives_json(spec: RunSpec) -> None:
    assert RunSpec.read_json(spec.model_dump_json()) == spec
    assert RunSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"), allow_nan=False))) == spec


@given(runs())
def test_the_json_schema_accepts_every_spec(spec: RunSpec) -> None:
    SCHEMA.validate(spec.model_dump(mode="json"))


@given(st.integers(1, 65_536), st.integers(1, 1024), st.integers(1, 1024))
def test_a_layout_survives_its_short_form(dp: int, tp: int, pp: int) -> None:
    layout = LayoutSpec(dp=dp, tp=tp, pp=pp)
    assert layout.code == f"dp{dp}.tp{tp}.pp{pp}"
    assert LayoutSpec(**LayoutSpec.degrees(layout.code)) == layout
    assert layout.ranks == dp * tp * pp


def test_an_axis_left_out_of_a_short_form_has_degree_1() -> None:
    assert LayoutSpec.degrees("tp4") == {"dp": 1, "cp": 1, "tp": 4, "pp": 1}
    assert LayoutSpec.degrees("pp2.dp3") == {"dp": 3, "cp": 1, "tp": 1, "pp": 2}


def test_a_short_form_has_the_ranks_that_share_experts() -> None:
    layout = LayoutSpec(dp=8, cp=2, ep=4)
    assert layout.code == "dp8.cp2.tp1.pp1.ep4"
    assert LayoutSpec(**LayoutSpec.degrees(layout.code)) == layout


@pytest.mark.parametrize(
    "code", ["", "dp", "2", "dp2.dp2", "dp-1", "dp2,tp2", "dp2.xp2", "DP2", "dp2.", "dp 2", "dp2e1", "dp" + "9" * 5000]
)
def test_a_malformed_short_form_is_refused(code: str) -> None:
    with pytest.raises(RequestError, match=re.escape("is not of the form dp2.tp2.pp2")):
        LayoutSpec.degrees(code)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("selective", "core_attn"), ("mlp_act+core_attn", "core_attn+mlp_act"), ("layernorm", "layernorm"), ("full", "full")],
)
def test_parts_that_are_computed_again_come_in_any_order(given: str, kept: str) -> None:
    """Older runs have selective, which is core_attn."""
    assert LayoutSpec.model_validate({"recompute": given}).recompute == kept


@pytest.mark.parametrize("given", ["", "core", "full+mlp_act", "none+mlp_act", "mlp_act+", 3])
def test_other_parts_are_refused(given: object) -> None:
    with pytest.raises(RequestError, match="must be 'none', 'core_attn'"):
        LayoutSpec.model_validate({"recompute": given})


def test_norms_behind_attention_cannot_be_computed_again() -> None:
    with pytest.raises(RequestError, match="placement=post has its norms behind them; leave out layernorm"):
        RunSpec(model=catalog.model("bert-tiny"), layout=LayoutSpec(recompute="layernorm"))


@pytest.mark.parametrize("kind", ["post", "output"])
def test_norms_behind_blocks_alone_cannot_be_computed_again(kind: str) -> None:
    with pytest.raises(RequestError, match=f"placement={kind} has its norms behind them"):
        RunSpec(model=ModelSpec.model_validate({"placement": kind}), layout=LayoutSpec(recompute="layernorm"))
    RunSpec(model=ModelSpec(placement="both"), layout=LayoutSpec(recompute="layernorm"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"parallel": "one_norm", "placement": "both"}, "norms before attention and MLP, not placement=both; placement=pre fits"),
        ({"parallel": "two_norms", "family": "transformer", "placement": "pre"}, "transformer has cross-attention between them"),
        ({"qk_norm": "head", "family": "xlnet"}, "qk_norm=head is not for relative positions"),
        ({"qk_norm": "all"}, "must be 'none', 'head' or 'full'"),
        ({"attention_bias": "out"}, "must be 'all', 'qkv' or 'none'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(model: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=re.escape(told)):
        ModelSpec.model_validate(model)


@pytest.mark.parametrize(("given", "parts"), [(True, "all"), (False, "none"), ("qkv", "qkv")])
def test_biases_of_older_runs_are_read(given: object, parts: str) -> None:
    for family in ("gpt", "llama"):
        assert ModelSpec.model_validate({"family": family, "attention_bias": given}).parts.attention_bias == parts


def test_two_stream_attention_is_always_written() -> None:
    for family, attention in (("gpt", "fused"), ("xlnet", "written")):
        assert RunSpec(model=catalog.model(f"{family}-tiny")).attention == attention
        assert RunSpec(model=catalog.model(f"{family}-tiny"), workload=WorkloadSpec(attention="written")).attention == "written"


def test_a_drill_is_read_from_its_short_form() -> None:
    assert FaultSpec.read("kill:3@2") == FaultSpec(kind="kill", rank=3, step=2)


@pytest.mark.parametrize("text", ["", "kill", "kill:3", "kill@2", "kill:a@2", "kill:-1@2", "kill:" + "9" * 5000 + "@1"])
def test_a_malformed_drill_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not of the form raise:3@2"):
        FaultSpec.read(text)


# ----------------------------------------------------------------------------------------------- closed, frozen, immutable


@pytest.mark.parametrize("part", ["", *PARTS])
def test_the_refusal_of_an_unknown_field_lists_the_known_fields(part: str) -> None:
    request = FULL.model_dump(mode="json")
    (request[part] if part else request)["colour"] = "blue"
    for read in (RunSpec.model_validate, lambda value: RunSpec.read_json(json.dumps(value))):
        with pytest.raises(RequestError) as caught:
            read(request)
        assert "there is no field 'colour'" in str(caught.value)
        assert all(known in str(caught.value) for known in (PARTS[part] if part else RunSpec).model_fields)


@pytest.mark.parametrize("part", [FULL, FULL.model, FULL.layout, FULL.workload, DRILL], ids=lambda part: type(part).__name__)
def test_a_spec_cannot_be_changed(part: Spec) -> None:
    before = part.model_dump()
    for name in type(part).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))
        with pytest.raises(ValidationError, match="frozen"):
            delattr(part, name)
    assert part.model_dump() == before


@given(runs())
def test_equal_specs_have_the_same_hash(spec: RunSpec) -> None:
    """Specs are the keys of caches."""
    assert len({spec, RunSpec.read_json(spec.model_dump_json())}) == 1


def test_a_drill_names_a_rank_and_a_step_of_the_run() -> None:
    with pytest.raises(RequestError, match=r"fault\.rank=2 is not one of the 2 ranks, 0 to 1"):
        RunSpec(layout=LayoutSpec(dp=2), fault=FaultSpec(kind="exit", rank=2, step=1))
    with pytest.raises(RequestError, match=r"fault\.step=4 is beyond the 3 steps of the run"):
        RunSpec(workload=WorkloadSpec(steps=3), fault=FaultSpec(kind="exit", rank=0, step=4))


# ------------------------------------------------------------------------------------------------------- wrong values

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
FIELDS = [(part, name) for part, spec in PARTS.items() for name in spec.model_fields]


def read_or_refuse(read: Callable[[], RunSpec]) -> None:
    """A spec or a RequestError. Its sentence must be short and on one line. Any other exception fails the test."""
    try:
        spec = read()
    except RequestError as refusal:
        sentence = str(refusal)
    else:
        assert RunSpec.read_json(spec.model_dump_json()) == spec
        return
    assert 0 < len(sentence) < 1000
    assert "\n" not in sentence


@given(st.sampled_from(FIELDS), values)
def test_any_value_in_any_field_is_accepted_or_refused_with_a_sentence(field: tuple[str, str], value: Any) -> None:
    part, name = field
    request = FULL.model_dump(mode="json")
    request[part][name] = value
    read_or_refuse(lambda: RunSpec.model_validate(request))
    read_or_refuse(lambda: RunSpec.read_json(json.dumps(request)))


def _choices(names: Any) -> str:
    """The allowed values of a field, as a refusal lists them."""
    *others, last = (repr(name) for name in get_args(names))
    return f"{', '.join(others)} or {last}"


@given(st.one_of(st.text(), st.binary(), values.map(json.dumps)))
@example("[" * 100_000)
@example('{"model": {"layers": 1e999}}')
@example('{"workload": {"learning_rate": NaN}}')
def test_any_text_is_read_as_a_spec_or_refused_with_a_sentence(text: str | bytes) -> None:
    read_or_refuse(lambda: RunSpec.read_json(text))


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ('{"model": {"layers": 0}}', "layers=0 must be greater than or equal to 1"),
        ('{"model": {"layers": 0, "seq": 0}}', "layers=0 must be greater than or equal to 1 (and 1 more)"),
        ('{"layout": {"schedule": "2f2b"}}', f"schedule='2f2b' must be {_choices(ScheduleName)}"),
        ('{"workload": {"text": ""}}', "text='' must have at least 1 character"),
        ('{"fault": {"kind": "raise", "rank": 0}}', "fault needs step"),
        ('{"model": "gpt-tiny"}', "model must be an object with fields such as family, layers, hidden, not 'gpt-tiny'"),
        ('{"workload": {"steps": "abc"}}', "steps='abc' must be a whole number"),
        ('{"workload": {"steps": 2.5}}', "steps=2.5 must be a whole number"),
        ('{"workload": {"learning_rate": "x"}}', "learning_rate='x' must be a number"),
        ('{"parity": "perhaps"}', "parity='perhaps' must be true or false"),
        ("[]", "spec must be an object with fields such as model, layout, workload, not []"),
        ("{", "this is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"model": {"family": "' + "x" * 5000 + '"}}', "family='" + "x" * 58 + f"… must be {_choices(FamilyName)}"),
    ],
    ids=range(13),
)
def test_the_refusal_of_a_wrong_value_names_its_field(request_: str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        RunSpec.read_json(request_)
    assert str(caught.value) == sentence


def test_a_file_name_that_is_not_utf_8_is_refused() -> None:
    """JSON cannot hold it. On Linux a file name is any bytes; Python shows those that are not UTF-8 as lone surrogates."""
    with pytest.raises(RequestError, match=r"text='caf.*' must be a valid string"):
        WorkloadSpec(text=b"caf\xe9.txt".decode("utf-8", "surrogateescape"))


# ---------------------------------------------------------------------------------------------------- chunks of the loss


def test_words_for_the_chunks_of_the_loss_are_numbers_in_json() -> None:
    workloads = [WorkloadSpec.model_validate({"loss_chunk": word}) for word in ("auto", "whole", "300", 300)]
    assert [workload.loss_chunk for workload in workloads] == [0, -1, 300, 300]
    with pytest.raises(RequestError, match="loss_chunk='half' must be a whole number"):
        WorkloadSpec.model_validate({"loss_chunk": "half"})


@pytest.mark.parametrize(("loss_chunk", "tp", "tokens"), [
    (-1, 1, None), (300, 1, 300), (2047, 4, 2047), (2048, 4, None), (0, 1, (256 << 20) // (4 * 50257)), (0, 2, None),
])  # fmt: skip
def test_a_chunk_as_large_as_a_microbatch_is_a_whole_loss(loss_chunk: int, tp: int, tokens: int | None) -> None:
    """2,048 tokens have 393 MiB of fp32 logits, and half of that on each of two tp ranks."""
    model = ModelSpec(vocab=50257, seq=1024)
    assert WorkloadSpec(loss_chunk=loss_chunk, microbatch_size=2).loss_tokens(model, tp) == tokens
