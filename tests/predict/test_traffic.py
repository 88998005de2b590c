"""Traffic predicted equals traffic measured, to the byte and to the call, row by row; and its terms add up to it."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest

from engine.predict.traffic import terms, traffic
from engine.schedule import compute_order
from engine.schedule.orders import reductions
from engine.spec import SCHEDULE_FACTS, LayoutSpec, RunSpec, ScheduleName
from engine.tables import SCHEMAS
from engine.terms import total
from tests.covering import covering
from tests.engine import test_generation, test_levers, test_schedules_run
from tests.predict.random_specs import random_specs
from tests.runs import Runs, small

COLUMNS = ["rank", "axis", "collective", "phase", "group", "calls", "payload_bytes", "wire_bytes"]

# Runs of other tests that test_agreement.py does not have.
RUNS: dict[str, RunSpec] = {
    "long rounds": test_schedules_run.alone("interleaved", 8, chunks=2, pp=3, layers=6),
    "all axes": small("dp2.tp2.pp2", microbatches=3, model={"vocab": 257}),
    "alone": small(),
}
RUNS |= {f"zero-{zero} over four": test_levers.lever("dp4", zero=zero) for zero in range(4)}
RUNS |= {
    f"generating {family} {layout}": test_generation.spec(family, test_generation.LAYOUTS[layout], trained=trained)
    for family, layout, trained in [("llama", "tp2.pp2", False), ("gpt", "zero3", True)]
}


def sorted_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table[COLUMNS].sort_values(COLUMNS, ignore_index=True)


@pytest.mark.parametrize("name", RUNS)
def test_the_formula_equals_the_counted_traffic(runs: Runs, name: str) -> None:
    spec = RUNS[name]
    predicted = traffic(spec)
    assert set(predicted["source"]) <= {"formula"}
    pd.testing.assert_frame_equal(sorted_rows(predicted), sorted_rows(runs.result(spec).tables["traffic"]))


@pytest.mark.usefixtures("recorded_ledgers")
def test_terms_add_up_to_the_table() -> None:
    """On every rank: each (axis, collective, phase) of the table has terms, whose sum is its payload; and no other has."""
    for spec in [*RUNS.values(), *covering(), *random_specs(30, seed=1)]:
        table = traffic(spec)
        for rank in {0, spec.layout.ranks // 2, spec.layout.ranks - 1}:
            rows = table[table["rank"] == rank].groupby(["axis", "collective", "phase"])["payload_bytes"].sum()
            assert {key: total(sums) for key, sums in terms(spec, rank).items()} == rows.to_dict(), spec


def test_all_ranks_of_a_group_make_the_same_calls() -> None:
    """All ranks of a group make the same collectives with the same bytes, and each send has a receive."""
    for spec in random_specs(60, seed=2, most=4):
        table = traffic(spec)
        assert dict(table.dtypes.astype(str)) == {name: str(pd.Series(dtype=t).dtype) for name, t in SCHEMAS["traffic"].items()}
        assert not table.duplicated(["rank", "axis", "collective", "phase", "group"]).any(), spec
        ranks = table["group"].str.split(",").explode().astype(int)
        assert set(ranks.index[ranks == table["rank"].loc[ranks.index]]) == set(table.index), f"not in its own group: {spec}"
        sizes = table["group"].str.count(",") + 1
        transfer = table["collective"].isin(["send", "recv"])
        together = table[~transfer].groupby(["axis", "collective", "phase", "group"])
        assert (together["rank"].transform("count") == sizes[~transfer]).all(), spec
        assert (together[["calls", "payload_bytes", "wire_bytes"]].nunique() == 1).all(axis=None), spec
        both = table[transfer].pivot_table(["calls", "payload_bytes"], ["phase", "group"], "collective", "sum")
        for column in ("calls", "payload_bytes") if len(both) else ():
            assert (both[column, "send"] == both[column, "recv"]).all(), spec


@pytest.mark.parametrize("name", ["1f1b", *(name for name, facts in SCHEDULE_FACTS.items() if facts.splits)])
def test_overlapping_passes_are_reduced_together(name: ScheduleName) -> None:
    """A layer is reduced when no I of its chunk waits for its W: counted in the order of the schedule's actions."""
    for pp in range(1, 8):
        placement = LayoutSpec(pp=pp, schedule=name, chunks=SCHEDULE_FACTS[name].least_chunks).placement
        for m in (m for m in range(1, 4 * pp + 2) if SCHEDULE_FACTS[name].fits_microbatches(pp, m)):
            for stage, order in enumerate(compute_order(name, pp, m)):
                waiting, reduced = Counter[int](), Counter[int]()
                for action in order:
                    waiting[action.chunk] += {"I": 1, "W": -1}.get(action.kind, 0)
                    reduced[action.chunk] += action.kind in ("B", "W") and not waiting[action.chunk]
                for chunk in (c for c, where in enumerate(placement) if where == stage):
                    assert reductions(name, pp, m, stage, chunk // pp) == reduced[chunk], (pp, m, chunk)
