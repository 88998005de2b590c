"""Which model, layout and workload fit together, and what the user is told of those that do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.spec import LayoutSpec, Misfit, ModelSpec, RequestError, RunSpec, Spec, WorkloadSpec, misfits
from tests.engine.any_specs import changed, layouts, models, runs, workloads


@given(models(), layouts(), workloads)
def test_a_request_is_accepted_exactly_when_it_has_no_misfits(
    model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec
) -> None:
    found = misfits(model, layout, workload)
    if not found:
        RunSpec(model=model, layout=layout, workload=workload)
        return
    with pytest.raises(RequestError) as caught:
        RunSpec(model=model, layout=layout, workload=workload)
    assert all(misfit.sentence in str(caught.value) for misfit in found), "the refusal lists all misfits at once"


def value_of(misfit: Misfit, parts: dict[str, Spec]) -> Any:
    part, name = misfit.field.split(".")
    return getattr(parts[part], name)


def apply(misfit: Misfit, choice: Any, parts: dict[str, Spec]) -> list[Misfit]:
    """The misfits that are left after the field is set to the choice. Raises RequestError if the field cannot have this value."""
    part, name = misfit.field.split(".")
    then = parts | {part: changed(parts[part], **{name: choice})}
    return misfits(then["model"], then["layout"], then["workload"])  # type: ignore[arg-type]


@given(models(), layouts(), workloads)
@example(ModelSpec(heads=4, ffn=6), LayoutSpec(tp=3), WorkloadSpec())  # 4 divides the heads, not the MLP
@example(ModelSpec(seq=1_000_000), LayoutSpec(tp=3, sequence_parallel=True), WorkloadSpec())  # the next multiple is too long
def test_every_choice_that_a_misfit_suggests_fits(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec) -> None:
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


def only_misfit(model: ModelSpec | None = None, layout: LayoutSpec | None = None, workload: WorkloadSpec | None = None) -> str:
    """The sentence of a request that has exactly one misfit."""
    (misfit,) = misfits(model or ModelSpec(), layout or LayoutSpec(), workload or WorkloadSpec())
    return misfit.sentence


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        (lambda: only_misfit(ModelSpec(heads=8), LayoutSpec(tp=3)), "tp=3 does not divide 8 heads; 1, 2, 4 and 8 do"),
        (lambda: only_misfit(ModelSpec(heads=1), LayoutSpec(tp=2)), "tp=2 does not divide 1 head; 1 does"),
        (
            lambda: only_misfit(ModelSpec(heads=4, ffn=6), LayoutSpec(tp=4)),
            "tp=4 does not divide the MLP's width of 6; 1 and 2 divide both 4 heads and the MLP's width of 6",
        ),
        (
            lambda: only_misfit(layout=LayoutSpec(pp=6)),
            "pp=6 needs at least 6 layers, one a stage, and the model has 4; pp up to 4 fits",
        ),
        (
            lambda: only_misfit(layout=LayoutSpec(pp=5)),
            (
                "pp=5 needs at least 5 layers, one a stage, and the model has 4; "
                "pp up to 4 fits, or split=1,1,1,1,0: the last stage has the head alone"
            ),
        ),
        (
            lambda: only_misfit(ModelSpec(layers=8), LayoutSpec(pp=3, split=(3, 3))),
            "split 3,3 names 2 stages and pp=3; 3,3,2 would fit",
        ),
        (
            lambda: only_misfit(ModelSpec(layers=8), LayoutSpec(pp=3, split=(3, 3, 3))),
            "split 3,3,3 adds up to 9 layers and the model has 8; 3,3,2 would fit",
        ),
        (
            lambda: only_misfit(layout=LayoutSpec(pp=3, split=(4, 0, 0))),
            "split 4,0,0 leaves a middle stage without layers; 2,1,1 would fit",
        ),
        (
            lambda: only_misfit(ModelSpec(layers=8), LayoutSpec(pp=3, recompute="full", recompute_every=4)),
            "recompute_every=4 recomputes no layer of a stage, of which the longest has 3; recompute_every up to 3 fits",
        ),
        (lambda: only_misfit(ModelSpec(vocab=100)), "vocab=100 is too small: text is read as bytes, which take 256 values"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_misfit_shows_its_arithmetic(refused: Callable[[], str], sentence: str) -> None:
    assert refused() == sentence


@given(st.integers(1, 65_536), st.integers(1, 1024))
@example(65_536, 1000)  # the next multiple of heads is wider than a model may be
@example(2062, 1000)  # 1031 divides it, and is more heads than a model may have
def test_the_refusal_of_heads_that_do_not_divide_the_width_suggests_numbers_that_do(hidden: int, heads: int) -> None:
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


# ------------------------------------------------------------------------------------------------------- layers and stages


@given(st.integers(1, 200), st.data())
def test_without_a_split_stages_differ_by_at_most_one_layer(layers: int, data: st.DataObject) -> None:
    pp = data.draw(st.integers(1, layers))
    stages = LayoutSpec(pp=pp).stage_layers(layers)
    assert len(stages) == pp
    assert sum(stages) == layers
    assert list(stages) == sorted(stages, reverse=True), "the earlier stages take the remainder"
    assert max(stages) - min(stages) <= 1


@given(runs())
def test_the_stages_of_a_fitting_request_hold_every_layer_once(spec: RunSpec) -> None:
    stages = spec.layout.stage_layers(spec.model.layers)
    assert len(stages) == spec.layout.pp
    assert sum(stages) == spec.model.layers


def test_the_first_and_the_last_stage_may_have_no_layers() -> None:
    """They have the embedding and the head."""
    assert misfits(ModelSpec(layers=4), LayoutSpec(pp=3, split=(0, 4, 0)), WorkloadSpec()) == []
