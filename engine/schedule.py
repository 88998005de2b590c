"""Pipeline schedules as data: for each stage, the list of actions that its ranks carry out, in order.

The worker executes the list, the checks below hold for it, `replay` times it, and the chart draws it.

    compute_order   which F and B, in which order: this is what makes a schedule that schedule
    plan            the same with sends, receives, gradient reduction and the optimizer's step put in
    check           what every plan must satisfy, whatever its name
    replay          run a plan against a clock, given how long each action takes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from engine.spec import LayoutSpec, ScheduleName

Kind = Literal["F", "B", "I", "W", "send", "recv", "reduce", "tie", "step", "gather"]
Flow = Literal["", "activation", "gradient"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


@dataclass(frozen=True, slots=True)
class Action:
    """One entry of a schedule.

    F, B      forward and backward of one microbatch through one chunk
    I, W      the two halves of B, where a schedule splits it: gradient of the input, gradient of the weights
    send      hand a chunk's output (flow "activation") or its input's gradient (flow "gradient") to stage `peer`
    recv      the other end of a send, seen from the chunk that needs it
    reduce    finish adding up the chunk's gradients over dp
    tie       sum the gradient of the embedding that the first and the last stage share
    step      the optimizer's step
    gather    give every replica the values that the others updated (ZeRO 1 and 2)
    """

    kind: Kind
    chunk: int = -1
    microbatch: int = -1
    flow: Flow = ""
    peer: int = -1

    def __str__(self) -> str:
        where = f" chunk {self.chunk}" if self.chunk >= 0 else ""
        what = f" microbatch {self.microbatch}" if self.microbatch >= 0 else ""
        return self.kind + (f" {self.flow}" if self.flow else "") + where + what


@dataclass(frozen=True)
class Schedule:
    """`stages[s]` is what the ranks at pp coordinate s do; `placement[c]` is the stage that holds chunk c."""

    name: ScheduleName
    microbatches: int
    placement: tuple[int, ...]
    stages: tuple[tuple[Action, ...], ...]


class ScheduleError(Exception):
    """A schedule breaks a rule that every schedule must keep. Always a defect of the schedule, never of a request."""


# --------------------------------------------------------------------------------------------- what makes each schedule


def compute_order(name: ScheduleName, pp: int, microbatches: int) -> list[list[Action]]:
    """The F and B of each stage, in order. Returns one list a stage."""
    return [_ORDERS[name](stage, pp, microbatches) for stage in range(pp)]


def _naive(stage: int, pp: int, microbatches: int) -> list[Action]:
    """One microbatch in the whole pipeline: forward through all stages, back through all, then the next."""
    return [Action(kind, stage, m) for m in range(microbatches) for kind in ("F", "B")]


def _gpipe(stage: int, pp: int, microbatches: int) -> list[Action]:
    """All forwards, then all backwards (Huang et al. 2019)."""
    return [Action(kind, stage, m) for kind in ("F", "B") for m in range(microbatches)]


def _1f1b(stage: int, pp: int, microbatches: int) -> list[Action]:
    """Fill the pipeline, then alternate, then drain (Narayanan et al. 2021): at most pp − stage in flight."""
    warm = min(pp - stage, microbatches)
    order = [Action("F", stage, m) for m in range(warm)]
    for m in range(microbatches):
        order.append(Action("B", stage, m))
        if m + warm < microbatches:
            order.append(Action("F", stage, m + warm))
    return order


_ORDERS: dict[ScheduleName, Callable[[int, int, int], list[Action]]] = {"naive": _naive, "gpipe": _gpipe, "1f1b": _1f1b}


def in_flight_bound(name: ScheduleName, stage: int, pp: int, microbatches: int) -> int:
    """The most microbatches whose activations a stage may hold at once, from the schedule's definition."""
    return {"naive": 1, "gpipe": microbatches, "1f1b": min(pp - stage, microbatches)}[name]


# ------------------------------------------------------------------------------------------------------ the full list


def plan(layout: LayoutSpec, microbatches: int, tied: bool = True) -> Schedule:
    """The whole step of every stage: compute, sends and receives, reduction over dp, tie, step, gather.

    `tied`: the model's embedding and head share their weights, so the first and last stage must agree on its gradient.
    """
    orders = compute_order(layout.schedule, layout.pp, microbatches)
    placement = tuple(range(layout.pp))
    stages = []
    for stage, order in enumerate(orders):
        actions = [entry for action in order for entry in _with_transfers(action, placement)]
        if layout.dp > 1 or layout.sequence_parallel:
            actions = _with_reduction(actions)
        if tied and layout.pp > 1 and stage in (placement[0], placement[-1]):
            actions.append(Action("tie"))
        actions.append(Action("step"))
        if layout.zero in (1, 2):
            actions.append(Action("gather"))
        stages.append(tuple(actions))
    return Schedule(layout.schedule, microbatches, placement, tuple(stages))


