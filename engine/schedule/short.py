"""One stage's step with the middle of what repeats left out: what is left does not grow with stages or microbatches.

Of 1F1B with 65,536 microbatches a stage does the same pair of passes 65,000 times. Whoever adds up what the actions change needs
a few of them, and how many are like these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.schedule.actions import Action, Kind
from engine.schedule.orders import script
from engine.schedule.plans import stage_plan, with_transfers
from engine.spec import SCHEDULE_FACTS, LayoutSpec

SHORT = tuple(name for name, facts in SCHEDULE_FACTS.items() if facts.plain)  # all that is told here
_EDGE = 4  # repeats that are left at either end; with two more, ZeRO's first and last reductions are among them


class LeftOut(NamedTuple):
    """Behind `actions[start:stop]`, which are one repeat, the like of them `times` more."""

    start: int
    stop: int
    times: int


@dataclass(frozen=True)
class Short:
    """What is left of a stage's step; microbatches keep their numbers, and `microbatches` is how many are left."""

    actions: tuple[Action, ...]
    microbatches: int
    left_out: tuple[LeftOut, ...]


def short(layout: LayoutSpec, stage: int, microbatches: int, tied: bool = True) -> Short:
    """Of a layout whose schedule is one of `SHORT`."""
    placement = layout.placement
    order: list[Action] = []
    left_out: list[LeftOut] = []
    done: dict[Kind, int] = {"F": 0, "B": 0}
    written = 0  # entries, transfers included
    for kinds, often in script(layout.schedule, layout.pp, stage, microbatches):
        cut = often > 2 * _EDGE
        for repeat in (*range(_EDGE), *range(often - _EDGE, often)) if cut else range(often):
            actions = [Action(kind, stage, done[kind] + repeat) for kind in kinds]
            order += actions
            start, written = written, written + sum(len(with_transfers(action, placement)) for action in actions)
            if cut and repeat == _EDGE - 1:
                left_out.append(LeftOut(start, written, often - 2 * _EDGE))
        for kind in kinds:
            done[kind] += often
    left = sum(action.kind == "B" for action in order)
    return Short(stage_plan(layout, placement, stage, order, tied), left, tuple(left_out))
