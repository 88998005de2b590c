"""Memory: every byte has a category, categories add up to the allocator's total, and each has the expected size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from engine.measure.memory import ActionTime, AllocatorEvent, Events, attribute
from engine.schedule import compute_order
from engine.spec import LayoutSpec, RunSpec, ScheduleName
from engine.tables import CATEGORIES, RunResult
from tests.runs import PLAIN, SMALL, Runs, buckets_held, parameters_held, rows_of, small

FLOAT = 4  # bytes of an fp32 number
ALL_AXES = small("dp2.tp2.pp2", microbatches=3, model={"vocab": 257})
LAYOUTS = (
    small(),
    small("tp4", model={"vocab": 257}),
    small("dp4", "gpipe"),
    small("pp3", "gpipe", microbatches=3, split=(0, 5, 0)),
    small("pp4", microbatches=5),
    ALL_AXES,
)


Composition = dict[str, int]  # category → bytes


@dataclass(frozen=True)
class Point:
    """One instant of the curve."""

    t_ns: int
    action: str
    bytes: Composition

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


def peaks(result: RunResult) -> dict[int, Composition]:
    """rank → the composition at its peak."""
    found: dict[int, Composition] = {}
    for row in rows_of(result, "memory_peak"):
        found.setdefault(row.rank, {})[row.category] = row.bytes
    return found


def curve(result: RunResult, rank: int) -> list[Point]:
    """The composition over one step, in order of time."""
    points: dict[int, Point] = {}
    for row in rows_of(result, "memory_curve"):
        if row.rank == rank:
            points.setdefault(row.t_ns, Point(row.t_ns, row.action, {})).bytes[row.category] = row.bytes
    return [points[t] for t in sorted(points)]


def start_of(points: list[Point], action: str) -> Composition:
    """The composition at the start of an action: its first point."""
    return next(point.bytes for point in points if point.action == action)


@pytest.mark.parametrize("spec", LAYOUTS, ids=lambda spec: f"{spec.layout.code}-{spec.layout.schedule}")
class TestEveryLayout:
    def test_categories_and_kernel_workspaces_add_up_to_the_allocators_total(self, runs: Runs, spec: RunSpec) -> None:
        result = runs.result(spec)
        totals = {rank: sum(composition.values()) for rank, composition in peaks(result).items()}
        assert [entry["rank"] for entry in result.summary["allocator"]] == list(totals)
        for entry in result.summary["allocator"]:
            assert totals[entry["rank"]] + entry["workspace_bytes"] == entry["peak_bytes"]
            assert entry["unaccounted_bytes"] == 0
        assert result.summary["peak_bytes"] == max(totals.values())
        assert totals[result.summary["peak_rank"]] == max(totals.values())

    def test_memory_between_steps_is_what_the_rank_should_hold(self, runs: Runs, spec: RunSpec) -> None:
        layout, mesh = spec.layout, spec.layout.mesh
        table = peaks(runs.result(spec))
        for rank in range(layout.ranks):
            stage = mesh.coordinate(rank).pp
            first, last, layers = stage == 0, stage == layout.pp - 1, layout.stage_layers(spec.model.layers)[stage]
            weights = parameters_held(spec.model, layout.tp, layers, first, last) * FLOAT
            counters = buckets_held(layers, first, last) * FLOAT  # AdamW counts its steps, one number a bucket
            assert table[rank]["parameters"] == weights
            assert table[rank]["gradients"] == weights
            assert table[rank]["optimizer"] == 2 * weights + counters

    def test_ranks_of_one_stage_have_the_same_memory(self, runs: Runs, spec: RunSpec) -> None:
        result = runs.result(spec)
        for stage in range(spec.layout.pp):
            compositions = [
                bytes_ for rank, bytes_ in peaks(result).items() if rank // (spec.layout.dp * spec.layout.tp) == stage
            ]
            assert compositions == compositions[:1] * (spec.layout.dp * spec.layout.tp)

    def test_the_curve_reaches_the_peak_and_returns_to_the_memory_between_steps(self, runs: Runs, spec: RunSpec) -> None:
        result = runs.result(spec)
        for entry in result.summary["allocator"]:
            points = curve(result, entry["rank"])
            top = max(points, key=lambda point: point.total)
            assert top.total == entry["peak_bytes"] - entry["workspace_bytes"]
            assert top.bytes == peaks(result)[entry["rank"]]
            for end in (points[0], points[-1]):
                assert end.total == entry["start_bytes"]
                assert end.bytes["activations"] == end.bytes["communication"] == 0
                assert end.bytes["temporary"] == 2 * FLOAT  # the loss and the norm of the gradients, which are kept
            assert points[0].t_ns == 0
            assert all(set(point.bytes) == set(CATEGORIES) for point in points)
            assert all(min(point.bytes.values()) >= 0 for point in points)


@pytest.mark.parametrize("schedule", PLAIN)
def test_activations_are_those_of_the_microbatches_in_flight(runs: Runs, schedule: ScheduleName) -> None:
    """On every stage, at the start of every backward. A run of one microbatch gives the cost of one."""
    stages, microbatches = 3, 5
    one = runs.result(small("pp3", microbatches=1))  # is the same in any schedule
    many = runs.result(small("pp3", schedule, microbatches=microbatches))
    most = []
    for stage, order in enumerate(compute_order(schedule, stages, microbatches)):
        cost = start_of(curve(one, stage), f"B chunk {stage} microbatch 0")["activations"]
        points = curve(many, stage)
        in_flight = highest = 0
        for action in order:
            if action.kind == "B":
                assert start_of(points, str(action))["activations"] == in_flight * cost, f"stage {stage}: {action}"
            in_flight += 1 if action.kind == "F" else -1
            highest = max(highest, in_flight)
        most.append(highest)
        assert max(point.bytes["activations"] for point in points) == highest * cost
    assert most == {"naive": [1, 1, 1], "gpipe": [5, 5, 5], "1f1b": [3, 2, 1]}[schedule]


def test_1f1b_differs_from_gpipe_only_in_activations(runs: Runs) -> None:
    gpipe, alternating = (peaks(runs.result(small("pp3", name, microbatches=5))) for name in PLAIN if name != "naive")
    for rank, bytes_ in alternating.items():
        for category in ("parameters", "gradients", "optimizer"):
            assert bytes_[category] == gpipe[rank][category]
        assert bytes_["activations"] < gpipe[rank]["activations"]


@pytest.mark.parametrize("attention", ["fused", "written"])
@pytest.mark.parametrize("tp", [1, 4])
def test_activations_of_one_layer(runs: Runs, tp: int, attention: str) -> None:
    """What one layer saves for backward, computed by hand: the difference between two stages that differ by one layer."""
    kept = []
    for split in ((2, 3), (3, 2)):
        points = curve(runs.result(small(f"tp{tp}.pp2", microbatches=1, split=split, attention=attention)), 0)
        kept.append(start_of(points, "B chunk 0 microbatch 0")["activations"])
    s, h, f, heads = SMALL.seq, SMALL.hidden, SMALL.ffn_width, SMALL.heads
    whole = 4 * s * h + 2 * 2 * s  # inputs and outputs of the two norms, with each token's mean and deviation
    scores, others = heads * s * s, 3 * s * h + s * h + 2 * s * f  # the softmax; q, k, v, the mixed values, the MLP around GELU
    if attention == "fused":
        scores = heads * s  # in place of the softmax, the logarithm of each row's sum of exponentials
    # Written attention keeps a byte for each pair of tokens, the mask, and the factor 1/√D, which autograd keeps as a double.
    mask, scale = (s * s, 8) if attention == "written" else (0, 0)
    assert kept[1] - kept[0] == (whole + (scores + others) // tp) * FLOAT + mask + scale


def test_a_received_activation_is_an_activation_and_a_gradient_in_transfer_is_communication(runs: Runs) -> None:
    points = curve(runs.result(small("pp3", microbatches=1)), 1)
    message = SMALL.seq * SMALL.hidden * FLOAT
    before_forward = start_of(points, "F chunk 1 microbatch 0")
    assert (before_forward["activations"], before_forward["communication"]) == (message, 0)
    before_backward = start_of(points, "B chunk 1 microbatch 0")
    assert before_backward["communication"] == 2 * message  # the output that was sent, and the gradient that was received


def test_the_same_spec_gives_the_same_memory(runs: Runs) -> None:
    first, second = runs.result(ALL_AXES), runs.fresh(ALL_AXES)
    pd.testing.assert_frame_equal(first.tables["memory_peak"], second.tables["memory_peak"])
    timeless = [result.tables["memory_curve"].drop(columns="t_ns") for result in (first, second)]
    pd.testing.assert_frame_equal(timeless[0], timeless[1])
    assert first.summary["allocator"] == second.summary["allocator"]


def test_a_single_step_is_enough(runs: Runs) -> None:
    """The optimizer's states exist in the traced step, even after only one step."""
    one, two = runs.result(small("tp2", steps=1)), runs.result(small("tp2", steps=2))
    pd.testing.assert_frame_equal(one.tables["memory_peak"], two.tables["memory_peak"])


