"""Which of a stage's actions memory is worked out from, and what they add up to in their order.

A step may have very many: of 1,024 stages and 65,536 microbatches, hundreds of millions. Most repeat what was there already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.predict.memory.blocks import Change, Counts
from engine.predict.memory.walk import ActionChanges
from engine.schedule import Action, Schedule, entries
from engine.schedule.orders import enough_microbatches, messages_held, stage_order
from engine.schedule.plans import stage_plan
from engine.schedule.short import SHORT, LeftOut, short
from engine.spec import LayoutSpec, RequestError, RunSpec, sentence

# Passes and messages of a schedule: up to so many each is gone through. Of more, the middle of what repeats is left out where the
# order is simple; elsewhere, from the most on, microbatches that bring nothing new. If more are left, it is not worked out.
ALL_OF, MOST = 20_000, 1_000_000


@dataclass(frozen=True)
class StageActions:
    """How a step is gone through: all its `microbatches`, those that bring something new, or `short`: see `schedule.short`."""

    layout: LayoutSpec
    microbatches: int
    fewer: int  # microbatches that are left out
    short: bool
    tied: bool

    def of(self, stage: int) -> tuple[Schedule, tuple[LeftOut, ...]]:
        """A stage's own part of the schedule, and what is left out in it."""
        layout, m = self.layout, self.microbatches
        placement, left_out = layout.placement, tuple[LeftOut, ...]()
        if self.short:
            found = short(layout, stage, m, self.tied)
            actions, count, left_out = found.actions, found.microbatches, found.left_out
        else:
            order = stage_order(layout.schedule, layout.pp, stage, m, layout.chunks)
            actions, count = stage_plan(layout, placement, stage, order, self.tied), m
        held = messages_held(layout.schedule, layout.pp, m)
        return Schedule(layout.schedule, count, placement, ((),) * stage + (actions,), held), left_out

    def named(self, action: Action, rest: Sequence[ActionChanges]) -> Action:
        """The action as it is called in the whole schedule. `rest`: it and what comes after it on its stage.

        Microbatches that bring nothing new are left out between the first ones and the stage's last forward.
        """
        if not self.fewer or action.microbatch < 0 or any(one.action.kind == "F" for one in rest):
            return action
        return replace(action, microbatch=action.microbatch + self.fewer)


def stage_actions(spec: RunSpec, all_of: int = ALL_OF, most: int = MOST) -> StageActions:
    """How the step of each stage is gone through. Raises `RequestError` where too much would be left to go through."""
    layout, m, parts = spec.layout, spec.workload.microbatches, spec.model.parts
    if spec.generate.skip_training or entries(layout, m) <= all_of:
        return StageActions(layout, m, 0, False, parts.tied)
    if layout.schedule in SHORT and not parts.encoder:  # what an encoder lends depends on each microbatch's own passes
        return StageActions(layout, m, 0, True, parts.tied)
    enough = m if entries(layout, m) <= most else _enough(layout, m)
    if (count := entries(layout, enough)) > most:
        raise RequestError(
            sentence(
                "{schedule} with pp={pp}, chunks={chunks} and {microbatches} microbatches has {count} passes and "
                "messages, and memory is computed from at most {most}; reduce one of these",
                schedule=layout.schedule,
                pp=layout.pp,
                chunks=layout.chunks,
                microbatches=f"{enough:,}",
                count=f"{count:,}",
                most=f"{most:,}",
            )
        )
    return StageActions(layout, enough, m - enough, False, parts.tied)


def _enough(layout: LayoutSpec, microbatches: int) -> int:
    """Microbatches after which memory repeats. Two more are gone through, so that it also repeats before a stage's last forward.

    None more where the schedule refuses that number, as it does where rounds have to stay whole.
    """
    enough = int(enough_microbatches(layout.schedule, layout.pp, microbatches))
    more = min(microbatches, enough + 2)
    return more if layout.facts.fits_microbatches(layout.pp, more) else min(microbatches, enough)


def with_left_out(actions: list[ActionChanges], left_out: Sequence[LeftOut]) -> list[ActionChanges]:
    """With an entry for what is left out at each place: the change that it comes to."""
    found, done = list[ActionChanges](), 0
    for start, stop, times in left_out:
        counts: Counts = defaultdict(int)
        for change in (change for one in actions[start:stop] for change in one.changes):
            for kind, count in change.counts.items():
                counts[kind] += times * count
        found += actions[done:stop]
        if any(counts.values()):  # otherwise what comes in one goes in the same
            action = next(m.action for m in actions[start:stop] if m.action.kind in ("F", "B"))
            found.append(ActionChanges(action, (), None, (Change(counts),), times))
        done = stop
    return found + actions[done:]


def in_flight(actions: Sequence[ActionChanges]) -> int:
    """Microbatches whose activations are held while the last of these actions runs, over all chunks."""
    *before, now = actions
    ended = sum(one.times for one in before if one.action.kind in ("B", "W"))
    return sum(one.times for one in before if one.action.kind == "F") + (now.action.kind == "F") - ended


def highest(actions: list[ActionChanges]) -> int:
    """The number of the action with the highest point."""
    best, best_at, now = -1, 0, 0
    for number, one in enumerate(actions):
        for change in one.before:
            now += change.total
        high, net = (one.trace.highest[0], one.trace.net.total) if one.trace is not None else (0, 0)
        after = sum(change.total for change in one.after)
        if now + max(high, net + after) > best:
            best, best_at = now + max(high, net + after), number
        now += net + after
    return best_at
