"""What every plan must satisfy, whatever its name."""

from __future__ import annotations

from collections.abc import Sequence

from engine.schedule.actions import Action, Flow, Schedule, ScheduleError
from engine.schedule.clock import replay


def check(schedule: Schedule) -> None:
    """Raise `ScheduleError` unless the plan is complete, ordered, paired and free of deadlock."""
    for stage, actions in enumerate(schedule.stages):
        _check_complete(schedule, stage, actions)
    _check_paired(schedule)
    replay(schedule, lambda stage, action: 1.0)


def in_flight(schedule: Schedule, stage: int) -> int:
    """The most microbatches (over all chunks) that have run F but not yet B (or W) at one time."""
    now = most = 0
    for action in schedule.stages[stage]:
        now += (action.kind == "F") - (action.kind in ("B", "W"))
        most = max(most, now)
    return most


def _check_complete(schedule: Schedule, stage: int, actions: Sequence[Action]) -> None:
    seen: dict[tuple[int, int], str] = {}
    for action in actions:
        if action.kind in ("F", "B", "I", "W"):
            key = (action.chunk, action.microbatch)
            seen[key] = seen.get(key, "") + action.kind
    chunks = [c for c, where in enumerate(schedule.placement) if where == stage]
    for chunk in chunks:
        for microbatch in range(schedule.microbatches):
            if seen.pop((chunk, microbatch), "") not in ("FB", "FIW"):
                raise ScheduleError(f"stage {stage}: chunk {chunk}, microbatch {microbatch} does not run F then B (or I, W) once")
    if seen:
        raise ScheduleError(f"stage {stage} runs what is not its own: {sorted(seen)}")
    for position, action in enumerate(actions):
        if action.kind == "reduce" and any(a.kind in ("B", "W") and a.chunk == action.chunk for a in actions[position:]):
            raise ScheduleError(f"stage {stage} reduces chunk {action.chunk} before its last backward")


def _check_paired(schedule: Schedule) -> None:
    """Sends and receives between two stages match one to one and in order (NCCL pairs them by order alone)."""
    sent: dict[tuple[int, int, Flow], list[tuple[int, int]]] = {}
    received: dict[tuple[int, int, Flow], list[tuple[int, int]]] = {}
    for stage, actions in enumerate(schedule.stages):
        for a in actions:
            step = 1 if a.flow == "activation" else -1
            if a.kind == "send":
                sent.setdefault((stage, a.peer, a.flow), []).append((a.chunk + step, a.microbatch))
            elif a.kind == "recv":
                received.setdefault((a.peer, stage, a.flow), []).append((a.chunk, a.microbatch))
    if sent != received:
        raise ScheduleError("sends and receives do not match one to one in the same order")
