"""Schedules with several chunks on a stage, or with backward split into I and W."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest

from engine.schedule import SCHEDULES, Action, Schedule, bubble, check, in_flight, in_flight_bound, plan, replay
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, RunSpec, ScheduleName, WorkloadSpec, misfits

NEW = tuple(name for name, facts in SCHEDULE_FACTS.items() if not facts.plain)
TALL = ModelSpec(layers=64)


def fitting(
    name: ScheduleName, stages: range = range(1, 9), microbatches: range = range(1, 17)
) -> Iterator[tuple[int, int, int]]:
    """(pp, microbatches, chunks) of all valid combinations."""
    for pp, m, chunks in product(stages, microbatches, (v,) if (v := SCHEDULE_FACTS[name].chunks) else (2, 3)):
        if not misfits(TALL, LayoutSpec(pp=pp, chunks=chunks, schedule=name), WorkloadSpec(microbatches=m)):
            yield pp, m, chunks


@cache
def planned(name: ScheduleName, pp: int, m: int, chunks: int) -> Schedule:
    return plan(LayoutSpec(pp=pp, chunks=chunks, schedule=name, dp=2, zero=1), m)


# ------------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("name", NEW)
def test_schedules_are_complete_ordered_paired_and_free_of_deadlock(name: ScheduleName) -> None:
    for pp, m, chunks in fitting(name):
        check(planned(name, pp, m, chunks))


def test_long_interleaved_rounds_need_more_than_one_send_in_progress() -> None:
    """Three stages and eight microbatches have rounds of four: stage 2 must send one more than stage 0 can receive."""
    assert planned("interleaved", 3, 6, 2).held == 1
    assert planned("interleaved", 3, 8, 2).held == 2
    for name, pp in product(SCHEDULES, (1, 2, 5)):
        if chunks := SCHEDULE_FACTS[name].chunks:
            assert planned(name, pp, 16, chunks).held == 1


def test_chunks_of_a_v_are_placed_down_the_stages_and_back() -> None:
    layout = LayoutSpec(pp=3, chunks=2, schedule="zb-v")
    assert layout.placement == (0, 1, 2, 2, 1, 0)
    assert layout.chunk_layers(8) == (2, 2, 1, 1, 1, 1)
    assert layout.stage_layers(8) == (3, 3, 2)
    turn = [a for a in plan(layout, 4).stages[2] if a.kind in ("send", "recv")]
    assert {a.peer for a in turn} == {1}, "what passes at the turn stays on its stage"


def test_interleaved_chunks_are_placed_round_robin() -> None:
    layout = LayoutSpec(pp=2, chunks=3, schedule="interleaved", split=(1, 2, 3, 4, 5, 6))
    assert layout.placement == (0, 1, 0, 1, 0, 1)
    assert layout.stage_layers(21) == (1 + 3 + 5, 2 + 4 + 6)


@pytest.mark.parametrize(("name", "tying"), [("interleaved", [0, 2]), ("zb-h1", [0, 2]), ("zb-v", [0]), ("dualpipe-v", [0])])
def test_the_token_table_is_tied_between_the_stages_that_hold_it(name: ScheduleName, tying: list[int]) -> None:
    stages = planned(name, 3, 6, 1 if name == "zb-h1" else 2).stages
    assert [s for s, actions in enumerate(stages) if Action("tie") in actions] == tying


# -------------------------------------------------------------------------------------------------------- kept activations


@pytest.mark.parametrize("name", NEW)
def test_a_stage_keeps_no_more_passes_than_the_schedules_definition_says(name: ScheduleName) -> None:
    for pp, m, chunks in fitting(name):
        for stage in range(pp):
            kept, bound = in_flight(planned(name, pp, m, chunks), stage), in_flight_bound(name, stage, pp, m, chunks)
            # ZB-V keeps fewer if there are too few microbatches to fill the V.
            assert kept == bound or (name == "zb-v" and m < 2 * pp - 1 and kept < bound), (pp, m, chunks, stage)


def test_zero_bubble_schedules_keep_no_more_than_the_fullest_stage_of_1f1b() -> None:
    """A pass through one of two chunks keeps half as much as a pass through a whole stage."""
    for pp, m in product(range(1, 9), range(1, 17)):
        most = in_flight(planned("1f1b", pp, m, 1), 0)
        for stage in range(pp):
            assert in_flight(planned("zb-h1", pp, m, 1), stage) == most
            assert in_flight(planned("zb-v", pp, m, 2), stage) <= 2 * most


# ------------------------------------------------------------------------------------------------------------------ bubble


def textbook(stage: int, action: Action) -> float:
    """F, I and W take the same time, everything else takes none."""
    return {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}.get(action.kind, 0.0)


@pytest.mark.parametrize("name", NEW)
def test_the_bubble_in_textbook_times_is_the_closed_form(name: ScheduleName) -> None:
    """As a share of total time, by the record's function and by its formula as text."""
    facts = SCHEDULE_FACTS[name]
    formula = facts.bubble.replace("−", "-").replace("·", "*")
    for pp, m, chunks in fitting(name):
        if m >= facts.closed_from(pp) and (facts.chunks or m % pp == 0):
            timed = replay(planned(name, pp, m, chunks), textbook)
            written = eval(formula, {"p": pp, "m": m, "v": chunks})
            assert bubble(timed, pp) == pytest.approx(facts.bubble_share(pp, m, chunks), abs=1e-12), (pp, m, chunks)
            assert bubble(timed, pp) == pytest.approx(written, abs=1e-12)


