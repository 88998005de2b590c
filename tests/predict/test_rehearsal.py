"""An order put down once and run as one loop tells what the simulator of the timeline does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.predict.durations import Durations
from engine.predict.speed.rehearsal import rehearsal, rehearse
from engine.predict.timeline import simulate
from engine.schedule import SCHEDULES, plan
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
