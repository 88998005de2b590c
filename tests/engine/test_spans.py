"""Spans: the table has what ran, in the schedule's order, on one clock for all ranks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

from engine.schedule import compute_order
from engine.spec import RunSpec
from engine.tables import RunResult
from tests.runs import PLAIN, Runs, buckets_held, rows_of, small

PIPELINES = [small("pp3", schedule, microbatches=4) for schedule in PLAIN]
ALL_AXES = small("dp2.tp2.pp2", microbatches=3, model={"vocab": 257})
CHUNKED = [
    small("pp2", "interleaved", chunks=2, microbatches=4),
    small("pp2", "zb-v", chunks=2, microbatches=3),
]
EVERY = [*PIPELINES, ALL_AXES, *CHUNKED, small("dp2"), small("tp2", steps=1), small()]
WORK = ("F", "B", "I", "W")


def name(spec: RunSpec) -> str:
    return f"{spec.layout.code}-{spec.layout.schedule}-m{spec.workload.microbatches}"


def lane(result: RunResult, rank: int, which: str) -> list[SimpleNamespace]:
    """One lane of one rank, by start."""
    return sorted((s for s in rows_of(result, "spans") if (s.rank, s.lane) == (rank, which)), key=lambda s: s.start_ns)


def only(result: RunResult, rank: int, kind: str, microbatch: int) -> SimpleNamespace:
    """The one compute span of that kind."""
    found = [s for s in lane(result, rank, "compute") if (s.kind, s.microbatch) == (kind, microbatch)]
    assert len(found) == 1, f"rank {rank}: {len(found)} spans of {kind}{microbatch}"
    return found[0]


def done(result: RunResult, rank: int) -> str:
    """The actions in the rank's compute lane, such as "F0 F1 B0 B1 step"."""
    return " ".join(f"{s.kind}{s.microbatch if s.microbatch >= 0 else ''}" for s in lane(result, rank, "compute"))


# --------------------------------------------------------------------------------------------------------------- order


def test_the_compute_lane_has_the_actions_of_the_schedule(runs: Runs) -> None:
    """Two stages, three microbatches, by hand; and with data parallelism a reduction, with a tied embedding a tie."""
    first, last = "F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"
    result = runs.result(small("dp2.pp2", "1f1b", microbatches=3))
    for rank, order in enumerate((first, first, last, last)):
        assert done(result, rank) == f"{order} reduce tie step", f"rank {rank}"


