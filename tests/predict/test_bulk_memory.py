"""Memory of very many layouts at once is that of each one by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import catalog
from engine.predict.bulk.instants import instants
from engine.predict.bulk.memory import fullest
from engine.predict.grid import Grid
from engine.predict.memory import memory
from engine.predict.planner.candidates import candidates
from engine.predict.planner.search import MIXED
from engine.predict.symbolic import letter, values
from engine.schedule import SCHEDULES
from engine.spec import ModelSpec, RunSpec, WorkloadSpec
from tests.predict.random_specs import random_specs


def apart(spec: RunSpec, found: int, stage: int) -> float:
    """By how much of it the bytes found differ from the fullest stage's; and that stage is as full as any."""
    peaks = [peak.total for peak in memory(spec).peaks]
    assert peaks[stage] >= 0.95 * max(peaks), (spec.layout, stage)
    return abs(found / max(peaks) - 1)


def test_of_random_layouts_of_every_family_and_schedule() -> None:
    errors = []
    for spec in random_specs(40, seed=11):
        found, stage = fullest(spec.model, spec.workload, Grid.of([spec]))
        errors.append(apart(spec, int(found[0]), int(stage[0])))
    assert np.median(errors) == 0
    assert np.mean(np.array(errors) <= 0.005) >= 0.97
    assert max(errors) <= 0.05


@pytest.mark.parametrize(
    ("model", "ranks", "batch", "workload", "most"),
    [
        (catalog.model("gpt3-13b"), 32, 64, MIXED, 0.005),
        (catalog.model("llama3-8b"), 16, 32, WorkloadSpec(precision="bf16", accumulate="bf16", optimizer="sgd"), 0.005),
        (ModelSpec(family="transformer", layers=12, hidden=64, heads=4, vocab=264, seq=32), 8, 24, WorkloadSpec(), 0.05),
    ],
    ids=["gpt", "llama", "transformer"],
)
def test_of_layouts_as_the_planner_weighs_them(
    model: ModelSpec, ranks: int, batch: int, workload: WorkloadSpec, most: float
) -> None:
    """What is off in an encoder and decoder is ZB-H1 with ZeRO 2 and 3, whose overlapping passes are told by the usual state."""
    grid = candidates(model, ranks, batch)
    few = np.flatnonzero(grid.microbatches * grid.pp * grid.chunks <= 256)
    grid = grid.take(np.random.default_rng(0).choice(few, 10, replace=False))
    found, stages = fullest(model, workload, grid)
    errors = [apart(grid.spec(i, model, workload), int(found[i]), int(stages[i])) for i in range(len(grid))]
    assert np.mean(np.array(errors) <= 0.005) >= 0.9
    assert max(errors) <= most


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "gpipe"])
@pytest.mark.parametrize("pp", [2, 3, 8])
def test_more_microbatches_than_fill_the_pipeline_bring_no_higher_instant(name: Any, pp: int) -> None:
    """Beyond the number that is looked at, nothing new is found; of GPipe, which holds all of them, the rows grow with them."""
    chunks = {"interleaved": 3, "zb-v": 2, "dualpipe-v": 2}.get(name, 1)
    enough = {"naive": 3, "1f1b": pp + 2, "interleaved": 3 * pp, "zb-h1": 2 * pp + 2}.get(name, 4 * pp)
    for one, more in zip(*(instants(name, pp, m, chunks, 24, 0, True) for m in (enough, enough + 3 * pp)), strict=True):
        assert {row.tobytes() for row in one.rows} == {row.tobytes() for row in more.rows}


def test_gpipe_counts_alike_actions_at_once() -> None:
    by_hand = ModelSpec(layers=4, hidden=32, heads=4, vocab=264, seq=16)
    for m in (4, 5, 9, 40):
        grid = candidates(by_hand, 2, m)
        grid = grid.take((grid.schedule == SCHEDULES.index("gpipe")) & (grid.microbatches == m))
        found, stages = fullest(by_hand, MIXED, grid)
        for i in range(len(grid)):
            assert apart(grid.spec(i, by_hand, MIXED), int(found[i]), int(stages[i])) == 0


def test_sizes_with_letters_are_what_numbers_give() -> None:
    tp, b = letter("tp"), letter("B")
    for size, by_hand in (
        (2 * (96 // tp) * b, lambda tp, b: 2 * (96 // tp) * b),
        (-(-50257 // tp) * 3, lambda tp, b: -(-50257 // tp) * 3),
        (-(-(b * 7 + 5 + 12 // tp) // tp) * tp, lambda tp, b: -(-(b * 7 + 5 + 12 // tp) // tp) * tp),
    ):
        known = {"tp": np.array([1, 2, 4, 5]), "B": np.array([1, 3, 2, 7])}
        expected = by_hand(known["tp"], known["B"])  # type: ignore[no-untyped-call]
        assert (size.coefficient * values([size.atoms], known)[0]).tolist() == expected.tolist()
