"""Run a plan against a clock, given how long each action takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.schedule.actions import Action, Flow, Schedule, ScheduleError


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
    """Run the plan as if each stage had a device of its own, by the executor's own rules of waiting.

    A receive waits for its message. A send hands its message over and goes on, but first waits until at most
    `schedule.held` − 1 of those before it, of the same flow to the same stage, are still to be received.
    `duration(stage, action)` is how long an action takes; a send's is the time its message is under way.
    Raises `ScheduleError` if the stages end up waiting for each other.
    """
    clock = [0.0] * len(schedule.stages)
    position = [0] * len(schedule.stages)
    arrived: dict[tuple[int, int, Flow], float] = {}  # message → when it is there to be received
    received: dict[tuple[int, int, Flow], float] = {}  # message → when its receiver took it
    sent: dict[tuple[int, int, Flow], list[tuple[int, int, Flow]]] = {}  # (from, to, flow) → messages
    ends: dict[tuple[bool, tuple[int, int, Flow]], int] = {}  # (whether it is the receive, message) → where in the list
    latest = [-1] * len(schedule.stages)
    out: list[Timed] = []

    def end_of(stage: int, action: Action, start: float) -> tuple[float, int] | None:
        """When the action ends and what it went on from, or None as long as what it waits for has not happened."""
        if action.kind == "recv":
            message = (action.chunk, action.microbatch, action.flow)
            if message not in arrived:
                return None
            received[message] = max(start, arrived[message])
            ends[True, message] = len(out)
            return received[message], ends[False, message] if arrived[message] > start else latest[stage]
        if action.kind == "send":
            before = sent.setdefault((stage, action.peer, action.flow), [])
            awaited = before[-schedule.held] if len(before) >= schedule.held else None
            if awaited is not None and awaited not in received:
                return None
            end = start if awaited is None else max(start, received[awaited])
            after = latest[stage] if awaited is None or received[awaited] <= start else ends[True, awaited]
            before.append((action.chunk + (1 if action.flow == "activation" else -1), action.microbatch, action.flow))
            arrived[before[-1]] = end + duration(stage, action)
            ends[False, before[-1]] = len(out)
            return end, after
        return start + duration(stage, action), latest[stage]

    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(schedule.stages):
            while position[stage] < len(actions):
                action = actions[position[stage]]
                ended = end_of(stage, action, clock[stage])
                if ended is None:
                    break
                out.append(Timed(stage, action, clock[stage], *ended))
                latest[stage], clock[stage] = len(out) - 1, ended[0]
                position[stage] += 1
                moved = True
    stuck = [(s, actions[position[s]]) for s, actions in enumerate(schedule.stages) if position[s] < len(actions)]
    if stuck:
        raise ScheduleError("deadlock: " + "; ".join(f"stage {s} waits at {a}" for s, a in stuck))
    return out


def bubble(timed: Sequence[Timed], pp: int) -> float:
    """1 − busy time ÷ (pp × makespan) of the pipeline's compute: a share of total time, 0 to 1."""
    compute = [t for t in timed if t.action.kind in ("F", "B", "I", "W")]
    makespan = max(t.end for t in compute) - min(t.start for t in compute)
    return 1 - sum(t.end - t.start for t in compute) / (pp * makespan)
