"""The simulation of one plan: when each action runs, given how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engine.schedule.actions import Action, Schedule, ScheduleError
from engine.schedule.waiting import NOTHING, dependencies


@dataclass(frozen=True, slots=True)
class Timed:
    """One action of one stage, and when it ran.

    `after`: the action whose end it waited for, as an index in `replay`'s list. That is the action before it on its stage, or the
    other end of the message if it waited longer for that. −1 for a stage's first action.
    """

    stage: int
    action: Action
    start: float
    end: float
    after: int = -1


def replay(schedule: Schedule, duration: Callable[[int, Action], float]) -> list[Timed]:
    """Simulate the plan with one device for each stage, by the executor's rules of waiting (`waiting.dependencies`).

    `duration(stage, action)` is the time of an action. For a send it is the time until its message arrives. A receive takes no
    time besides its wait. Raises `ScheduleError` for a deadlock.
    """
    firsts = [0, *accumulate(map(len, schedule.stages))]
    waits = _waits(schedule)
    seen: list[float | None] = [None] * len(waits)  # when each step releases the steps that wait for it
    place = [-1] * len(waits)  # the index of each step in `out`
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
    """The number of the action that each action waits for. Actions are numbered stage by stage."""
    received, sent, channel = [], [], []
    for stage, actions in enumerate(schedule.stages):
        for action in actions:
            gradient = action.flow == "gradient"
            sends, receives = action.kind == "send", action.kind == "recv"
            receiver = action.chunk + (0 if not sends else -1 if gradient else 1)  # a message is numbered by its receiving chunk
            message = 2 * (receiver * schedule.microbatches + action.microbatch) + gradient if sends or receives else NOTHING
            received.append(message if receives else NOTHING)
            sent.append(message if sends else NOTHING)
            channel.append(2 * (stage * len(schedule.stages) + action.peer) + gradient)
    return dependencies(np.array(received), np.array(sent), np.array(channel), schedule.held).tolist()


def bubble(timed: Sequence[Timed], pp: int) -> float:
    """The bubble: 1 − busy time of all stages ÷ (pp × makespan), counting F, B, I and W. 0 to 1."""
    compute = [t for t in timed if t.action.kind in ("F", "B", "I", "W")]
    makespan = max(t.end for t in compute) - min(t.start for t in compute)
    return 1 - sum(t.end - t.start for t in compute) / (pp * makespan)