def test_all_ranks_have_the_spans_of_one_step_of_median_time(runs: Runs) -> None:
    result = runs.result(small("tp2.pp2", steps=5))
    (step,) = set(result.tables["spans"]["step"])
    took = result.tables["steps"].set_index("step")["step_ns"]
    assert took[step] == took.median()


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_each_pass_runs_once_in_the_schedules_order_without_overlap(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    layout = spec.layout
    orders = compute_order(layout.schedule, layout.pp, spec.workload.microbatches, layout.chunks)
    for rank in range(layout.ranks):
        stage = rank // (layout.dp * layout.tp)
        spans = lane(result, rank, "compute")
        passes = [(s.kind, s.chunk, s.microbatch) for s in spans if s.kind in WORK]
        assert passes == [(a.kind, a.chunk, a.microbatch) for a in orders[stage]]
        assert all(before.end_ns <= after.start_ns for before, after in pairwise(spans))


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_times_are_of_one_step_and_from_its_start(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    spans = rows_of(result, "spans")
    (step,) = {s.step for s in spans}
    assert all(0 <= s.start_ns <= s.end_ns for s in spans)
    reporting = spec.layout.placement[-1] * spec.layout.dp * spec.layout.tp  # the rank whose times are in the steps table
    assert max(s.end_ns for s in spans if s.rank == reporting) <= result.tables["steps"]["step_ns"].iloc[step - 1]
    # One thread's CPU time is at most the wall time; the two clocks can differ slightly.
    assert all(0 <= s.cpu_ns <= (s.end_ns - s.start_ns) * 1.01 + 100_000 for s in spans if s.lane == "compute")


# -------------------------------------------------------------------------------------------------------- across ranks


def transfer(result: RunResult, rank: int, kind: str, microbatch: int, flow: str) -> SimpleNamespace:
    """The send or recv of that flow. A rank in the middle has two of each kind, first the activation's."""
    layout = result.spec.layout
    stage = rank // (layout.dp * layout.tp)
    above, below = stage > 0, stage < layout.pp - 1  # whether there is a stage on that side
    there = {"activation": below, "gradient": above} if kind == "send" else {"activation": above, "gradient": below}
    flows = [name for name in there if there[name]]
    found = [s for s in lane(result, rank, "comm") if (s.kind, s.microbatch) == (kind, microbatch)]
    assert len(found) == len(flows)
    return found[flows.index(flow)]


@pytest.mark.parametrize("spec", [*PIPELINES, ALL_AXES], ids=name)
def test_a_stage_waits_for_the_one_it_depends_on(runs: Runs, spec: RunSpec) -> None:
    """Forward and backward: a pass, then its message, then the pass on the next stage that needs it."""
    result = runs.result(spec)
    width = spec.layout.dp * spec.layout.tp
    for upper in range(spec.layout.ranks - width):
        lower = upper + width
        for microbatch in range(spec.workload.microbatches):
            for giver, taker, kind, flow in ((upper, lower, "F", "activation"), (lower, upper, "B", "gradient")):
                made, used = only(result, giver, kind, microbatch), only(result, taker, kind, microbatch)
                sent = transfer(result, giver, "send", microbatch, flow)
                received = transfer(result, taker, "recv", microbatch, flow)
                assert made.end_ns <= sent.start_ns <= received.end_ns <= used.start_ns


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_the_bubble_is_the_idle_share_of_total_time(runs: Runs, spec: RunSpec) -> None:
    """1 − busy ÷ (stages × makespan) of the passes, the mean over all pipelines; not the share of the ideal time."""
    result = runs.result(spec)
    layout = spec.layout
    width = layout.dp * layout.tp
    shares = []
    for pipeline in range(width):
        ranks = range(pipeline, layout.ranks, width)
        spans = [s for rank in ranks for s in lane(result, rank, "compute") if s.kind in WORK]
        busy = sum(s.end_ns - s.start_ns for s in spans)
        makespan = max(s.end_ns for s in spans) - min(s.start_ns for s in spans)
        shares.append(1 - busy / (layout.pp * makespan))
    assert result.summary["bubble"] == pytest.approx(sum(shares) / width)
    assert 0 <= result.summary["bubble"] < 1


def test_the_naive_schedule_leaves_most_of_the_pipeline_idle(runs: Runs) -> None:
    """In naive order only one of three stages can work at any time, on any machine."""
    assert runs.result(PIPELINES[0]).summary["bubble"] >= 2 / 3


# ------------------------------------------------------------------------------------------------------- the comm lane


@pytest.mark.parametrize("spec", EVERY, ids=name)
def test_every_counted_call_has_a_span(runs: Runs, spec: RunSpec) -> None:
    result = runs.result(spec)
    shown = Counter((s.rank, s.kind) for s in rows_of(result, "spans") if s.lane == "comm")
    counted: Counter[tuple[int, str]] = Counter()
    for row in rows_of(result, "traffic"):
        counted[row.rank, row.collective] += row.calls
    assert shown == counted


def test_gradients_are_reduced_while_backward_still_runs(runs: Runs) -> None:
    """dp2: reductions of the layers start one by one during the last backward, and never before it."""
    result = runs.result(small("dp2", microbatches=3))
    for rank in range(2):
        calls = [s for s in lane(result, rank, "comm") if s.microbatch >= 0]  # the loss is reduced in the optimizer's step
        assert len(calls) == buckets_held(result.spec.model.layers, first=True, last=True)
        last, reduce = only(result, rank, "B", 2), only(result, rank, "reduce", -1)
        assert all(last.start_ns < call.start_ns < last.end_ns for call in calls)
        assert all(call.end_ns <= reduce.end_ns for call in calls)
        # That of the last layer starts before the backward of the first layer ends.
        assert calls[0].start_ns < calls[-1].start_ns
