"""Memory: every byte has a category, the categories add up to the allocator's total, and each is as large as it must be."""

from __future__ import annotations

import pandas as pd
import pytest

from engine.schedule import compute_order
from engine.spec import LayoutSpec, RunSpec, ScheduleName
from engine.tables import CATEGORIES, RunResult
from engine.topology import Mesh
from tests.runs import SMALL, Runs, buckets_held, parameters_held, small

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


def peaks(result: RunResult) -> pd.DataFrame:
    """rank × category → bytes, at the rank's peak."""
    return result.tables["memory_peak"].pivot(index="rank", columns="category", values="bytes")


def curve(result: RunResult, rank: int) -> pd.DataFrame:
    """One row an instant, in order: t_ns, action, a column for each category, total."""
    rows = result.tables["memory_curve"]
    wide = rows[rows["rank"] == rank].pivot(index=["t_ns", "action"], columns="category", values="bytes")
    wide = wide.reset_index().sort_values("t_ns", ignore_index=True)
    return wide.assign(total=wide[list(CATEGORIES)].sum(axis=1))


def start_of(points: pd.DataFrame, action: str) -> pd.Series:
    """The composition at the start of an action: its first point."""
    return points[points["action"] == action].iloc[0]


@pytest.mark.parametrize("spec", LAYOUTS, ids=lambda spec: f"{spec.layout.code}-{spec.layout.schedule}")
class TestEveryLayout:
    def test_categories_sum_to_the_allocators_total(self, runs: Runs, spec: RunSpec) -> None:
        result = runs.result(spec)
        totals = peaks(result).sum(axis=1)
        assert [entry["rank"] for entry in result.summary["allocator"]] == list(totals.index)
        for entry in result.summary["allocator"]:
            assert totals[entry["rank"]] == entry["peak_bytes"]
            assert entry["unaccounted_bytes"] == 0
        assert result.summary["peak_bytes"] == totals.max()
        assert totals[result.summary["peak_rank"]] == totals.max()

    def test_what_stands_is_what_the_rank_should_hold(self, runs: Runs, spec: RunSpec) -> None:
        layout, mesh = spec.layout, Mesh(spec.layout.dp, spec.layout.tp, spec.layout.pp)
        table = peaks(runs.result(spec))
        for rank in range(layout.ranks):
            stage = mesh.coordinate(rank).pp
            first, last, layers = stage == 0, stage == layout.pp - 1, layout.stage_layers(spec.model.layers)[stage]
            weights = parameters_held(spec.model, layout.tp, layers, first, last) * FLOAT
            counters = buckets_held(layers, first, last) * FLOAT  # AdamW counts its steps, one number a bucket
            assert table.loc[rank, "parameters"] == weights
            assert table.loc[rank, "gradients"] == weights
            assert table.loc[rank, "optimizer"] == 2 * weights + counters

    def test_ranks_of_one_stage_are_alike(self, runs: Runs, spec: RunSpec) -> None:
        result = runs.result(spec)
        rows = result.tables["memory_peak"]
        for (stage, category), same in rows.groupby(["pp", "category"])["bytes"]:
            assert same.nunique() == 1, f"stage {stage}: {category} {sorted(set(same))}"

    def test_the_curve_reaches_the_peak_and_returns_to_what_stands(self, runs: Runs, spec: RunSpec) -> None:
        result = runs.result(spec)
        table = peaks(result)
        for entry in result.summary["allocator"]:
            points = curve(result, entry["rank"])
            top = points.loc[points["total"].idxmax()]
            assert top["total"] == entry["peak_bytes"]
            assert all(top[category] == table.loc[entry["rank"], category] for category in CATEGORIES)
            for end in (points.iloc[0], points.iloc[-1]):
                assert end["total"] == entry["start_bytes"]
                assert end["activations"] == end["communication"] == 0
                assert end["temporary"] == 2 * FLOAT  # the loss and the norm of the gradients, which stay
            assert points["t_ns"].is_monotonic_increasing
            assert points["t_ns"].iloc[0] == 0
            assert (points[list(CATEGORIES)] >= 0).all(axis=None)


