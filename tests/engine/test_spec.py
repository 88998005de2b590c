"""What a request may be, and what is said of one that cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from math import gcd
from typing import Any, TypeVar, get_args

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.families import FamilyName
from engine.optimizer import OPTIMIZERS
from engine.spec import (
    FaultSpec,
    LayoutSpec,
    Misfit,
    ModelSpec,
    RequestError,
    RunSpec,
    ScheduleName,
    Spec,
    WorkloadSpec,
    misfits,
)

PARTS: dict[str, type[Spec]] = {"model": ModelSpec, "layout": LayoutSpec, "workload": WorkloadSpec, "fault": FaultSpec}
S = TypeVar("S", bound=Spec)
DRILL = FaultSpec(kind="raise", rank=0, step=1)
SCHEMA = jsonschema.Draft202012Validator(RunSpec.model_json_schema())
FULL = RunSpec(fault=DRILL)  # with every part there is


# ------------------------------------------------------------------------------------------- specs that fit, and any specs


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Any shape that a model can have by itself."""
    heads = draw(st.integers(1, 48))
    return ModelSpec(
        layers=draw(st.integers(1, 24)),
        hidden=heads * draw(st.integers(1, 32)),
        heads=heads,
        vocab=draw(st.integers(1, 1000)),
        seq=draw(st.integers(1, 1000)),
        ffn=draw(st.one_of(st.just(0), st.integers(1, 500))),
    )


@st.composite
def layouts(draw: st.DrawFn) -> LayoutSpec:
    """Any layout, whether or not it fits anything."""
    pp = draw(st.integers(1, 12))
    split = draw(st.one_of(st.just([]), st.lists(st.integers(-1, 8), max_size=pp + 1)))
    return LayoutSpec(
        dp=draw(st.integers(1, 8)),
        tp=draw(st.integers(1, 48)),
        pp=pp,
        schedule=draw(st.sampled_from(["naive", "gpipe", "1f1b"])),
        split=tuple(split),
        zero=draw(st.integers(0, 3)),
        sequence_parallel=draw(st.booleans()),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
    )


workloads = st.builds(
    WorkloadSpec,
    steps=st.integers(1, 10_000),
    microbatches=st.integers(1, 1024),
    microbatch_size=st.integers(1, 4096),
    learning_rate=st.floats(0, 10, exclude_min=True),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    momentum=st.one_of(st.just(0.0), st.floats(0, 1, exclude_max=True)),
    precision=st.sampled_from(["fp32", "bf16"]),
    accumulate=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 2**31 - 1),
    text=st.one_of(st.none(), st.text(min_size=1)),
    time_limit=st.floats(0, 86_400, exclude_min=True),
)


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    """Any request that fits together, made to fit rather than sifted."""
    model, layout, workload = draw(models()), draw(layouts()), draw(workloads)
    both = gcd(model.heads, model.ffn_width)
    tp = draw(st.sampled_from([d for d in range(1, both + 1) if both % d == 0]))
    pp = draw(st.integers(1, model.layers))
    split: tuple[int, ...] = ()
    if draw(st.booleans()):
        cuts = sorted(draw(st.sets(st.integers(1, model.layers - 1), min_size=pp - 1, max_size=pp - 1))) if pp > 1 else []
        ends = [0, *cuts, model.layers]
        split = tuple(after - before for before, after in pairwise(ends))
    kind = draw(st.sampled_from(["", "raise", "exit", "kill", "hang"]))
    where = {"rank": draw(st.integers(0, layout.dp * tp * pp - 1)), "step": draw(st.integers(1, workload.steps))}
    return RunSpec(
        model=changed(model, vocab=draw(st.integers(256, 60_000))),
        layout=changed(
            layout,
            tp=tp,
            pp=pp,
            split=split,
            zero=layout.zero if layout.dp > 1 else 0,
            sequence_parallel=layout.sequence_parallel and tp > 1 and model.seq % tp == 0,
        ),
        workload=changed(
            workload,
            accumulate=workload.accumulate if workload.precision == "bf16" else "fp32",
            momentum=workload.momentum if workload.optimizer == "sgd" else 0.0,
        ),
        parity=draw(st.booleans()),
        fault=FaultSpec.model_validate({"kind": kind, **where}) if kind else None,
    )


