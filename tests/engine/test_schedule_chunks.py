"""Schedules with several chunks on a stage, or with backward split into I and W: their order, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torchs

from engine.schedule import Action, Kind, Schedule, bubble, check, compute_order, in_flight, in_flight_bound, plan, replay
from engine.spec import V_SHAPED, LayoutSpec, ModelSpec, RequestError, RunSpec, ScheduleName, WorkloadSpec, misfits

NEW: tuple[ScheduleName, ...] = ("interleaved", "zb-h1", "zb-v", "dualpipe-v")
ORACLES: dict[ScheduleName, type[Any]] = {
    "interleaved": torchs.ScheduleInterleaved1F1B,
    "zb-h1": torchs.ScheduleInterleavedZeroBubble,  # which with one chunk a stage is ZB-H1
    "zb-v": torchs.ScheduleZBVZeroBubble,
    "dualpipe-v": torchs.ScheduleDualPipeV,
}
KINDS: dict[str, Kind] = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
TALL = ModelSpec(layers=64)


def fitting(
    name: ScheduleName, stages: range = range(1, 9), microbatches: range = range(1, 17)
) -> Iterator[tuple[int, int, int]]:
    """(pp, microbatches, chunks) of everything that is not refused."""
    for pp, m, chunks in product(stages, microbatches, (2, 3) if name == "interleaved" else (2,) if name in V_SHAPED else (1,)):
        if not misfits(TALL, LayoutSpec(pp=pp, chunks=chunks, schedule=name), WorkloadSpec(microbatches=m)):
            yield pp, m, chunks


@cache
def planned(name: ScheduleName, pp: int, m: int, chunks: int) -> Schedule:
    return plan(LayoutSpec(pp=pp, chunks=chunks, schedule=name, dp=2, zero=1), m)


# ------------------------------------------------------------------------------------------------------------------- order


def torchs_orders(schedule: type[Any], pp: int, m: int, chunks: int) -> list[list[Action]]:
    """The compute of torch's own schedule, a list a stage. Made by its constructor, which looks at little of a stage."""

    class WithoutTransfers(schedule):  # type: ignore[misc]
        def _prepare_schedule_with_comms(self, *args: Any, **options: Any) -> None: ...

    stage = SimpleNamespace(
        group=None, group_size=pp, group_rank=0, num_stages=pp * chunks, stage_index=0, submod=None,
        is_first=True, is_last=False, has_backward=True, device="cpu",
    )  # fmt: skip
    options: dict[str, Any] = {"scale_grads": False}
    made = WithoutTransfers([stage] * chunks, m, lambda output, target: output, **options)
    return [[action for entry in made.pipeline_order[s] if entry for action in translated(entry)] for s in range(pp)]


def translated(entry: Any) -> Iterator[Action]:
    """torch writes a forward and a backward that it runs as one as a single entry."""
    for sub in entry.sub_actions or (entry,):
        yield Action(KINDS[sub.computation_type.name], sub.stage_index, sub.microbatch_index)


