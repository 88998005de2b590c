"""The planner's traffic of many layouts equals the traffic tables: that of the busiest rank, by axis."""

from __future__ import annotations

import pandas as pd

from engine.grid import Grid
from engine.ledger.store import NotRecordedError
from engine.predict.bulk.traffic import bulk_traffic
from engine.predict.traffic import traffic
from engine.spec import RunSpec
from engine.topology import CALL_AXES
from tests.predict.random_specs import are_shipped, random_specs


def busiest(spec: RunSpec) -> dict[str, float]:
    """The same from the table of all ranks."""
    table = traffic(spec)
    found: dict[str, float] = {}

    def put(name: str, rows: pd.DataFrame) -> None:
        sums = rows.groupby("rank")[["wire_bytes", "calls"]].sum()
        found[name] = float(sums["wire_bytes"].max()) if len(sums) else 0.0
        found[f"{name} calls"] = float(sums["calls"].max()) if len(sums) else 0.0

    for axis in CALL_AXES:
        put(axis, table[table["axis"] == axis])
    put("dp late", table[(table["axis"] == "dp") & table["phase"].isin(["step", "gather"])])
    return found


def test_traffic_of_many_layouts_equals_that_of_each() -> None:
    """For every family, with as many models as layouts. Bulk reads other ledgers, which are not shipped of every spec."""
    held = 0
    for spec in random_specs(60, seed=3):
        try:
            found = bulk_traffic(spec.model, spec.workload, Grid.of([spec]))
        except NotRecordedError:
            continue
        assert {name: numbers[0] for name, numbers in found.items()} == busiest(spec), spec
        held += 1
    assert held > 30


def test_one_model_in_many_layouts() -> None:
    """One call, as in the planner, with all kinds of pipelines in one grid."""
    few = [s for s in random_specs(200, seed=4) if s.workload.precision == "fp32"]
    model = few[0].model.model_copy(update={"family": "gpt", "layers": 48, "heads": 60, "hidden": 120, "ffn": 60, "seq": 60})
    loss_chunk = {"loss_chunk": 90}  # a microbatch of one sequence has fewer tokens
    every = [RunSpec(model=model, layout=s.layout, workload=s.workload.model_copy(update=loss_chunk)) for s in few]
    some = [spec for spec in every if spec.attention == "fused" and are_shipped(spec)]
    assert len(some) > 10
    found = bulk_traffic(model, some[0].workload, Grid.of(some))
    for i, spec in enumerate(some):
        assert {name: numbers[i] for name, numbers in found.items()} == busiest(spec), spec


def test_an_empty_grid_gives_empty_results() -> None:
    some = list(random_specs(1))
    found = bulk_traffic(some[0].model, some[0].workload, Grid.of(some).take(slice(0)))
    assert {len(numbers) for numbers in found.values()} == {0}