def changed(part: S, **fields: Any) -> S:
    """The part with other values, checked as if it had been asked for so."""
    return type(part).model_validate(part.model_dump() | fields)


# ------------------------------------------------------------------------------------------------------ there and back


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


def test_an_axis_left_out_of_a_short_form_is_one() -> None:
    assert LayoutSpec.degrees("tp4") == {"dp": 1, "tp": 4, "pp": 1}
    assert LayoutSpec.degrees("pp2.dp3") == {"dp": 3, "tp": 1, "pp": 2}


@pytest.mark.parametrize(
    "code", ["", "dp", "2", "dp2.dp2", "dp-1", "dp2,tp2", "dp2.xp2", "DP2", "dp2.", "dp 2", "dp2e1", "dp" + "9" * 5000]
)
def test_what_is_no_short_form_is_refused(code: str) -> None:
    with pytest.raises(RequestError, match=re.escape("is not of the form dp2.tp2.pp2")):
        LayoutSpec.degrees(code)


def test_a_drill_is_read_from_its_short_form() -> None:
    assert FaultSpec.read("kill:3@2") == FaultSpec(kind="kill", rank=3, step=2)


@pytest.mark.parametrize("text", ["", "kill", "kill:3", "kill@2", "kill:a@2", "kill:-1@2", "kill:" + "9" * 5000 + "@1"])
def test_what_is_no_drill_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not of the form raise:3@2"):
        FaultSpec.read(text)


# ----------------------------------------------------------------------------------------------- closed, frozen, immutable


@pytest.mark.parametrize("part", ["", *PARTS])
def test_an_unknown_field_is_refused_at_every_level_with_the_known_ones(part: str) -> None:
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
def test_equal_specs_are_one_key(spec: RunSpec) -> None:
    """Caches are kept by spec."""
    assert len({spec, RunSpec.read_json(spec.model_dump_json())}) == 1


# ------------------------------------------------------------------------------------------- what does not fit together


@given(models(), layouts(), workloads)
def test_a_request_is_taken_exactly_when_nothing_in_it_misfits(
    model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec
) -> None:
    found = misfits(model, layout, workload)
    if not found:
        RunSpec(model=model, layout=layout, workload=workload)
        return
    with pytest.raises(RequestError) as caught:
        RunSpec(model=model, layout=layout, workload=workload)
    assert all(misfit.sentence in str(caught.value) for misfit in found), "the user is told all of it at once"


def value_of(misfit: Misfit, parts: dict[str, Spec]) -> Any:
    part, name = misfit.field.split(".")
    return getattr(parts[part], name)


def apply(misfit: Misfit, choice: Any, parts: dict[str, Spec]) -> list[Misfit]:
    """What still misfits after the field was set to the choice; raises if the field itself cannot be that."""
    part, name = misfit.field.split(".")
    then = parts | {part: changed(parts[part], **{name: choice})}
    return misfits(then["model"], then["layout"], then["workload"])  # type: ignore[arg-type]


