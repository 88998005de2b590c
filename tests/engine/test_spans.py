"""Spans: the table tells what really happened, in the order in which it had to, on one clock that all ranks share."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pandas as pd
import pytest

from engine.schedule import compute_order
from engine.spec import RunSpec, ScheduleName
from engine.tables import RunResult
from tests.runs import Runs, buckets_held, small

SCHEDULES: tuple[ScheduleName, ...] = ("naive", "gpipe", "1f1b")
PIPELINES = [small("pp3", schedule, microbatches=4) for schedule in SCHEDULES]
ALL_AXES = small("dp2.tp2.pp2", microbatches=3, model={"vocab": 257})
EVERY = [*PIPELINES, ALL_AXES, small("dp2"), small("tp2", steps=1), small()]


def name(spec: RunSpec) -> str:
    return f"{spec.layout.code}-{spec.layout.schedule}-m{spec.workload.microbatches}"


def lane(result: RunResult, rank: int, which: str) -> pd.DataFrame:
    """One lane of one rank, by start."""
    rows = result.tables["spans"]
    return rows[(rows["rank"] == rank) & (rows["lane"] == which)].sort_values("start_ns", ignore_index=True)


def only(result: RunResult, rank: int, kind: str, microbatch: int, which: str = "compute") -> pd.Series:
    """The one span of that kind."""
    rows = lane(result, rank, which)
    found = rows[(rows["kind"] == kind) & (rows["microbatch"] == microbatch)]
    assert len(found) == 1, f"rank {rank}: {len(found)} spans of {kind}{microbatch}"
    return found.iloc[0]


def done(result: RunResult, rank: int) -> str:
    """What the rank's compute lane did, such as "F0 F1 B0 B1 step"."""
    rows = lane(result, rank, "compute")
    return " ".join(f"{kind}{m if m >= 0 else ''}" for kind, m in zip(rows["kind"], rows["microbatch"], strict=True))


# --------------------------------------------------------------------------------------------------------------- order


