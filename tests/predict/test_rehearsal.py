"""An order put down once and run as one loop tells what the simulator of the timeline does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.predict.durations import Durations
from engine.predict.speed.rehearsal import rehearsal, rehearse
from engine.predict.timeline import simulate
from engine.schedule import SCHEDULES, Action, ScheduleError, compute_order, plan
from engine.schedule.orders import KINDS, passes
from engine.spec import LayoutSpec


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rehearsed_schedule_takes_as_long_as_the_simulated_one(name: Any) -> None:
    """With any times of passes, messages and reductions, also where a sender waits for an earlier message to be taken in."""
    random = np.random.default_rng(3)
    for pp, least in ((1, 3), (2, 4), (3, 7), (4, 8), (5, 12), (4, 13)):
        chunks = {"interleaved": 3, "zb-v": 2, "dualpipe-v": 2}.get(name, 1)
        m = max(least, 2 * pp) if name == "dualpipe-v" else least - least % pp if name == "interleaved" and pp < 5 else least
        layout = LayoutSpec(dp=2, pp=pp, schedule=name, chunks=chunks)
        kinds: Any = [(kind, c) for kind in ("F", "B", "I", "W", "reduce") for c in range(pp * chunks)]
        flows: Any = [(flow, c) for flow in ("activation", "gradient") for c in range(pp * chunks)]
        times = Durations({k: random.uniform(1, 3) for k in kinds}, {f: random.uniform(0, 2) for f in flows})
        (found,) = rehearse([(rehearsal(name, pp, m, chunks), times, True)])
        timeline = simulate(plan(layout, m), times)
        assert max(found.clocks) == pytest.approx(timeline.makespan)
        assert found.pipeline == pytest.approx(timeline.pipeline)
        assert found.busy == pytest.approx(sum(timeline.busy))


def test_rehearsed_side_by_side_each_takes_as_long_as_alone() -> None:
    times = [Durations({(kind, c): at + 1.0 for kind in "FBIW" for c in range(8)}, {("activation", 0): 0.5}) for at in range(7)]  # type: ignore[misc]
    chunks = {"interleaved": 2, "zb-v": 2, "dualpipe-v": 2}
    plays = [(rehearsal(name, 4, 8, chunks.get(name, 1)), own, True) for name, own in zip(SCHEDULES, times, strict=True)]
    assert rehearse(plays) == [rehearse([one])[0] for one in plays]


def test_stages_that_wait_for_each_other_are_refused() -> None:
    """The last stage's first pass waits for itself."""
    one = rehearsal("1f1b", 2, 3, 1)
    stuck = one.waits.copy()
    stuck[one.firsts[1]] = one.firsts[1]
    with pytest.raises(ScheduleError, match="deadlock: the stages wait for each other"):
        rehearse([(replace(one, waits=stuck), Durations({}), False)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_orders_of_many_stages_at_once_are_each_stages_own(name: Any) -> None:
    """Each with its own number of microbatches, few and many."""
    pp, chunks = 4, {"interleaved": 3, "zb-v": 2, "dualpipe-v": 2}.get(name, 1)
    asked = [(stage, m) for m in (8, 12, *(() if name == "dualpipe-v" else (1, 2, 3))) for stage in (3, 0, 2)]
    found = passes(name, pp, *np.array(asked).T, chunks)
    for i, (stage, m) in enumerate(asked):
        own = zip(*(column[found.of == i].tolist() for column in found[:3]), strict=True)
        assert [Action(KINDS[kind], *place) for kind, *place in own] == compute_order(name, pp, m, chunks)[stage]