def _with_transfers(action: Action, placement: Sequence[int]) -> list[Action]:
    """The action between the receive it needs and the send it makes possible; neither within one stage."""
    forward = action.kind == "F"
    flow: Flow = "activation" if forward else "gradient"
    here = placement[action.chunk]
    around: list[Action] = [action]
    for kind, step in (("recv", -1), ("send", 1)):
        other = action.chunk + (step if forward else -step)
        if action.kind != "W" and 0 <= other < len(placement) and placement[other] != here:
            entry = Action(kind, action.chunk, action.microbatch, flow, placement[other])  # type: ignore[arg-type]
            around = [entry, *around] if kind == "recv" else [*around, entry]
    return around


def _with_reduction(actions: list[Action]) -> list[Action]:
    """A `reduce` for each chunk, after its last backward (and after the send that follows it, which others wait for)."""
    last = {a.chunk: i for i, a in enumerate(actions) if a.kind in ("B", "W") or (a.kind == "send" and a.flow == "gradient")}
    ends = {i: chunk for chunk, i in last.items()}
    out: list[Action] = []
    for i, action in enumerate(actions):
        out.append(action)
        if i in ends:
            out.append(Action("reduce", ends[i]))
    return out


# --------------------------------------------------------------------------------------------------------- the checks


_ENDINGS: tuple[list[Kind], ...] = (["step"], ["tie", "step"], ["step", "gather"], ["tie", "step", "gather"])


def check(schedule: Schedule) -> None:
    """Raise `ScheduleError` unless the plan is complete, ordered, paired and free of deadlock."""
    for stage, actions in enumerate(schedule.stages):
        _check_complete(schedule, stage, actions)
        _check_fed(schedule, stage, actions)
        _check_end(stage, actions)
    _check_shared(schedule)
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


def _check_fed(schedule: Schedule, stage: int, actions: Sequence[Action]) -> None:
    """A pass comes after what it takes in, a send after the pass whose result it hands over, and nothing else is received."""
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
    """The passes of which one gives what flows out of the chunk."""
    kinds: tuple[Kind, ...] = ("F",) if flow == "activation" else ("B", "I")
    return {Action(kind, chunk, microbatch) for kind in kinds}


def _check_end(stage: int, actions: Sequence[Action]) -> None:
    """The optimizer steps once, after everything that makes gradients; what is tied is tied just before."""
    ending = [a.kind for a in actions if a.kind in ("tie", "step", "gather")]
    if ending not in _ENDINGS or [a.kind for a in actions[-len(ending) :]] != ending:
        raise ScheduleError(f"stage {stage} ends with {', '.join(a.kind for a in actions[-4:])}")


def _check_shared(schedule: Schedule) -> None:
    """What only works if the others take part too: every chunk is reduced once, or none is; both ends tie, or neither."""
    reduced = sorted((a.chunk, stage) for stage, actions in enumerate(schedule.stages) for a in actions if a.kind == "reduce")
    if reduced and reduced != list(enumerate(schedule.placement)):
        raise ScheduleError(f"(chunk, stage) that reduce: {reduced}, and not every chunk once where it is")
    tying = {stage for stage, actions in enumerate(schedule.stages) for a in actions if a.kind == "tie"}
    if tying and tying != {schedule.placement[0], schedule.placement[-1]}:
        raise ScheduleError(f"stages that tie: {sorted(tying)}, and not the first chunk's and the last's")


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


# ------------------------------------------------------------------------------------------------------------- replay


@dataclass(frozen=True, slots=True)
class Timed:
    """One action of one stage, and when it ran."""

    stage: int
    action: Action
    start: float
    end: float


def replay(schedule: Schedule, duration: Callable[[int, Action], float]) -> list[Timed]:
    """Run the plan as if each stage had a device of its own, by the executor's own rules of waiting.

    A receive waits for its message. A send hands its message over and goes on, but first waits until the message
    before it, of the same flow to the same stage, was received: so at most one is held back for each.
    `duration(stage, action)` is how long an action takes; a send's is the time its message is under way.
    Raises `ScheduleError` if the stages end up waiting for each other.
    """
    clock = [0.0] * len(schedule.stages)
    position = [0] * len(schedule.stages)
    arrived: dict[tuple[int, int, Flow], float] = {}  # message → when it is there to be received
    received: dict[tuple[int, int, Flow], float] = {}  # message → when its receiver took it
    held: dict[tuple[int, int, Flow], tuple[int, int, Flow]] = {}  # (from, to, flow) → the last message sent
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
            channel = (stage, action.peer, action.flow)
            if channel in held and held[channel] not in received:
                return None
            end = max(start, received[held[channel]]) if channel in held else start
            held[channel] = (action.chunk + (1 if action.flow == "activation" else -1), action.microbatch, action.flow)
            arrived[held[channel]] = end + duration(stage, action)
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