@given(models(), layouts(), workloads)
@example(ModelSpec(heads=4, ffn=6), LayoutSpec(tp=3), WorkloadSpec())  # 4 divides the heads and not the MLP
@example(ModelSpec(seq=1_000_000), LayoutSpec(tp=3, sequence_parallel=True), WorkloadSpec())  # the multiple above is too long
def test_every_choice_that_a_misfit_suggests_really_fits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> None:
    parts: dict[str, Spec] = {"model": model, "layout": layout, "workload": workload}
    for misfit in misfits(model, layout, workload):
        for choice in misfit.choices:
            assert choice != value_of(misfit, parts)
            assert [m.sentence for m in apply(misfit, choice, parts) if m.field == misfit.field] == []
        if misfit.field == "layout.split":
            split, pp = re.search(r"; ([\d,]+) would fit(?: with pp=(\d+))?$", misfit.sentence).groups()  # type: ignore[union-attr]
            then = changed(layout, split=tuple(map(int, split.split(","))), pp=int(pp or layout.pp))
            assert [m.sentence for m in misfits(model, then, workload) if m.field == misfit.field] == []


@given(models(), layouts(), workloads)
def test_every_misfit_shows_the_numbers_that_do_not_fit(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> None:
    parts: dict[str, Spec] = {"model": model, "layout": layout, "workload": workload}
    for misfit in misfits(model, layout, workload):
        value = value_of(misfit, parts)
        shown = {tuple: lambda v: ",".join(map(str, v)), bool: lambda v: "sequence_parallel", float: "{:g}".format}
        assert shown.get(type(value), str)(value) in misfit.sentence
        assert all(str(choice) in misfit.sentence for choice in misfit.choices[:1] if not isinstance(value, bool))
        assert "\n" not in misfit.sentence


def only(model: ModelSpec | None = None, layout: LayoutSpec | None = None, workload: WorkloadSpec | None = None) -> str:
    """The one sentence that is said of a request."""
    (misfit,) = misfits(model or ModelSpec(), layout or LayoutSpec(), workload or WorkloadSpec())
    return misfit.sentence


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        (lambda: only(ModelSpec(heads=8), LayoutSpec(tp=3)), "tp=3 does not divide 8 heads; 1, 2, 4 and 8 do"),
        (lambda: only(ModelSpec(heads=1), LayoutSpec(tp=2)), "tp=2 does not divide 1 head; 1 does"),
        (
            lambda: only(ModelSpec(heads=4, ffn=6), LayoutSpec(tp=4)),
            "tp=4 does not divide the MLP's width of 6; 1 and 2 divide both 4 heads and the MLP's width of 6",
        ),
        (
            lambda: only(layout=LayoutSpec(pp=6)),
            "pp=6 needs at least 6 layers, one a stage, and the model has 4; pp up to 4 fits",
        ),
        (
            lambda: only(ModelSpec(layers=8), LayoutSpec(pp=3, split=(3, 3))),
            "split 3,3 names 2 stages and pp=3; 3,3,2 would fit",
        ),
        (
            lambda: only(ModelSpec(layers=8), LayoutSpec(pp=3, split=(3, 3, 3))),
            "split 3,3,3 adds up to 9 layers and the model has 8; 3,3,2 would fit",
        ),
        (
            lambda: only(layout=LayoutSpec(pp=3, split=(4, 0, 0))),
            "split 4,0,0 leaves a middle stage without a layer, so with nothing to do; 2,1,1 would fit",
        ),
        (lambda: only(ModelSpec(vocab=100)), "vocab=100 is too small: text is read as bytes, which take 256 values"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_misfit_is_said_with_its_arithmetic(sentence: Callable[[], str], said: str) -> None:
    assert sentence() == said


@given(st.integers(1, 65_536), st.integers(1, 1024))
@example(65_536, 1000)  # the multiple above is wider than a model can be
@example(2062, 1000)  # 1031 divides it and is more heads than a model can have
def test_heads_that_do_not_divide_the_width_are_refused_with_neighbours_that_do(hidden: int, heads: int) -> None:
    if hidden % heads == 0:
        assert ModelSpec(hidden=hidden, heads=heads).head_width * heads == hidden
        return
    with pytest.raises(RequestError, match=f"heads={heads} does not divide hidden={hidden}") as caught:
        ModelSpec(hidden=hidden, heads=heads)
    widths, others = re.search(r"; hidden=([\d or]+) fits, or heads=([\d, or]+)$", str(caught.value)).groups()  # type: ignore[union-attr]
    for width in re.findall(r"\d+", widths):
        ModelSpec(hidden=int(width), heads=heads)
    for other in re.findall(r"\d+", others):
        ModelSpec(hidden=hidden, heads=int(other))


def test_a_drill_must_have_a_rank_and_a_step_to_happen_in() -> None:
    with pytest.raises(RequestError, match=r"fault\.rank=2 is not one of the 2 ranks, 0 to 1"):
        RunSpec(layout=LayoutSpec(dp=2), fault=FaultSpec(kind="exit", rank=2, step=1))
    with pytest.raises(RequestError, match=r"fault\.step=4 never comes: the run has 3 steps"):
        RunSpec(workload=WorkloadSpec(steps=3), fault=FaultSpec(kind="exit", rank=0, step=4))


# ------------------------------------------------------------------------------------------------------- layers and stages


@given(st.integers(1, 200), st.data())
def test_without_a_split_the_stages_are_as_even_as_can_be(layers: int, data: st.DataObject) -> None:
    pp = data.draw(st.integers(1, layers))
    stages = LayoutSpec(pp=pp).stage_layers(layers)
    assert len(stages) == pp
    assert sum(stages) == layers
    assert list(stages) == sorted(stages, reverse=True), "the earlier stages take what is left over"
    assert max(stages) - min(stages) <= 1


@given(runs())
def test_the_stages_of_a_fitting_request_hold_every_layer_once(spec: RunSpec) -> None:
    stages = spec.layout.stage_layers(spec.model.layers)
    assert len(stages) == spec.layout.pp
    assert sum(stages) == spec.model.layers


def test_the_ends_of_the_pipeline_may_do_without_layers() -> None:
    """They have the embedding and the head to work on."""
    assert misfits(ModelSpec(layers=4), LayoutSpec(pp=3, split=(0, 4, 0)), WorkloadSpec()) == []


# ------------------------------------------------------------------------------------------------------- nonsense refused

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
FIELDS = [(part, name) for part, spec in PARTS.items() for name in spec.model_fields]


def read_or_refuse(read: Callable[[], RunSpec]) -> None:
    """Any answer is right but an exception of another type, and a sentence that is long or goes over several lines."""
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
def test_any_value_in_any_field_is_taken_or_refused_in_a_sentence(field: tuple[str, str], value: Any) -> None:
    part, name = field
    request = FULL.model_dump(mode="json")
    request[part][name] = value
    read_or_refuse(lambda: RunSpec.model_validate(request))
    read_or_refuse(lambda: RunSpec.read_json(json.dumps(request)))


def _choices(names: Any) -> str:
    """The names that a field chooses from, as a refusal lists them."""
    *others, last = (repr(name) for name in get_args(names))
    return f"{', '.join(others)} or {last}"


@given(st.one_of(st.text(), st.binary(), values.map(json.dumps)))
@example("[" * 100_000)
@example('{"model": {"layers": 1e999}}')
@example('{"workload": {"learning_rate": NaN}}')
def test_any_text_is_read_as_a_spec_or_refused_in_a_sentence(text: str | bytes) -> None:
    read_or_refuse(lambda: RunSpec.read_json(text))


@pytest.mark.parametrize(
    ("request_", "said"),
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
def test_a_value_that_cannot_be_is_refused_by_its_name(request_: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        RunSpec.read_json(request_)
    assert str(caught.value) == said


def test_a_file_name_that_json_cannot_carry_is_refused() -> None:
    """On Linux a name may be any bytes; Python shows those that are not UTF-8 as lone surrogates."""
    with pytest.raises(RequestError, match=r"text='caf.*' must be a valid string"):
        WorkloadSpec(text=b"caf\xe9.txt".decode("utf-8", "surrogateescape"))
