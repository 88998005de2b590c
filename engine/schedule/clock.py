"""Run a plan against a clock, given how long each action takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engine.schedule.actions import Action, Schedule, ScheduleError
from engine.schedule.waiting import NOTHING, awaited


@dataclass(frozen=True, slots=True)
class Timed:
    """One action of one stage, and when it ran.

    `after` is what it went on from, as an index in `replay`'s list: the action before it on its stage or, where it waited longer
    for another stage, the other end of that message. −1 for a stage's first action.
    """

    stage: int
    action: Action
    start: float
    end: float
    after: int = -1


def replay(schedule: Schedule, duration: Callable[[int, Action], float]) -> list[Timed]:
    """Run the plan as if each stage had a device of its own, by the executor's own rules of waiting (`waiting.awaited`).

    `duration(stage, action)` is how long an action takes; a send's is the time its message is under way, and a receive takes none
    beside its wait. Raises `ScheduleError` if the stages end up waiting for each other.
    """
    firsts = [0, *accumulate(map(len, schedule.stages))]
    waits = _waits(schedule)
    seen: list[float | None] = [None] * len(waits)  # when others see each step
    place = [-1] * len(waits)  # of each step in the list
    clock, position, latest = [0.0] * len(schedule.stages), [0] * len(schedule.stages), [-1] * len(schedule.stages)
    out: list[Timed] = []
    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(schedule.stages):
            while position[stage] < len(actions):
                step, action, start, after = (
                    firsts[stage] + position[stage],
                    actions[position[stage]],
                    clock[stage],
                    latest[stage],
                )
                begin, other = start, waits[step]
                if other != NOTHING:
                    when = seen[other]
                    if when is None:
                        break
                    if when > start:
                        begin, after = when, place[other]
                took = 0.0 if action.kind == "recv" else duration(stage, action)
                sends = action.kind == "send"
                end, seen[step] = (begin, begin + took) if sends else (begin + took, begin)
                place[step] = latest[stage] = len(out)
                out.append(Timed(stage, action, start, end, after))
                clock[stage] = end
                position[stage] += 1
                moved = True
    stuck = [(s, actions[position[s]]) for s, actions in enumerate(schedule.stages) if position[s] < len(actions)]
    if stuck:
        raise ScheduleError("deadlock: " + "; ".join(f"stage {s} waits at {a}" for s, a in stuck))
    return out


def _waits(schedule: Schedule) -> list[int]:
    """For which other action each waits; numbered stage by stage."""
    taken, handed, way = [], [], []
    for stage, actions in enumerate(schedule.stages):
        for action in actions:
            gradient = action.flow == "gradient"
            sends, takes = action.kind == "send", action.kind == "recv"
            chunk = action.chunk + (0 if not sends else -1 if gradient else 1)  # a message is named by the chunk that needs it
            message = 2 * (chunk * schedule.microbatches + action.microbatch) + gradient if sends or takes else NOTHING
            taken.append(message if takes else NOTHING)
            handed.append(message if sends else NOTHING)
            way.append(2 * (stage * len(schedule.stages) + action.peer) + gradient)
    return awaited(np.array(taken), np.array(handed), np.array(way), schedule.held).tolist()


def bubble(timed: Sequence[Timed], pp: int) -> float:
    """1 − busy time ÷ (pp × makespan) of the pipeline's compute: a share of total time, 0 to 1."""
    compute = [t for t in timed if t.action.kind in ("F", "B", "I", "W")]
    makespan = max(t.end for t in compute) - min(t.start for t in compute)
    return 1 - sum(t.end - t.start for t in compute) / (pp * makespan)