def test_every_other_schedule_has_a_smaller_bubble_than_1f1b() -> None:
    for pp, m in ((2, 8), (4, 8), (4, 16), (8, 16)):
        shares = {name: bubble(replay(planned(name, pp, m, SCHEDULE_FACTS[name].least_chunks), textbook), pp) for name in NEW}
        assert max(shares.values()) < bubble(replay(planned("1f1b", pp, m, 1), textbook), pp)


# ------------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("layout", "microbatches", "field", "choices", "said"),
    [
        ({"schedule": "interleaved", "pp": 2}, 4, "layout.chunks", (2, 3, 4), "not chunks=1"),
        ({"schedule": "zb-v", "pp": 2}, 4, "layout.chunks", (2,), "two chunks, not chunks=1"),
        ({"schedule": "dualpipe-v", "pp": 2, "chunks": 3}, 4, "layout.chunks", (2,), "two chunks, not chunks=3"),
        ({"schedule": "1f1b", "pp": 2, "chunks": 2}, 4, "layout.chunks", (1,), "one chunk per stage"),
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
            "a middle chunk without layers",
        ),
    ],
)
def test_an_invalid_combination_is_refused_with_the_reason_and_valid_values(
    layout: dict[str, Any], microbatches: int, field: str, choices: tuple[int, ...], said: str
) -> None:
    parts = ModelSpec(layers=8), LayoutSpec(**layout), WorkloadSpec(microbatches=microbatches)
    (found,) = misfits(*parts)
    assert (found.field, found.choices) == (field, choices)
    assert said in found.sentence
    with pytest.raises(RequestError, match=r"fit"):
        RunSpec(model=parts[0], layout=parts[1], workload=parts[2])


@pytest.mark.parametrize("name", NEW)
def test_suggested_values_are_valid(name: ScheduleName) -> None:
    for pp, m, chunks in product(range(1, 9), range(1, 17), range(1, 4)):
        layout, workload = LayoutSpec(pp=pp, chunks=chunks, schedule=name), WorkloadSpec(microbatches=m)
        for found in misfits(TALL, layout, workload):
            for choice in found.choices:
                changed = {"layout": layout, "workload": workload}
                part, field = found.field.split(".")
                changed[part] = changed[part].model_copy(update={field: choice})
                left = misfits(TALL, changed["layout"], changed["workload"])  # type: ignore[arg-type]
                assert found.field not in {misfit.field for misfit in left}
