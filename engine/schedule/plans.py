"""The whole step of every stage: its order of passes, with the communication and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engine.schedule.actions import Action, Flow, Schedule
from engine.schedule.orders import compute_order, messages_held, splits
from engine.spec import LayoutSpec


def plan(layout: LayoutSpec, microbatches: int, tied: bool = True) -> Schedule:
    """The whole step of every stage: compute, sends and receives, reduction over dp, tie, step, gather.

    `tied`: the model's embedding and head share their weights, so the first and the last chunk must add up their gradients.
    """
    orders = compute_order(layout.schedule, layout.pp, microbatches, layout.chunks)
    placement = layout.placement
    stages = tuple(stage_plan(layout, placement, stage, order, tied) for stage, order in enumerate(orders))
    held = messages_held(layout.schedule, layout.pp, microbatches)
    return Schedule(layout.schedule, microbatches, placement, stages, held)


def entries(layout: LayoutSpec, microbatches: int) -> int:
    """The most passes and messages that a plan has, over all stages. Its time and memory are proportional to it."""
    placement = layout.placement
    cuts = sum(one != other for one, other in pairwise(placement))
    return microbatches * ((3 if splits(layout.schedule) else 2) * len(placement) + 4 * cuts)


def stage_plan(
    layout: LayoutSpec, placement: Sequence[int], stage: int, order: Sequence[Action], tied: bool = True
) -> tuple[Action, ...]:
    """The whole step of one stage. `order`: its passes. `placement`: the layout's."""
    actions = [entry for action in order for entry in with_transfers(action, placement)]
    if layout.mesh.replicas > 1 or layout.sequence_parallel:
        actions = _with_reduction(actions)
    if tied and len(placement) > 1 and stage in (placement[0], placement[-1]):
        actions.append(Action("tie"))
    actions.append(Action("step"))
    if layout.zero in (1, 2):
        actions.append(Action("gather"))
    return tuple(actions)


def with_transfers(action: Action, placement: Sequence[int]) -> list[Action]:
    """The action, with the receive that it needs before it and the send of its result after it. None within one stage."""
    forward = action.kind == "F"
    flow: Flow = "activation" if forward else "gradient"
    here = placement[action.chunk]
    found: list[Action] = [action]
    for kind, step in (("recv", -1), ("send", 1)):
        other = action.chunk + (step if forward else -step)
        if action.kind != "W" and 0 <= other < len(placement) and placement[other] != here:
            entry = Action(kind, action.chunk, action.microbatch, flow, placement[other])  # type: ignore[arg-type]
            found = [entry, *found] if kind == "recv" else [*found, entry]
    return found


def _with_reduction(actions: list[Action]) -> list[Action]:
    """The actions with a `reduce` for each chunk after its last backward. The send after that comes first: others wait for it."""
    last = {a.chunk: i for i, a in enumerate(actions) if a.kind in ("B", "W") or (a.kind == "send" and a.flow == "gradient")}
    ends = {i: chunk for chunk, i in last.items()}
    out: list[Action] = []
    for i, action in enumerate(actions):
        out.append(action)
        if i in ends:
            out.append(Action("reduce", ends[i]))
    return out
