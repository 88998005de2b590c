"""Real runs execute their schedule's lists of actions, in every combination."""

from __future__ import annotations

import pytest

from engine.measure.parity import PARITY_LIMIT
from engine.schedule import Action, in_flight, plan
from engine.spec import LayoutSpec, ModelSpec, RunSpec, ScheduleName, WorkloadSpec
from tests.covering import covering, title
from tests.runs import Runs

MODEL = ModelSpec(layers=4, hidden=32, heads=4, vocab=257, seq=16)


def alone(schedule: ScheduleName, microbatches: int, chunks: int = 1, pp: int = 2, layers: int = 4) -> RunSpec:
    """A run with pp only."""
    workload = WorkloadSpec(steps=2, microbatches=microbatches, microbatch_size=1)
    layout = LayoutSpec(pp=pp, schedule=schedule, chunks=chunks)
    return RunSpec(model=MODEL.model_copy(update={"layers": layers}), layout=layout, workload=workload, parity=True)


@pytest.mark.parametrize("spec", covering(), ids=title)
def test_a_run_executes_its_schedule(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    layout, schedule = spec.layout, plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
    compute = result.tables["spans"].query("lane == 'compute'").sort_values("start_ns")
    for rank in range(layout.ranks):
        stage, lane = rank // (layout.dp * layout.tp), compute[compute["rank"] == rank]
        ran = [Action(kind, chunk, m) for kind, chunk, m in zip(lane["kind"], lane["chunk"], lane["microbatch"], strict=True)]
        assert ran == [a for a in schedule.stages[stage] if a.kind not in ("send", "recv")]
        kept = lane["kind"].map({"F": 1, "B": -1, "W": -1}).fillna(0).cumsum().max()
        assert kept == in_flight(schedule, stage)


def test_interleaved_rounds_may_be_longer_than_the_pipeline(runs: Runs) -> None:
    """Three stages, eight microbatches: two rounds of four, which need more than one send in progress."""
    request = alone("interleaved", 8, chunks=2, pp=3, layers=6)
    assert plan(request.layout, 8).held == 2
    assert runs.result(request).summary["parity_max_rel"] <= PARITY_LIMIT


def test_what_a_deferred_w_keeps_counts_as_activations(runs: Runs) -> None:
    """The last stage of ZB-H1 defers one W and keeps its inputs until then. That of 1F1B keeps one microbatch."""

    def activations(schedule: ScheduleName) -> int:
        table = runs.result(alone(schedule, 4)).tables["memory_curve"]
        return int(table[(table["rank"] == 1) & (table["category"] == "activations")]["bytes"].max())

    h, f = MODEL.hidden, MODEL.ffn_width
    inputs, outputs = h + h + h + f, 3 * h + h + f + h  # of qkv, the attention's output, and the two of the MLP
    held_for_w = 4 * MODEL.seq * 2 * (inputs + outputs)  # in fp32, for one sequence through the stage's two layers
    assert activations("zb-h1") >= activations("1f1b") + held_for_w
