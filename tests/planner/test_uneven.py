"""Uneven splits that a search offers beside the even ones."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.planner.explain import label
from engine.planner.search import Plan, search
from engine.planner.uneven import balanced, moved
from engine.predict.memory import memory
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import PARTS, simulated
from engine.predict.traffic import traffic
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from engine.spec.numbers import evenly, in_runs
from engine.topology import AXES

A100 = DEVICES["a100-40gb"]
_LEVERS = ["layout", "schedule", "microbatch_size", "zero", "zero_replicas", "sequence_parallel", "recompute"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Llama 3 8B has 32 layers, and a head that takes as long as some of them."""
    return search(catalog.model("llama3-8b"), 24, A100, 96)


def rows(plan: Plan) -> list[int]:
    return np.flatnonzero(plan.layouts["split"] != "").tolist()


def slowest(placement: tuple[int, ...], split: tuple[int, ...], embedding: float, head: float) -> float:
    loads = dict.fromkeys(placement, 0.0)
    for chunk, (stage, count) in enumerate(zip(placement, split, strict=True)):
        loads[stage] += count + embedding * (chunk == 0) + head * (chunk == len(split) - 1)
    return max(loads.values())


@pytest.mark.parametrize(("embedding", "head"), [(0.0, 0.0), (0.1, 0.4), (0.0, 1.2), (0.3, 3.7)])
@pytest.mark.parametrize("placement", [(0, 1), (0, 1, 2, 3), (0, 1, 0, 1), (0, 1, 1, 0)])
def test_no_split_has_a_faster_slowest_stage_than_the_balanced_one(
    placement: tuple[int, ...], embedding: float, head: float
) -> None:
    """Of every split of 9 layers."""
    every = [split for split in itertools.product(range(10), repeat=len(placement)) if sum(split) == 9 and 0 not in split[1:-1]]
    best = min(slowest(placement, split, embedding, head) for split in every)
    assert slowest(placement, balanced(placement, 9, embedding, head), embedding, head) == pytest.approx(best)


def test_layers_that_are_left_over_are_not_on_the_first_and_the_last_stage() -> None:
    """78 layers on 12 stages and 61 on 8. Under 1F1B the first stages have the most microbatches in flight."""
    assert in_runs(balanced(tuple(range(12)), 78, 0.02, 0.4)) == "5 × 6, 6 × 7, 6"
    assert in_runs(balanced(tuple(range(8)), 61, 0.02, 0.4)) == "2 × 7, 5 × 8, 7"
    assert in_runs(evenly(78, 12)) == "6 × 7, 6 × 6"


def test_126_layers_leave_embedding_and_head_a_chunk_each() -> None:
    """As Llama 3 405B was trained: the first and the last chunk have one layer less (Grattafiori et al. 2024, section 3.3)."""
    plan = search(catalog.model("llama3-405b"), 512, DEVICES["h200-141gb"], 512)
    splits = {in_runs(LayoutSpec.split_of(plan.layouts["split"].iloc[row])) for row in rows(plan)}
    assert "0, 126 × 1, 0" in splits


def test_an_offered_split_is_faster_or_smaller_than_the_even_one(plan: Plan) -> None:
    table = plan.layouts
    assert rows(plan)
    for row in rows(plan):
        own = table.iloc[row]
        alike = table[(table[_LEVERS] == own[_LEVERS]).all(axis=1) & (table["split"] == "") & (table["chunks"] <= own["chunks"])]
        least = min(simulated(plan.spec(int(even)), A100, Assumptions())[0] for even in alike.index)
        assert own["fits"]
        assert own["step_s"] < least or own["memory_bytes"] < alike["memory_bytes"].min()


def test_rows_with_a_split_are_predictions_of_their_spec(plan: Plan) -> None:
    for row in rows(plan):
        own, spec = plan.layouts.iloc[row], plan.spec(row)
        assert spec.layout.split
        assert sum(spec.layout.split) == plan.model.layers
        peaks = [peak.total for peak in memory(spec).peaks]
        assert (own["memory_bytes"], own["fullest_stage"]) == (max(peaks), peaks.index(max(peaks)))
        assert (own["step_s"], own["bubble"]) == pytest.approx(simulated(spec, A100, Assumptions()))
        assert sum(getattr(plan.step_time, part)[row] for part in PARTS) == pytest.approx(own["step_s"])
        sent = traffic(spec)
        for axis in AXES:
            of_axis = sent[sent["axis"] == axis].groupby("rank")["wire_bytes"].sum()
            assert own[f"{axis}_bytes"] == (of_axis.max() if len(of_axis) else 0)
        assert f"{in_runs(spec.layout.split)} layers" in label(plan, row)


def test_rows_stay_sorted(plan: Plan) -> None:
    assert plan.layouts["step_s"][: plan.feasible].is_monotonic_increasing
    assert len(plan.layouts) == len(plan.grid) == len(plan.step_time.step)
    assert plan.grid.chunks.tolist() == plan.layouts["chunks"].tolist()


def test_a_layout_that_is_slightly_too_large_fits_with_layers_moved_to_its_last_stages() -> None:
    """80 layers on 12 stages under 1F1B: the first stage has the most microbatches in flight. It is the fastest of all."""
    plan = search(catalog.model("llama3-70b"), 96, A100.model_copy(update={"memory_bytes": 44 << 30}), 384, only="megatron")
    best, table = plan.layouts.iloc[0], plan.layouts
    alike = table[(table[[*_LEVERS, "chunks"]] == best[[*_LEVERS, "chunks"]]).all(axis=1) & (table["split"] == "")].iloc[0]
    split = LayoutSpec.split_of(best["split"])
    assert (best["fits"], alike["fits"]) == (True, False)
    assert best["memory_bytes"] < alike["memory_bytes"]
    assert split[0] < evenly(80, 12)[0]
    assert max(split) == max(evenly(80, 12))


def test_layers_move_only_while_there_is_room() -> None:
    model = ModelSpec(layers=8, hidden=64, heads=4)
    spec = RunSpec(model=model, layout=LayoutSpec(pp=4), workload=WorkloadSpec(microbatches=4))
    assert moved(spec, [100, 80, 60, 40], 80) == (1, 2, 2, 3)
    assert moved(spec, [100, 80, 60, 40], 100) == (2, 2, 2, 2)
    assert moved(spec, [100, 95, 95, 95], 96) is None
    assert moved(spec, [900, 80, 60, 40], 80) is None


@pytest.mark.parametrize("given", [{"account": "zero2020"}, {"only": "deepspeed"}, {"simulate_best": 0}])
def test_some_searches_have_even_splits_alone(given: dict[str, object]) -> None:
    plan = search(ModelSpec(layers=9, hidden=64, heads=4, vocab=4096), 4, A100, 8, **given)  # type: ignore[arg-type]
    assert pd.Series(plan.layouts["split"]).eq("").all()