def test_the_process_is_larger_than_its_tensors(runs: Runs) -> None:
    result = runs.result(ALL_AXES)
    process = result.tables["process"].set_index("rank")
    assert (process["peak_rss_bytes"] >= process["rss_bytes"]).all()
    assert (process["rss_bytes"] >= process["uss_bytes"]).all()
    assert all(process["peak_rss_bytes"][rank] > sum(bytes_.values()) for rank, bytes_ in peaks(result).items())


def test_memory_is_the_same_under_another_instruction_set(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's workspace for a bf16 product differs, but the tables do not."""
    case = small("dp2", precision="bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    with Runs(tmp_path) as plain:
        pd.testing.assert_frame_equal(plain.result(case).tables["memory_peak"], runs.result(case).tables["memory_peak"])


def test_memory_allocated_and_freed_within_one_operation_is_workspace_without_a_category() -> None:
    step = ActionTime(0, 100, "forward", "F", "F chunk 0 microbatch 0")
    product, scratch, later = 1, 2, 3
    memory = [
        AllocatorEvent(10, product, 300, operation=0),
        AllocatorEvent(11, scratch, 500, operation=0),
        AllocatorEvent(12, scratch, -500, operation=0),
        AllocatorEvent(20, later, 400, operation=1),  # the result of another operation
        AllocatorEvent(30, later, -400),
    ]
    trace = attribute(Events([step], [], memory), {}, {}, after=300)
    assert max(sum(composition.values()) for _, _, composition in trace.curve()) == 700
    assert (trace.peak_total, trace.workspace, trace.unaccounted) == (800, 100, 0)


def test_layout_of_the_tests_is_not_trivial() -> None:
    """The specs above include stages without a layer, stages of different sizes, and a vocabulary that needs padding."""
    assert LayoutSpec(pp=4).stage_layers(SMALL.layers) == (2, 1, 1, 1)
    assert any(0 in spec.layout.split for spec in LAYOUTS)
    assert any(spec.model.vocab % spec.layout.tp for spec in LAYOUTS)
