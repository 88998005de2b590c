"""Memory of very many layouts at once is that of each one by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import catalog
from engine.families import FamilyName
from engine.grid import RECOMPUTES, Grid
from engine.ledger.split import Stack
from engine.planner.candidates import candidates
from engine.planner.search import MIXED
from engine.predict.bulk.memory import fullest
from engine.predict.bulk.peak_candidates import peak_candidates
from engine.predict.memory import memory
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RunSpec, ScheduleName, WorkloadSpec
from tests.predict.random_specs import random_specs


def assert_equal(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> None:
    """The bytes found are those of the fullest stage, and the stage found is the first that is as full."""
    found, stages = fullest(model, workload, grid)
    for i in range(len(grid)):
        spec = grid.spec(i, model, workload)
        peaks = [peak.total for peak in memory(spec).peaks]
        assert (found[i], stages[i]) == (max(peaks), peaks.index(max(peaks))), spec.layout


def test_of_random_layouts_of_every_family_and_schedule() -> None:
    for spec in random_specs(40, seed=11):
        assert_equal(spec.model, spec.workload, Grid.of([spec]))


@pytest.mark.parametrize(
    ("model", "ranks", "batch", "workload"),
    [
        (catalog.model("gpt3-13b"), 32, 64, MIXED),
        (catalog.model("llama3-8b"), 16, 32, WorkloadSpec(precision="bf16", accumulate="bf16", optimizer="sgd")),
        (ModelSpec(family="transformer", layers=12, hidden=64, heads=4, vocab=264, seq=32), 8, 24, WorkloadSpec()),
    ],
    ids=["gpt", "llama", "transformer"],
)
def test_of_layouts_as_the_planner_weighs_them(model: ModelSpec, ranks: int, batch: int, workload: WorkloadSpec) -> None:
    grid = candidates(model, ranks, batch)
    few = np.flatnonzero(grid.microbatches * grid.pp * grid.chunks <= 256)
    assert_equal(model, workload, grid.take(np.random.default_rng(0).choice(few, 10, replace=False)))


@pytest.mark.parametrize("schedule", ["zb-h1", "zb-v", "dualpipe-v"])
def test_where_backward_is_halved_and_passes_overlap(schedule: str) -> None:
    """An encoder and a decoder, whose streams two chunks of a stage hold, until I or until W; and reductions that wait for W."""
    model = ModelSpec(family="transformer", layers=12, hidden=64, heads=4, vocab=264, seq=32)
    grid = candidates(model, 8, 24)
    of = np.flatnonzero((grid.schedule == SCHEDULES.index(schedule)) & (grid.pp > 1) & (grid.microbatches <= 12))
    assert_equal(model, MIXED, grid.take(np.random.default_rng(1).choice(of, 12, replace=False)))


@pytest.mark.parametrize("name", [name for name, facts in SCHEDULE_FACTS.items() if facts.memory_repeats_after])
@pytest.mark.parametrize("pp", [2, 3, 8])
def test_more_microbatches_than_fill_the_pipeline_bring_no_higher_instant(name: Any, pp: int) -> None:
    """Beyond the number that is looked at, nothing new is found; of GPipe, which holds all of them, the rows grow with them."""
    facts = SCHEDULE_FACTS[name]
    chunks, enough = facts.chunks or 3, int(facts.enough_microbatches(pp, 6 * pp))
    found = peak_candidates(name, pp, chunks, (enough, enough + 3 * pp), Stack(24))
    for one, more in zip(found.of[enough].rows, found.of[enough + 3 * pp].rows, strict=True):
        assert {row.tobytes() for row in one} == {row.tobytes() for row in more}


def test_no_other_stage_than_those_looked_at_is_the_first_that_is_fullest() -> None:
    model = catalog.model("gpt3-175b")
    grid = candidates(model, 1024, 1536)
    grid = grid.take((grid.schedule >= SCHEDULES.index("interleaved")) & (grid.pp == 16))
    for one, other in zip(fullest(model, MIXED, grid), fullest(model, MIXED, grid, all_stages=True), strict=True):
        np.testing.assert_array_equal(one, other)


GROWING = [name for name, facts in SCHEDULE_FACTS.items() if facts.memory_repeats_after is None]


@pytest.mark.parametrize("name", GROWING)
def test_where_all_microbatches_are_held_alike_actions_are_counted_at_once(name: ScheduleName) -> None:
    by_hand = ModelSpec(layers=8, hidden=32, heads=4, vocab=264, seq=16)
    for m in (4, 5, 9, 40):
        grid = candidates(by_hand, 2, m)
        here = np.flatnonzero((grid.schedule == SCHEDULES.index(name)) & (grid.microbatches == m))
        assert_equal(by_hand, MIXED, grid.take(here[:: max(1, len(here) // 12)]))


@pytest.mark.parametrize("name", GROWING)
def test_each_of_very_many_microbatches_that_are_held_takes_as_much_as_the_one_before(name: ScheduleName) -> None:
    """Also where there are more of them than narrow numbers hold."""
    model = ModelSpec(layers=4, hidden=32, heads=4, vocab=264, seq=16)
    layout = LayoutSpec(pp=2, schedule=name, chunks=SCHEDULE_FACTS[name].least_chunks)
    several = [RunSpec(model=model, layout=layout, workload=WorkloadSpec(microbatches=m)) for m in range(64, 65_536, 64)]
    found, _ = fullest(model, WorkloadSpec(), Grid.of(several))
    assert len(set(np.diff(found).tolist())) == 1


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("family", ["gpt", "transformer"])
def test_of_many_backward_passes_that_follow_all_forward_each_has_one_gradient_at_a_time(
    family: FamilyName, name: ScheduleName
) -> None:
    model = ModelSpec(family=family, layers=16, hidden=64, heads=4, vocab=264, seq=32)
    grid = candidates(model, 8, 16)
    here = (grid.schedule == SCHEDULES.index(name)) & (grid.pp == 8) & (grid.microbatches == 16)
    assert here.any()
    assert_equal(model, MIXED, grid.take(here))


@pytest.mark.parametrize("schedule", [name for name, facts in SCHEDULE_FACTS.items() if facts.least_chunks > 1])
def test_of_an_encoders_block_that_a_message_holds_longer_than_its_chunk(schedule: str) -> None:
    model = ModelSpec(family="transformer", layers=12, hidden=64, heads=4, vocab=264, seq=32)
    for ranks, batch in ((4, 8), (12, 24)):
        grid = candidates(model, ranks, batch)
        here = (grid.schedule == SCHEDULES.index(schedule)) & (grid.recompute == RECOMPUTES.index("full"))
        few = np.flatnonzero(here & (grid.pp > 1) & (grid.microbatches * grid.pp * grid.chunks <= 64))
        assert_equal(model, MIXED, grid.take(few[:: max(1, len(few) // 8)]))
