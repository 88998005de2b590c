"""Run a plan against a clock, given how long each action takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.schedule.actions import Action, Flow, Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Timed:
    """One action of one stage, and when it ran."""

    stage: int
    action: Action
    start: float
    end: float


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
    out: list[Timed] = []

    def end_of(stage: int, action: Action, start: float) -> float | None:
        """When the action ends, or None as long as what it waits for has not happened."""
        if action.kind == "recv":
            message = (action.chunk, action.microbatch, action.flow)
            if message not in arrived:
                return None
            received[message] = max(start, arrived[message])
            return received[message]
        if action.kind == "send":
            before = sent.setdefault((stage, action.peer, action.flow), [])
            awaited = before[-schedule.held] if len(before) >= schedule.held else None
            if awaited is not None and awaited not in received:
                return None
            end = start if awaited is None else max(start, received[awaited])
            before.append((action.chunk + (1 if action.flow == "activation" else -1), action.microbatch, action.flow))
            arrived[before[-1]] = end + duration(stage, action)
            return end
        return start + duration(stage, action)

    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(schedule.stages):
            while position[stage] < len(actions):
                action = actions[position[stage]]
                end = end_of(stage, action, clock[stage])
                if end is None:
                    break
                out.append(Timed(stage, action, clock[stage], end))
                clock[stage] = end
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