def test_the_lane_is_the_schedule_written_out(runs: Runs) -> None:
    """Two stages, three microbatches, by hand; and with data parallelism a reduction, with a tied embedding a tie."""
    expected: dict[ScheduleName, tuple[str, str]] = {
        "naive": ("F0 B0 F1 B1 F2 B2", "F0 B0 F1 B1 F2 B2"),
        "gpipe": ("F0 F1 F2 B0 B1 B2", "F0 F1 F2 B0 B1 B2"),
        "1f1b": ("F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"),
    }
    for schedule, (first, last) in expected.items():
        result = runs.result(small("dp2.pp2", schedule, microbatches=3))
        for rank, order in enumerate((first, first, last, last)):
            assert done(result, rank) == f"{order} reduce tie step", f"{schedule}: rank {rank}"


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_each_pass_once_in_the_schedules_order_and_none_at_the_same_time(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    layout = spec.layout
    orders = compute_order(layout.schedule, layout.pp, spec.workload.microbatches)
    for rank in range(layout.ranks):
        stage = rank // (layout.dp * layout.tp)
        rows = lane(result, rank, "compute")
        passes = rows[rows["kind"].isin(["F", "B"])]
        assert list(zip(passes["kind"], passes["microbatch"], strict=True)) == [(a.kind, a.microbatch) for a in orders[stage]]
        assert set(passes["chunk"]) == {stage}
        for before, after in pairwise(rows.itertuples()):
            assert before.end_ns <= after.start_ns


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_times_are_of_the_last_step_and_from_its_start(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    spans = result.tables["spans"]
    assert set(spans["step"]) == {spec.workload.steps}
    assert (spans["start_ns"] >= 0).all()
    assert (spans["end_ns"] >= spans["start_ns"]).all()
    reporting = (spec.layout.pp - 1) * spec.layout.dp * spec.layout.tp  # the rank whose clock the steps table has
    assert spans[spans["rank"] == reporting]["end_ns"].max() <= result.tables["steps"]["step_ns"].iloc[-1]
    compute = spans[spans["lane"] == "compute"]
    assert (compute["cpu_ns"] >= 0).all()
    # One thread cannot compute for longer than the wall clock ran; the two clocks may differ by a hair.
    assert (compute["cpu_ns"] <= (compute["end_ns"] - compute["start_ns"]) * 1.01 + 100_000).all()


# -------------------------------------------------------------------------------------------------------- across ranks


def transfer(result: RunResult, rank: int, kind: str, microbatch: int, flow: str) -> pd.Series:
    """The one send or recv of that flow. A rank in the middle has two of each kind, the activation's before the gradient's."""
    layout = result.spec.layout
    stage = rank // (layout.dp * layout.tp)
    before, after = stage > 0, stage < layout.pp - 1
    flows = [
        f
        for f, there in (("activation", after if kind == "send" else before), ("gradient", before if kind == "send" else after))
        if there
    ]
    rows = lane(result, rank, "comm")
    rows = rows[(rows["kind"] == kind) & (rows["microbatch"] == microbatch)]
    assert len(rows) == len(flows)
    return rows.iloc[flows.index(flow)]


@pytest.mark.parametrize("spec", [*PIPELINES, ALL_AXES], ids=name)
def test_a_stage_waits_for_the_one_it_depends_on(runs: Runs, spec: RunSpec) -> None:
    """Forward goes down the pipeline and backward up: each pass, its message on the way, and the pass that needs it."""
    result = runs.result(spec)
    width = spec.layout.dp * spec.layout.tp
    for upper in range(spec.layout.ranks - width):
        lower = upper + width
        for microbatch in range(spec.workload.microbatches):
            for giver, taker, kind, flow in ((upper, lower, "F", "activation"), (lower, upper, "B", "gradient")):
                made, used = only(result, giver, kind, microbatch), only(result, taker, kind, microbatch)
                sent = transfer(result, giver, "send", microbatch, flow)
                received = transfer(result, taker, "recv", microbatch, flow)
                assert made["end_ns"] <= sent["start_ns"] <= received["end_ns"] <= used["start_ns"]


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_the_bubble_is_the_idle_share_of_total_time(runs: Runs, spec: RunSpec) -> None:
    """1 − busy ÷ (stages × makespan) of F and B, the mean over all pipelines; not the share of the ideal time."""
    result = runs.result(spec)
    layout = spec.layout
    width = layout.dp * layout.tp
    shares = []
    for pipeline in range(width):
        spans = [
            (row.start_ns, row.end_ns)
            for rank in range(pipeline, layout.ranks, width)
            for row in lane(result, rank, "compute").itertuples()
            if row.kind in ("F", "B")
        ]
        busy = sum(end - start for start, end in spans)
        makespan = max(end for _, end in spans) - min(start for start, _ in spans)
        shares.append(1 - busy / (layout.pp * makespan))
    assert result.summary["bubble"] == pytest.approx(sum(shares) / width)
    assert 0 <= result.summary["bubble"] < 1


def test_one_microbatch_at_a_time_leaves_most_of_the_pipeline_idle(runs: Runs) -> None:
    """In naive order only one of three stages can work at any time, whatever the machine does."""
    assert runs.result(PIPELINES[0]).summary["bubble"] >= 2 / 3


# ------------------------------------------------------------------------------------------------------- the comm lane


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_every_call_that_was_counted_has_its_span(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    comm = result.tables["spans"].query("lane == 'comm'")
    shown = Counter(zip(comm["rank"], comm["kind"], strict=True))
    counted: Counter[tuple[int, str]] = Counter()
    for row in result.tables["traffic"].itertuples():
        counted[row.rank, row.collective] += row.calls
    assert shown == counted


def test_gradients_are_reduced_while_backward_still_runs(runs: Runs) -> None:
    """dp2: the layers' gradients set out one by one during the last backward, and never before it."""
    result = runs.result(small("dp2", microbatches=3))
    layers = result.spec.model.layers
    for rank in range(2):
        calls = lane(result, rank, "comm")
        calls = calls[calls["microbatch"] >= 0]  # the loss is reduced in the optimizer's step
        last, reduce = only(result, rank, "B", 2), only(result, rank, "reduce", -1)
        assert len(calls) == buckets_held(layers, first=True, last=True)
        assert calls["start_ns"].between(last["start_ns"], last["end_ns"]).all()
        # The last layer's set out before the first layer's backward was done.
        assert calls["start_ns"].iloc[0] < calls["start_ns"].iloc[-1] <= last["end_ns"]
        assert (calls["end_ns"] <= reduce["end_ns"]).all()
