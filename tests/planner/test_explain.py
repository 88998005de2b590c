"""Explanations: their numbers add up, and suggested layouts fit."""

from __future__ import annotations

import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.planner.explain import Reason, label, levers, way_to_fit, why
from engine.planner.search import Plan, search
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec


@pytest.fixture(scope="module")
def plan() -> Plan:
    return search(catalog.model("gpt3-13b"), 32, DEVICES["a100-40gb"], 64)


def plain(**layout: object) -> RunSpec:
    """A spec of 32 ranks and 64 sequences, without levers except those given."""
    degrees = LayoutSpec.model_validate({"dp": 4, "tp": 8} | layout)
    counts = {"microbatches": 16 // degrees.dp, "microbatch_size": 4}
    return RunSpec(model=catalog.model("gpt3-13b"), layout=degrees, workload=WorkloadSpec(precision="bf16", **counts))


def test_a_reason_has_its_template_and_its_values() -> None:
    assert str(Reason("{one:.1f} s instead of {other:.1f} s", {"one": 1.25, "other": 3})) == "1.2 s instead of 3.0 s"


def test_the_reasons_add_up_to_the_difference_of_two_steps(plan: Plan) -> None:
    """The reasons add up to the difference of the two steps, except for parts that are too small to be listed."""
    difference, *parts = why(plan)
    steps = plan.layouts["step_s"]
    assert difference.values["fast"] == steps[0]
    assert difference.values["slow"] == steps[1]
    assert difference.values["first"] == label(plan, 0)
    assert plan.layouts["layout"][0] in str(difference)
    gaps = [part.values["gap"] for part in parts]
    assert gaps == sorted(gaps, reverse=True)
    total = sum(part.values["other"] - part.values["one"] for part in parts)
    assert total == pytest.approx(steps[1] - steps[0], abs=6 * 0.02 * max(steps[1] - steps[0], 0.01 * steps[0]))
    for part in parts:
        assert str(part).endswith(" less." if part.values["other"] > part.values["one"] else " more.")


def test_any_two_layouts_can_be_compared(plan: Plan) -> None:
    slower = plan.feasible - 1
    assert why(plan, 0, slower)[0].values["percent"] > 100


def test_every_lever_saves_memory_and_cheap_ones_come_first(plan: Plan) -> None:
    spec = plain(dp=4)
    found = levers(plan, spec)
    assert [lever.step_s for lever in found] == sorted(lever.step_s for lever in found)
    texts = [str(lever.reason) for lever in found]
    for start in (
        "Sequence parallelism",
        "ZeRO 1",
        "ZeRO 2",
        "ZeRO 3",
        "Selective recompute",
        "Full recompute",
        "Microbatches of 2",
    ):
        assert any(text.startswith(start) for text in texts), start
    for lever in found:
        layout, workload = lever.spec.layout, lever.spec.workload
        assert layout.ranks == 32
        assert layout.dp * workload.microbatches * workload.microbatch_size == 64
        assert lever.fits == (lever.with_reserve <= plan.device.memory_bytes)


def test_the_way_to_fit_ends_in_a_layout_that_fits(plan: Plan) -> None:
    spec = plain(dp=8, tp=4)
    way = way_to_fit(plan, spec)
    assert way, "it does not fit as it is"
    assert [step.fits for step in way] == [False] * (len(way) - 1) + [True]
    needs = [step.memory_bytes for step in way]
    assert needs == sorted(needs, reverse=True)


def test_a_layout_that_fits_needs_no_change(plan: Plan) -> None:
    assert way_to_fit(plan, plan.spec(0)) == []
