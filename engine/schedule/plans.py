"""The whole step of every stage: an order of compute with everything put in that it needs around it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.schedule.actions import Action, Flow, Schedule
from engine.schedule.orders import compute_order, messages_held
from engine.spec import LayoutSpec


def plan(layout: LayoutSpec, microbatches: int, tied: bool = True) -> Schedule:
    """The whole step of every stage: compute, sends and receives, reduction over dp, tie, step, gather.

    `tied`: the model's embedding and head share their weights, so the first and last chunk must agree on its gradient.
    """
    orders = compute_order(layout.schedule, layout.pp, microbatches, layout.chunks)
    placement = layout.placement
    stages = []
    for stage, order in enumerate(orders):
        actions = [entry for action in order for entry in _with_transfers(action, placement)]
        if layout.dp > 1 or layout.sequence_parallel:
            actions = _with_reduction(actions)
        if tied and len(placement) > 1 and stage in (placement[0], placement[-1]):
            actions.append(Action("tie"))
        actions.append(Action("step"))
        if layout.zero in (1, 2):
            actions.append(Action("gather"))
        stages.append(tuple(actions))
    held = messages_held(layout.schedule, layout.pp, microbatches)
    return Schedule(layout.schedule, microbatches, placement, tuple(stages), held)


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
