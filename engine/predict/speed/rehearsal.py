"""A schedule's order put down once, to be run against many clocks: what `engine.schedule.replay` does, for times alone.

Which pass waits for which message is the same whatever the times are. So the order in which everything can be worked out is found
once for a schedule, and a run is one loop over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.durations import Durations
from engine.schedule import Flow, ScheduleError
from engine.schedule.actions import Kind
from engine.schedule.columns import KINDS, columns
from engine.schedule.orders import messages_held, stage_passes
from engine.spec import LayoutSpec, ScheduleName

_KEPT = 256  # rehearsals, the latest
_FLOWS: dict[Kind, Flow] = {"F": "activation", "B": "gradient", "I": "gradient"}
Whole = NDArray[Any]  # integers


class Rehearsed(NamedTuple):
    """What a run found, in the unit of the durations."""

    clocks: tuple[float, ...]  # when each stage is through with its passes, messages and reductions
    pipeline: float  # from the first pass's start to the last one's end
    busy: float  # what all stages together spend on passes


@dataclass(frozen=True)
class Rehearsal:
    """One schedule with its microbatches, as steps in an order in which all can be worked out. (steps,) each

    A step is a pass, a message handed on, or a chunk's reduction. Each waits for its stage's step before, and for one of another
    stage: a pass for the message that it takes in, and a message for an earlier one to be taken in.
    """

    stages: int
    chunks: int
    waits: Whole  # for which step, counted from one; 0 for none
    takes: Whole  # which time: that of `kinds`, then none, then those of the chunks' reductions
    travels: Whole  # whose message is under way: that of `kinds`, then none
    kinds: tuple[tuple[Kind, int], ...]  # of passes by kind and chunk, and how many
    counts: tuple[int, ...]
    stretches: Whole  # stages, and how many steps each does before the next has its turn, (stretches, 2)

    def run(self, durations: Durations, reduces: bool) -> Rehearsed:
        """`reduces`: whether chunks are reduced over dp. Stages slowed by hand and passes that differ are not known here."""
        times = [durations.compute.get(kind, 0.0) for kind in self.kinds]
        reductions = [durations.compute.get(("reduce", c), 0.0) if reduces else 0.0 for c in range(self.chunks)]
        under_way = [durations.messages.get((_FLOWS.get(kind, ""), chunk), 0.0) for kind, chunk in self.kinds]
        takes, travels = np.array([*times, 0.0, *reductions])[self.takes], np.array([*under_way, 0.0])[self.travels]
        clocks, seen = self._seen(takes, travels)
        passes = np.flatnonzero(self.takes < len(times))
        ends = np.array(seen)[1 + passes] + takes[passes]
        return Rehearsed(tuple(clocks), float(ends.max()), sum(n * t for n, t in zip(self.counts, times, strict=True)))

    def _seen(self, takes: NDArray[np.float64], travels: NDArray[np.float64]) -> tuple[list[float], list[float]]:
        """When each stage is through; and when others see each step: where a pass begins, where a message has come."""
        clocks, seen = [0.0] * self.stages, [0.0]
        steps = zip(self.waits.tolist(), takes.tolist(), travels.tolist(), strict=True)
        for stage, count in self.stretches.tolist():
            now = clocks[stage]
            for waited, time, under_way in islice(steps, count):
                other = seen[waited]
                if other > now:
                    now = other
                seen.append(now + under_way)
                now += time
            clocks[stage] = now
        return clocks, seen


@lru_cache(maxsize=_KEPT)
def rehearsal(name: ScheduleName, pp: int, microbatches: int, chunks: int) -> Rehearsal:
    """Raises `ScheduleError` where the stages end up waiting for each other."""
    return _Director(name, pp, microbatches, chunks).rehearse()


class _Director:
    """Goes from stage to stage and lets each do as much as it can, as `replay` does. Passes stand one stage behind the other."""

    def __init__(self, name: ScheduleName, pp: int, microbatches: int, chunks: int) -> None:
        orders = [stage_passes(name, stage, pp, microbatches, chunks) for stage in range(pp)]
        self.pp, self.place = pp, np.array(LayoutSpec(pp=pp, schedule=name, chunks=chunks).placement)
        self.held = messages_held(name, pp, microbatches)
        self.kind, self.chunk, self.microbatch = columns(orders)
        self.lengths = [len(order) for order in orders]
        self.stage = np.repeat(np.arange(pp), self.lengths)
        self.forward, self.weights = self.kind == KINDS.index("F"), self.kind == KINDS.index("W")
        self.nobody = len(self.kind)
        self.source, self.taker = self._at(-1), self._at(1)  # of each pass, whose message it takes in, and for whom its own is
        self.sends = self.taker < self.nobody
        self.reduced = self._reduced()
        steps = np.cumsum(np.append(0, 1 + self.sends + self.reduced))
        self.step, self.steps = steps[:-1], int(steps[-1])  # the first of each pass, and how many there are

    def _at(self, ahead: int) -> Whole:
        """The pass of the same microbatch and direction so many chunks ahead, where that is on another stage; else nobody."""
        there = self.chunk + np.where(self.forward, ahead, -ahead)
        is_one = ~self.weights & (there >= 0) & (there < len(self.place))
        there[~is_one] = 0
        is_one &= self.place[there] != self.place[self.chunk]
        some = np.flatnonzero(~self.weights)
        number = np.zeros((2, len(self.place), int(self.microbatch.max()) + 1), np.int64)
        number[self.forward[some] * 1, self.chunk[some], self.microbatch[some]] = some
        return np.where(is_one, number[self.forward * 1, there, self.microbatch], self.nobody)

    def _reduced(self) -> NDArray[np.bool_]:
        """Behind which passes a chunk is reduced: its last backward, or the last that hands a gradient on."""
        some = np.flatnonzero(~self.forward & (self.sends | (self.kind != KINDS.index("I"))))
        found = np.zeros(self.nobody, np.bool_)
        last = np.zeros(len(self.place), np.int64)
        np.maximum.at(last, self.chunk[some], some)
        found[last] = True
        return found

    def rehearse(self) -> Rehearsal:
        chunks, steps = len(self.place), self.steps
        codes, first, of, counts = np.unique(self.kind * chunks + self.chunk, True, True, True)
        order = np.argsort(first)  # kinds as they come
        kind_of = np.argsort(order)[of]
        kinds = tuple((KINDS[code // chunks], code % chunks) for code in codes[order].tolist())
        takes, travels = np.full((2, steps), len(kinds))
        takes[self.step] = kind_of
        reduced = self.reduced
        takes[(self.step + 1 + self.sends)[reduced]] += 1 + self.chunk[reduced]
        travels[self.step[self.sends] + 1] = kind_of[self.sends]
        waits = self._waits()
        stage, start, stop = np.array(self._stretches(waits.tolist())).T
        count = stop - start
        done = np.arange(steps) + np.repeat(start - count.cumsum() + count, count)  # the steps, in that order
        place = np.empty(steps + 1, np.int32)
        place[done], place[steps] = 1 + np.arange(steps), 0
        return Rehearsal(
            self.pp, chunks, place[waits[done]], takes[done].astype(np.int32), travels[done].astype(np.int32), kinds,
            tuple(counts[order].tolist()), np.column_stack([stage, count]).astype(np.int32),
        )  # fmt: skip

    def _waits(self) -> Whole:
        """A message is handed over when that so many before it, by the same way, has been taken in."""
        waits = np.full(self.steps, self.steps)
        fed = self.source < self.nobody
        waits[self.step[fed]] = self.step[self.source[fed]] + 1
        senders = np.flatnonzero(self.sends)
        way = (self.stage[senders] * self.pp + self.stage[self.taker[senders]]) * 2 + self.forward[senders]
        order = np.argsort(way, kind="stable")
        senders, way = senders[order], way[order]
        same = np.flatnonzero(way[self.held :] == way[: -self.held])
        waits[self.step[senders[same + self.held]] + 1] = self.step[self.taker[senders[same]]]
        return waits

    def _stretches(self, waits: list[int]) -> list[tuple[int, int, int]]:
        """In an order in which all can be worked out: a stage, its first step, and the one behind its last."""
        bounds = [*self.step[np.cumsum([0, *self.lengths[:-1]])].tolist(), self.steps]
        position, found, moved = bounds[:-1], list[tuple[int, int, int]](), True
        done = bytearray(self.steps + 1)
        done[self.steps] = 1
        while moved:
            moved = False
            for stage, start in enumerate(position):
                now, stop = start, bounds[stage + 1]
                while now < stop and done[waits[now]]:
                    now += 1
                if now > start:
                    done[start:now] = bytes([1]) * (now - start)
                    found.append((stage, start, now))
                    position[stage], moved = now, True
        if position != bounds[1:]:
            raise ScheduleError("deadlock: the stages wait for each other")
        return found