@pytest.mark.parametrize("schedule", ["naive", "gpipe", "1f1b"])
def test_activations_are_those_of_the_microbatches_in_flight(runs: Runs, schedule: ScheduleName) -> None:
    """Exactly so on every stage, at the start of every backward. One microbatch alone tells what one costs."""
    stages, microbatches = 3, 5
    one = runs.result(small("pp3", schedule, microbatches=1))
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
        # The last stage's peak falls into a backward, which frees the first activations before it needs its most.
        assert (highest - 1) * cost < points["activations"].max() <= highest * cost
    assert most == {"naive": [1, 1, 1], "gpipe": [5, 5, 5], "1f1b": [3, 2, 1]}[schedule]


def test_1f1b_holds_less_than_gpipe_where_it_should(runs: Runs) -> None:
    """Same model, same microbatches: only activations differ, and by the microbatches that are not in flight."""
    gpipe, interleaved = (peaks(runs.result(small("pp3", name, microbatches=5))) for name in ("gpipe", "1f1b"))  # type: ignore[arg-type]
    for category in ("parameters", "gradients", "optimizer"):
        assert (gpipe[category] == interleaved[category]).all()
    assert (interleaved["activations"] < gpipe["activations"]).all()


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_activations_of_one_layer(runs: Runs, tp: int) -> None:
    """What backward needs of one layer, worked out by hand: the difference between two stages that differ by one layer."""
    three, two = (
        start_of(curve(runs.result(small(f"tp{tp}.pp2", microbatches=1, split=split)), 0), "B chunk 0 microbatch 0")[
            "activations"
        ]
        for split in ((3, 2), (2, 3))
    )
    s, h, f, heads = SMALL.seq, SMALL.hidden, SMALL.ffn_width, SMALL.heads
    whole = 4 * s * h + 2 * 2 * s  # what the two norms read and what they give, with each token's mean and spread
    sliced = 3 * s * h + heads * s * s + s * h + 2 * s * f  # q, k, v; the softmax; the mixed values; the MLP around GELU
    mask, scale = s * s, 8  # one byte for each pair of tokens; the factor 1/√D, which autograd keeps as a double
    assert three - two == (whole + sliced // tp) * FLOAT + mask + scale


def test_a_received_activation_is_an_activation_and_a_gradient_under_way_is_communication(runs: Runs) -> None:
    points = curve(runs.result(small("pp3", microbatches=1)), 1)
    message = SMALL.seq * SMALL.hidden * FLOAT
    before_forward = start_of(points, "F chunk 1 microbatch 0")
    assert (before_forward["activations"], before_forward["communication"]) == (message, 0)
    before_backward = start_of(points, "B chunk 1 microbatch 0")
    assert before_backward["communication"] == 2 * message  # the output that was sent, and the gradient that came back


def test_the_same_spec_gives_the_same_memory(runs: Runs) -> None:
    first, second = runs.result(ALL_AXES), runs.fresh(ALL_AXES)
    pd.testing.assert_frame_equal(first.tables["memory_peak"], second.tables["memory_peak"])
    timeless = [result.tables["memory_curve"].drop(columns="t_ns") for result in (first, second)]
    pd.testing.assert_frame_equal(*timeless)
    assert first.summary["allocator"] == second.summary["allocator"]


def test_a_single_step_is_enough(runs: Runs) -> None:
    """With one step the optimizer's state is as new as the traced step, and yet complete."""
    one, two = runs.result(small("tp2", steps=1)), runs.result(small("tp2", steps=2))
    pd.testing.assert_frame_equal(one.tables["memory_peak"], two.tables["memory_peak"])


def test_the_process_is_larger_than_its_tensors(runs: Runs) -> None:
    result = runs.result(ALL_AXES)
    process = result.tables["process"].set_index("rank")
    assert (process["peak_rss_bytes"] >= process["rss_bytes"]).all()
    assert (process["rss_bytes"] >= process["uss_bytes"]).all()
    assert (process["peak_rss_bytes"] > peaks(result).sum(axis=1)).all()


def test_layout_of_the_tests_is_not_trivial() -> None:
    """The specs above have stages without a layer, stages of different sizes, and a vocabulary that needs padding."""
    assert LayoutSpec(pp=4).stage_layers(SMALL.layers) == (2, 1, 1, 1)
    assert any(0 in spec.layout.split for spec in LAYOUTS)
    assert any(spec.model.vocab % spec.layout.tp for spec in LAYOUTS)
