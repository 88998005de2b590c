"""A schedule's order put down once, to be run against many clocks: what `engine.schedule.replay` does, for times alone.

Which pass waits for which message is the same whatever the times are, and is found once for a schedule. A run is one loop in
which every stage that can takes its next step; and many schedules run in the same loop, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.durations import Durations
from engine.schedule import Flow, ScheduleError
from engine.schedule.actions import Kind
from engine.schedule.orders import KINDS, messages_held, passes
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
    """One schedule with its microbatches, as steps, stage by stage. (steps,) each

    A step is a pass, a message handed on, or a chunk's reduction. Each waits for its stage's step before, and for one of another
    stage: a pass for the message that it takes in, and a message for an earlier one to be taken in. Step 0 is of no stage, and
    done: what need not wait waits for it. The last of a stage waits for itself: there the stage stops.
    """

    chunks: int
    waits: Whole  # for which step
    takes: Whole  # which time: that of `kinds`, then none, then those of the chunks' reductions
    travels: Whole  # whose message is under way: that of `kinds`, then none
    kinds: tuple[tuple[Kind, int], ...]  # of passes by kind and chunk, and how many
    counts: tuple[int, ...]
    firsts: Whole  # of each stage
    lasts: Whole
    passes: Whole  # which steps are passes

    def times(self, durations: Durations, reduces: bool) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """How long each step takes, and how long its message is under way, (steps,) both; and all passes together."""
        times = [durations.compute.get(kind, 0.0) for kind in self.kinds]
        reductions = [durations.compute.get(("reduce", c), 0.0) if reduces else 0.0 for c in range(self.chunks)]
        under_way = [durations.messages.get((_FLOWS.get(kind, ""), chunk), 0.0) for kind, chunk in self.kinds]
        takes, travels = np.array([*times, 0.0, *reductions])[self.takes], np.array([*under_way, 0.0])[self.travels]
        return takes, travels, sum(n * t for n, t in zip(self.counts, times, strict=True))


def rehearse(plays: Sequence[tuple[Rehearsal, Durations, bool]]) -> list[Rehearsed]:
    """Runs each with its durations, and with its chunks reduced over dp or not.

    Stages slowed by hand and passes that differ are not known here. Raises `ScheduleError` where the stages end up waiting for
    each other.
    """
    rehearsals, times = [one for one, _, _ in plays], [one.times(durations, reduces) for one, durations, reduces in plays]
    starts = np.cumsum([0, *(len(one.waits) for one in rehearsals)])

    def joined(name: str) -> Whole:
        """Numbers of steps, with those of one schedule behind those of the one before."""
        return np.concatenate([getattr(one, name) + start for one, start in zip(rehearsals, starts, strict=False)])

    waits, at, lasts = joined("waits"), joined("firsts"), joined("lasts")
    takes, travels = (np.concatenate([own[i] for own in times]) for i in range(2))
    seen = np.full(len(waits), -1.0)  # when others see each step, where a pass begins and where a message has come; −1 before
    seen[starts[:-1]] = 0.0
    clocks = np.zeros(len(at))
    while np.count_nonzero(ready := (other := seen.take(waits.take(at))) >= 0):
        start = np.maximum(clocks, other)
        clocks = np.where(ready, start + takes.take(at), clocks)
        seen[at] = np.where(ready, start + travels.take(at), -1.0)
        at += ready
    if (at < lasts).any():
        raise ScheduleError("deadlock: the stages wait for each other")
    ends = seen + takes
    of_stages = np.split(clocks, np.cumsum([len(one.firsts) for one in rehearsals])[:-1])
    return [
        Rehearsed(tuple(own.tolist()), float(ends[one.passes + start].max()), busy)
        for one, start, own, (_, _, busy) in zip(rehearsals, starts, of_stages, times, strict=False)
    ]


@lru_cache(maxsize=_KEPT)
def rehearsal(name: ScheduleName, pp: int, microbatches: int, chunks: int) -> Rehearsal:
    return _Director(name, pp, microbatches, chunks).rehearsal()


class _Director:
    """Says who waits for whom. Passes stand one stage behind the other, and so do steps."""

    def __init__(self, name: ScheduleName, pp: int, microbatches: int, chunks: int) -> None:
        self.pp, self.place = pp, np.array(LayoutSpec(pp=pp, schedule=name, chunks=chunks).placement)
        self.held = messages_held(name, pp, microbatches)
        self.kind, self.chunk, self.microbatch, self.stage = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
        self.forward, self.weights = self.kind == KINDS.index("F"), self.kind == KINDS.index("W")
        self.nobody = len(self.kind)
        some = np.flatnonzero(~self.weights)
        self.number = np.full((2, len(self.place) + 2, microbatches), self.nobody)  # of F and of what hands gradients on
        self.number[self.forward[some] * 1, 1 + self.chunk[some], self.microbatch[some]] = some
        self.source, self.taker = self._at(-1), self._at(1)  # of each pass, whose message it takes in, and for whom its own is
        self.sends = self.taker < self.nobody
        self.reduced = self._reduced()
        last = np.append(self.stage[1:] != self.stage[:-1], True)
        steps = np.cumsum(np.append(1, 1 + self.sends + self.reduced + last))
        self.step, self.steps = steps[:-1], int(steps[-1])  # the first of each pass, and how many there are
        self.lasts = steps[1:][last] - 1  # of each stage

    def _at(self, ahead: int) -> Whole:
        """The pass of the same microbatch and direction so many chunks ahead, where that is on another stage; else nobody."""
        there = 1 + self.chunk + np.where(self.forward, ahead, -ahead)
        elsewhere = ~self.weights & (np.pad(self.place, 1, constant_values=-1)[there] != self.place[self.chunk])
        return np.where(elsewhere, self.number[self.forward * 1, there, self.microbatch], self.nobody)

    def _reduced(self) -> NDArray[np.bool_]:
        """Behind which passes a chunk is reduced: its last backward, or the last that hands a gradient on."""
        some = np.flatnonzero(~self.forward & (self.sends | (self.kind != KINDS.index("I"))))
        found = np.zeros(self.nobody, np.bool_)
        last = np.zeros(len(self.place), np.int64)
        np.maximum.at(last, self.chunk[some], some)
        found[last] = True
        return found

    def rehearsal(self) -> Rehearsal:
        chunks, reduced = len(self.place), self.reduced
        code = self.kind * chunks + self.chunk
        counts = np.bincount(code)
        first = np.full(len(counts), self.nobody)
        first[code[::-1]] = np.arange(self.nobody)[::-1]  # of several, what is written last stays
        codes = np.argsort(first)[: np.count_nonzero(counts)]  # kinds as they come
        kinds = tuple(
            (KINDS[kind], chunk) for kind, chunk in zip(*(some.tolist() for some in np.divmod(codes, chunks)), strict=True)
        )
        number = np.empty_like(counts)
        number[codes] = np.arange(len(codes))
        kind_of = number[code]
        takes, travels = np.full((2, self.steps), len(kinds), np.int32)
        takes[self.step] = kind_of
        takes[(self.step + 1 + self.sends)[reduced]] += 1 + self.chunk[reduced]
        travels[self.step[self.sends] + 1] = kind_of[self.sends]
        firsts = np.append(1, self.lasts[:-1] + 1)
        return Rehearsal(
            chunks, self._waits(), takes, travels, kinds, tuple(counts[codes].tolist()), firsts, self.lasts, self.step
        )

    def _waits(self) -> Whole:
        """A message is handed over when that so many before it, by the same way, has been taken in."""
        waits = np.zeros(self.steps, np.int32)
        waits[self.lasts] = self.lasts
        fed = self.source < self.nobody
        waits[self.step[fed]] = self.step[self.source[fed]] + 1
        senders = np.flatnonzero(self.sends)
        way = (self.stage[senders] * self.pp + self.stage[self.taker[senders]]) * 2 + self.forward[senders]
        order = np.argsort(way, kind="stable")
        senders, way = senders[order], way[order]
        same = np.flatnonzero(way[self.held :] == way[: -self.held])
        waits[self.step[senders[same + self.held]] + 1] = self.step[self.taker[senders[same]]]
        return waits