@pytest.mark.parametrize("name", NEW)
def test_passes_run_in_the_order_of_torchs_own_schedule(name: ScheduleName) -> None:
    compared = 0
    for pp, m, chunks in fitting(name):
        if name == "zb-h1" and (pp == 1 or m % max(1, m // pp)):
            continue  # torch has rounds there too, which with one chunk make no difference
        assert compute_order(name, pp, m, chunks) == torchs_orders(ORACLES[name], pp, m, chunks), (pp, m, chunks)
        compared += 1
    assert compared > 30


@pytest.mark.parametrize("name", NEW)
def test_plans_are_whole_ordered_paired_and_free_of_deadlock(name: ScheduleName) -> None:
    for pp, m, chunks in fitting(name):
        check(planned(name, pp, m, chunks))


def test_long_interleaved_rounds_need_more_than_one_message_held_back() -> None:
    """Three stages and eight microbatches make rounds of four: stage 2 has one more to send than stage 0 is ready for."""
    assert planned("interleaved", 3, 6, 2).held == 1
    assert planned("interleaved", 3, 8, 2).held == 2
    for name, pp in product(("1f1b", "zb-h1", "zb-v", "dualpipe-v"), (1, 2, 5)):
        assert planned(name, pp, 16, 2 if name in V_SHAPED else 1).held == 1


def test_a_v_goes_down_the_stages_and_back_up() -> None:
    layout = LayoutSpec(pp=3, chunks=2, schedule="zb-v")
    assert layout.placement == (0, 1, 2, 2, 1, 0)
    assert layout.chunk_layers(8) == (2, 2, 1, 1, 1, 1)
    assert layout.stage_layers(8) == (3, 3, 2)
    turn = [a for a in plan(layout, 4).stages[2] if a.kind in ("send", "recv")]
    assert {a.peer for a in turn} == {1}, "what passes at the turn stays on its stage"


def test_interleaved_chunks_go_round_and_round() -> None:
    layout = LayoutSpec(pp=2, chunks=3, schedule="interleaved", split=(1, 2, 3, 4, 5, 6))
    assert layout.placement == (0, 1, 0, 1, 0, 1)
    assert layout.stage_layers(21) == (1 + 3 + 5, 2 + 4 + 6)


@pytest.mark.parametrize(("name", "tying"), [("interleaved", [0, 2]), ("zb-h1", [0, 2]), ("zb-v", [0]), ("dualpipe-v", [0])])
def test_the_token_table_is_tied_where_its_two_copies_are(name: ScheduleName, tying: list[int]) -> None:
    stages = planned(name, 3, 6, 1 if name == "zb-h1" else 2).stages
    assert [s for s, actions in enumerate(stages) if Action("tie") in actions] == tying


# -------------------------------------------------------------------------------------------------------- kept activations


@pytest.mark.parametrize("name", NEW)
def test_a_stage_keeps_no_more_passes_than_the_schedules_definition_says(name: ScheduleName) -> None:
    for pp, m, chunks in fitting(name):
        for stage in range(pp):
            kept, bound = in_flight(planned(name, pp, m, chunks), stage), in_flight_bound(name, stage, pp, m, chunks)
            # ZB-V with too few microbatches to fill the V stays below.
            assert kept == bound or (name == "zb-v" and m < 2 * pp - 1 and kept < bound), (pp, m, chunks, stage)


def test_zero_bubble_keeps_no_more_than_1f1b_does_on_its_fullest_stage() -> None:
    """A pass through one of a V's chunks keeps half of what a pass through a whole stage does."""
    for pp, m in product(range(1, 9), range(1, 17)):
        most = in_flight(planned("1f1b", pp, m, 1), 0)
        for stage in range(pp):
            assert in_flight(planned("zb-h1", pp, m, 1), stage) == most
            assert in_flight(planned("zb-v", pp, m, 2), stage) <= 2 * most


# ------------------------------------------------------------------------------------------------------------------ bubble


def textbook(stage: int, action: Action) -> float:
    """F, I and W take as long as each other, and all else no time."""
    return {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}.get(action.kind, 0.0)


@pytest.mark.parametrize("name", NEW)
def test_the_bubble_in_textbook_times_is_the_closed_form(name: ScheduleName) -> None:
    """As a share of total time. A stage computes 3 m (of 6 m halves, for a V), and is idle for p − 1 of these times."""
    for pp, m, chunks in fitting(name):
        full = {"interleaved": m % pp == 0, "zb-h1": m >= pp, "zb-v": m >= 2 * pp - 1, "dualpipe-v": True}[name]
        busy = {"interleaved": chunks * m, "zb-h1": 3 * m, "zb-v": 6 * m, "dualpipe-v": 6 * m}[name]
        if full:
            timed = replay(planned(name, pp, m, chunks), textbook)
            assert bubble(timed, pp) == pytest.approx((pp - 1) / (busy + pp - 1)), (pp, m, chunks)


def test_every_one_of_them_has_a_smaller_bubble_than_1f1b() -> None:
    for pp, m in ((2, 8), (4, 8), (4, 16), (8, 16)):
        shares = {name: bubble(replay(planned(name, pp, m, 2 if name in V_SHAPED else 1), textbook), pp) for name in NEW[1:]}
        shares["interleaved"] = bubble(replay(planned("interleaved", pp, m, 2), textbook), pp)
        assert max(shares.values()) < bubble(replay(planned("1f1b", pp, m, 1), textbook), pp)


# ------------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("layout", "microbatches", "field", "choices", "said"),
    [
        ({"schedule": "interleaved", "pp": 2}, 4, "layout.chunks", (2, 3, 4), "chunks=1 leaves no"),
        ({"schedule": "zb-v", "pp": 2}, 4, "layout.chunks", (2,), "two chunks and not chunks=1"),
        ({"schedule": "dualpipe-v", "pp": 2, "chunks": 3}, 4, "layout.chunks", (2,), "two chunks and not chunks=3"),
        ({"schedule": "1f1b", "pp": 2, "chunks": 2}, 4, "layout.chunks", (1,), "one chunk a stage"),
        ({"schedule": "interleaved", "pp": 2, "chunks": 2}, 9, "workload.microbatches", (8, 10, 6, 4), "9 // 2 = 4 equal"),
        ({"schedule": "dualpipe-v", "pp": 3, "chunks": 2}, 5, "workload.microbatches", (6,), "2 × 3 chunks and has 5"),
        (
            {"schedule": "zb-v", "pp": 5, "chunks": 2},
            4,
            "layout.pp",
            (4, 3, 2, 1),
            "pp=5 × chunks=2 = 10 needs at least 10 layers",
        ),
        ({"schedule": "interleaved", "chunks": 9}, 4, "model.layers", (9,), "layers=9 and more fits"),
        ({"schedule": "zb-v", "pp": 2, "chunks": 2, "split": (4, 4)}, 4, "layout.split", (), "2,2,2,2 would fit"),
        (
            {"schedule": "zb-v", "pp": 2, "chunks": 2, "split": (4, 0, 4, 0)},
            4,
            "layout.split",
            (),
            "a middle chunk without a layer",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason_and_what_would_fit(
    layout: dict[str, Any], microbatches: int, field: str, choices: tuple[int, ...], said: str
) -> None:
    parts = ModelSpec(layers=8), LayoutSpec(**layout), WorkloadSpec(microbatches=microbatches)
    (found,) = misfits(*parts)
    assert (found.field, found.choices) == (field, choices)
    assert said in found.sentence
    with pytest.raises(RequestError, match=r"fit"):
        RunSpec(model=parts[0], layout=parts[1], workload=parts[2])


@pytest.mark.parametrize("name", NEW)
def test_what_is_offered_instead_does_fit(name: ScheduleName) -> None:
    for pp, m, chunks in product(range(1, 9), range(1, 17), range(1, 4)):
        layout, workload = LayoutSpec(pp=pp, chunks=chunks, schedule=name), WorkloadSpec(microbatches=m)
        for found in misfits(TALL, layout, workload):
            for choice in found.choices:
                changed = {"layout": layout, "workload": workload}
                part, field = found.field.split(".")
                changed[part] = changed[part].model_copy(update={field: choice})
                left = misfits(TALL, changed["layout"], changed["workload"])  # type: ignore[arg-type]
                assert found.field not in {misfit.field for misfit in left}
