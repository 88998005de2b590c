"""The rules that the plan of every schedule must keep."""

from __future__ import annotations

from collections.abc import Sequence

from engine.schedule.actions import Action, Flow, Kind, Schedule, ScheduleError
from engine.schedule.clock import replay

_ENDINGS: tuple[list[Kind], ...] = (["step"], ["tie", "step"], ["step", "gather"], ["tie", "step", "gather"])


def check(schedule: Schedule) -> None:
    """Raise `ScheduleError` unless the plan is complete, in a valid order, its messages are paired, and it has no deadlock."""
    for stage, actions in enumerate(schedule.stages):
        _check_complete(schedule, stage, actions)
        _check_inputs(schedule, stage, actions)
        _check_end(stage, actions)
    _check_shared(schedule)
    _check_paired(schedule)
    replay(schedule, lambda stage, action: 1.0)


def in_flight(schedule: Schedule, stage: int) -> int:
    """The most passes (a microbatch through a chunk) that have run F but not yet B (or W) at one time."""
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


def _check_inputs(schedule: Schedule, stage: int, actions: Sequence[Action]) -> None:
    """A pass runs after its input is there, a send after the pass whose result it sends. No other message is received."""
    done: set[Action] = set()
    received = needed = 0
    for action in actions:
        needs: set[Action] = set()
        if action.kind == "send":
            needs = _passes(action.flow, action.chunk, action.microbatch)
        elif action.kind in ("F", "B", "I"):
            flow: Flow = "activation" if action.kind == "F" else "gradient"
            source = action.chunk + (-1 if action.kind == "F" else 1)
            if 0 <= source < len(schedule.placement):
                here = schedule.placement[source] == stage
                message = Action("recv", action.chunk, action.microbatch, flow, schedule.placement[source])
                needs = _passes(flow, source, action.microbatch) if here else {message}
                needed += not here
        if needs and not needs & done:
            raise ScheduleError(f"stage {stage} comes to {action} before {' or '.join(sorted(map(str, needs)))}")
        received += action.kind == "recv"
        done.add(action)
    if received != needed:
        raise ScheduleError(f"stage {stage} receives {received} messages and needs {needed}")


def _passes(flow: Flow, chunk: int, microbatch: int) -> set[Action]:
    """The passes that produce what a chunk sends. One of them is in the schedule."""
    kinds: tuple[Kind, ...] = ("F",) if flow == "activation" else ("B", "I")
    return {Action(kind, chunk, microbatch) for kind in kinds}


def _check_end(stage: int, actions: Sequence[Action]) -> None:
    """The optimizer steps once, after all that makes gradients. The tie, if any, is just before it."""
    ending = [a.kind for a in actions if a.kind in ("tie", "step", "gather")]
    if ending not in _ENDINGS or [a.kind for a in actions[-len(ending) :]] != ending:
        raise ScheduleError(f"stage {stage} ends with {', '.join(a.kind for a in actions[-4:])}")


def _check_shared(schedule: Schedule) -> None:
    """Collectives need all their stages: every chunk is reduced once, or none is; both end stages tie, or neither does."""
    reduced = sorted((a.chunk, stage) for stage, actions in enumerate(schedule.stages) for a in actions if a.kind == "reduce")
    if reduced and reduced != list(enumerate(schedule.placement)):
        raise ScheduleError(f"(chunk, stage) that reduce: {reduced}, and not every chunk once where it is")
    tying = {stage for stage, actions in enumerate(schedule.stages) for a in actions if a.kind == "tie"}
    if tying and tying != {schedule.placement[0], schedule.placement[-1]}:
        raise ScheduleError(f"stages that tie: {sorted(tying)}, and not the first chunk's and the last's")


def _check_paired(schedule: Schedule) -> None:
    """Sends and receives between two stages match one to one, in the same order. NCCL pairs them by order only."""
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
