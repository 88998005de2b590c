"""Many schedules simulated at once give the times of the timeline's simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.schedule import SCHEDULES, Action, ScheduleError, compute_order, plan
from engine.schedule.orders import KINDS, passes
from engine.schedule.simulation import pipeline_simulation, simulate_all
from engine.schedule.timeline import Durations, simulate
from engine.spec import SCHEDULE_FACTS, LayoutSpec


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_as_long_as_it_does_action_by_action(name: Any) -> None:
    """With any times of passes, messages and reductions, also if a sender waits until an earlier message is received."""
    random = np.random.default_rng(3)
    for pp, least in ((1, 3), (2, 4), (3, 7), (4, 8), (5, 12), (4, 13)):
        chunks = SCHEDULE_FACTS[name].chunks or 3
        m = next(n for n in range(least, 3 * least) if SCHEDULE_FACTS[name].fits_microbatches(pp, n))
        layout = LayoutSpec(dp=2, pp=pp, schedule=name, chunks=chunks)
        kinds: Any = [(kind, c) for kind in ("F", "B", "I", "W", "reduce") for c in range(pp * chunks)]
        flows: Any = [(flow, c) for flow in ("activation", "gradient") for c in range(pp * chunks)]
        times = Durations({k: random.uniform(1, 3) for k in kinds}, {f: random.uniform(0, 2) for f in flows})
        (found,) = simulate_all([(pipeline_simulation(name, pp, m, chunks), times, True)])
        timeline = simulate(plan(layout, m), times)
        assert max(found.clocks) == pytest.approx(timeline.makespan)
        assert found.pipeline == pytest.approx(timeline.pipeline)
        assert found.busy == pytest.approx(sum(timeline.busy))


def test_schedules_simulated_together_take_as_long_as_each_alone() -> None:
    kinds: Any = [(kind, c) for kind in "FBIW" for c in range(8)]
    times = [Durations(dict.fromkeys(kinds, at + 1.0), {("activation", 0): 0.5}) for at in range(len(SCHEDULES))]
    runs = [
        (pipeline_simulation(name, 4, 8, facts.least_chunks), own, True)
        for (name, facts), own in zip(SCHEDULE_FACTS.items(), times, strict=True)
    ]
    assert simulate_all(runs) == [simulate_all([one])[0] for one in runs]


def test_a_deadlock_is_refused() -> None:
    """The last stage's first pass waits for itself."""
    one = pipeline_simulation("1f1b", 2, 3, 1)
    stuck = one.waits.copy()
    stuck[one.firsts[1]] = one.firsts[1]
    with pytest.raises(ScheduleError, match="deadlock: the stages wait for each other"):
        simulate_all([(replace(one, waits=stuck), Durations({}), False)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_orders_of_many_stages_equal_those_of_each(name: Any) -> None:
    """Each with another number of microbatches, few and many."""
    facts, pp = SCHEDULE_FACTS[name], 4
    chunks, some = facts.chunks or 3, [m for m in (8, 12, 1, 2, 3) if facts.fits_microbatches(pp, m)]
    asked = [(stage, m) for m in some for stage in (3, 0, 2)]
    found = passes(name, pp, *np.array(asked).T, chunks)
    for i, (stage, m) in enumerate(asked):
        own = zip(*(column[found.of == i].tolist() for column in found[:3]), strict=True)
        assert [Action(KINDS[kind], *place) for kind, *place in own] == compute_order(name, pp, m, chunks)[stage]
