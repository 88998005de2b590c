"""One stage's step without the middle of its repetitions. Its length does not grow with stages or microbatches.

With 1F1B and 65,536 microbatches a stage runs the same pair of passes 65,000 times. A sum over the actions needs only a few of
them, and the number of those that were left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.schedule.actions import Action, Kind
from engine.schedule.orders import script
from engine.schedule.plans import stage_plan, with_transfers
from engine.spec import SCHEDULE_FACTS, LayoutSpec

SHORT = tuple(name for name, facts in SCHEDULE_FACTS.items() if facts.plain)  # the schedules that can be shortened
_EDGE = 4  # repetitions that are kept at either end, so that ZeRO's first and last reductions are among them


class LeftOut(NamedTuple):
    """After `actions[start:stop]`, which are one repetition, `times` more of them are left out."""

    start: int
    stop: int
    times: int


@dataclass(frozen=True)
class Short:
    """A shortened step of a stage. Microbatches keep their numbers. `microbatches`: how many are left."""

    actions: tuple[Action, ...]
    microbatches: int
    left_out: tuple[LeftOut, ...]


def short(layout: LayoutSpec, stage: int, microbatches: int, tied: bool = True) -> Short:
    """The shortened step of a stage. The layout's schedule must be one of `SHORT`."""
    placement = layout.placement
    order: list[Action] = []
    left_out: list[LeftOut] = []
    done: dict[Kind, int] = {"F": 0, "B": 0}
    written = 0  # entries, transfers included
    for kinds, times in script(layout.schedule, layout.pp, stage, microbatches):
        cut = times > 2 * _EDGE
        for repeat in (*range(_EDGE), *range(times - _EDGE, times)) if cut else range(times):
            actions = [Action(kind, stage, done[kind] + repeat) for kind in kinds]
            order += actions
            start, written = written, written + sum(len(with_transfers(action, placement)) for action in actions)
            if cut and repeat == _EDGE - 1:
                left_out.append(LeftOut(start, written, times - 2 * _EDGE))
        for kind in kinds:
            done[kind] += times
    left = sum(action.kind == "B" for action in order)
    return Short(stage_plan(layout, placement, stage, order, tied), left, tuple(left_out))
