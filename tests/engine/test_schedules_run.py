"""Real runs of the schedules with several chunks on a stage, or with backward split: exact whatever they are combined with."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from engine.measure.parity import PARITY_LIMIT
from engine.schedule import Action, in_flight, plan
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from tests.runs import Runs

MODEL = ModelSpec(layers=4, hidden=32, heads=4, vocab=257, seq=16)  # tp does not divide the vocabulary
CHUNKS = {"interleaved": 2, "zb-h1": 1, "zb-v": 2, "dualpipe-v": 2}
PARITY_LIMIT_BF16 = 2e-2
LEVERS = ("dp", "schedule", "zero", "shape", "recompute")
SHAPES = ("flat", "tp", "sp")  # tp of 1; tp of 2; the same with sequence parallelism

# Every pair of choices of any two levers is in one of these, but what cannot be: sharding over dp where dp is 1.
CASES = [
    (1, "interleaved", 0, "flat", "none"),
    (2, "interleaved", 1, "tp", "full"),
    (2, "interleaved", 2, "sp", "selective"),
    (2, "interleaved", 3, "flat", "full"),
    (1, "zb-h1", 0, "tp", "selective"),
    (2, "zb-h1", 1, "flat", "none"),
    (2, "zb-h1", 2, "tp", "full"),
    (2, "zb-h1", 3, "sp", "none"),
    (1, "zb-v", 0, "sp", "full"),
    (2, "zb-v", 1, "sp", "selective"),
    (2, "zb-v", 2, "flat", "none"),
    (2, "zb-v", 3, "tp", "selective"),
    (2, "dualpipe-v", 0, "flat", "selective"),
    (1, "dualpipe-v", 0, "sp", "none"),
    (2, "dualpipe-v", 1, "sp", "full"),
    (2, "dualpipe-v", 2, "tp", "none"),
    (2, "dualpipe-v", 3, "flat", "full"),
]


def spec(dp: int, schedule: str, zero: int, shape: str, recompute: str, pp: int = 2, layers: int = 4, **workload: Any) -> RunSpec:
    layout: dict[str, Any] = {"dp": dp, "tp": 1 if shape == "flat" else 2, "pp": pp, "schedule": schedule}
    layout |= {"chunks": CHUNKS.get(schedule, 1), "zero": zero, "sequence_parallel": shape == "sp", "recompute": recompute}
    settings = {"steps": 2, "microbatches": 5 if schedule.startswith("zb") else 4, "microbatch_size": 1, "time_limit": 60.0}
    model = MODEL.model_copy(update={"layers": layers})
    return RunSpec(model=model, layout=LayoutSpec(**layout), workload=WorkloadSpec(**settings | workload), parity=True)


def test_the_cases_cover_every_pair_of_choices() -> None:
    choices: dict[str, tuple[Any, ...]] = {"dp": (1, 2), "schedule": tuple(CHUNKS), "zero": (0, 1, 2, 3), "shape": SHAPES}
    choices["recompute"] = ("none", "selective", "full")
    for one, other in combinations(range(len(LEVERS)), 2):
        covered = {(case[one], case[other]) for case in CASES}
        wanted = {(a, b) for a in choices[LEVERS[one]] for b in choices[LEVERS[other]]}
        impossible = {(1, zero) for zero in (1, 2, 3)} if (LEVERS[one], LEVERS[other]) == ("dp", "zero") else set()
        assert wanted - covered == impossible, (LEVERS[one], LEVERS[other])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_run_equals_the_unsharded_model_and_keeps_to_its_plan(runs: Runs, case: tuple[int, str, int, str, str]) -> None:
    request = spec(*case)
    result = runs.result(request)
    assert result.summary["parity_max_rel"] <= PARITY_LIMIT
    assert result.summary["loss_max_abs"] <= PARITY_LIMIT
    layout, schedule = request.layout, plan(request.layout, request.workload.microbatches)
    compute = result.tables["spans"].query("lane == 'compute'").sort_values("start_ns")
    peaks: dict[int, set[int]] = {}
    totals = result.tables["memory_peak"].groupby("rank")["bytes"].sum()
    for rank in range(layout.ranks):
        stage, lane = rank // (layout.dp * layout.tp), compute[compute["rank"] == rank]
        ran = [Action(kind, chunk, m) for kind, chunk, m in zip(lane["kind"], lane["chunk"], lane["microbatch"], strict=True)]
        assert ran == [a for a in schedule.stages[stage] if a.kind not in ("send", "recv")]
        kept = lane["kind"].map({"F": 1, "B": -1, "W": -1}).fillna(0).cumsum().max()
        assert kept == in_flight(schedule, stage)
        peaks.setdefault(stage, set()).add(totals[rank])
    assert all(len(peak) == 1 for peak in peaks.values()), f"the ranks of a stage measure the same: {peaks}"


@pytest.mark.parametrize("schedule", CHUNKS)
def test_one_stage_alone_may_run_any_schedule(runs: Runs, schedule: str) -> None:
    """Its first chunk may be its last as well, whose token table then has two gradients in one backward pass."""
    result = runs.result(spec(2, schedule, 3, "flat", "none", pp=1))
    assert result.summary["parity_max_rel"] <= PARITY_LIMIT


LOW_PRECISION = [(2, "zb-h1", 2, "sp", "selective"), (2, "zb-v", 0, "flat", "full"), (1, "interleaved", 0, "tp", "none")]


@pytest.mark.parametrize("case", LOW_PRECISION, ids=lambda case: "-".join(map(str, case)))
def test_bf16_too(runs: Runs, case: tuple[int, str, int, str, str]) -> None:
    result = runs.result(spec(*case, precision="bf16"))
    assert result.summary["parity_max_rel"] <= PARITY_LIMIT_BF16


def test_interleaved_rounds_may_be_longer_than_the_pipeline(runs: Runs) -> None:
    """Three stages, eight microbatches: two rounds of four, for which one message held back would not do."""
    request = spec(1, "interleaved", 0, "flat", "none", pp=3, layers=6, microbatches=8)
    assert plan(request.layout, 8).held == 2
    assert runs.result(request).summary["parity_max_rel"] <= PARITY_LIMIT


def test_the_norm_of_the_gradients_counts_the_table_once_wherever_its_copies_are(runs: Runs) -> None:
    """On both ends of the pipeline, or both on one rank; and both copies learn alike, or the second step would differ."""
    norms = {
        schedule: runs.result(spec(1, schedule, 0, "flat", "none", microbatches=4)).tables["steps"]["grad_norm"].tolist()
        for schedule in ("1f1b", *CHUNKS)
    }
    for schedule, norm in norms.items():
        assert norm == pytest.approx(norms["1f1b"], rel=1e-5), schedule


def test_what_w_waits_with_counts_as_activations(runs: Runs) -> None:
    """The last stage of ZB-H1 puts one W off, and meanwhile keeps what it needs; 1F1B's keeps one microbatch."""

    def activations(schedule: str) -> int:
        table = runs.result(spec(1, schedule, 0, "flat", "none", microbatches=4)).tables["memory_curve"]
        return int(table[(table["rank"] == 1) & (table["category"] == "activations")]["bytes"].max())

    h, f = MODEL.hidden, MODEL.ffn_width
    inputs, outputs = h + h + h + f, 3 * h + h + f + h  # of qkv, the attention's output, and the two of the MLP
    held_for_w = 4 * MODEL.seq * 2 * (inputs + outputs)  # in fp32, for one sequence through the stage's two layers
    assert activations("zb-h1") >= activations("1f1b") + held_for_w
