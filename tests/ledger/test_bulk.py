"""Ledgers give the same results for many layouts at once as for each. tests/predict/test_bulk_memory.py has more layouts."""

from __future__ import annotations

import numpy as np

from engine.grid import Grid
from engine.ledger.keep import Ledgers
from engine.planner.candidates import candidates
from engine.planner.search import MIXED
from engine.predict.bulk.memory import fullest
from engine.predict.memory import memory
from engine.spec import ModelSpec, WorkloadSpec


def some_layouts() -> tuple[ModelSpec, WorkloadSpec, Grid]:
    """Of T5, which has an encoder and a decoder, with a padded vocabulary."""
    model = ModelSpec(family="t5", layers=12, hidden=64, heads=4, vocab=264, seq=32, vocab_multiple=96)
    grid = candidates(model, 8, 24)
    few = np.flatnonzero(grid.microbatches * grid.pp * grid.chunks <= 128)
    return model, MIXED, grid.take(np.random.default_rng(0).choice(few, 4, replace=False))


def test_of_ledgers_that_are_not_shipped_bulk_results_equal_those_of_each_layout(ledgers: Ledgers) -> None:
    model, workload, some = some_layouts()
    found, fullest_stages = fullest(model, workload, some, ledgers)
    for i in range(len(some)):
        peaks = [peak.total for peak in memory(some.spec(i, model, workload), ledgers=ledgers).peaks]
        assert (found[i], fullest_stages[i]) == (max(peaks), peaks.index(max(peaks)))
