"""Many schedules simulated at once, for times alone: what `engine.schedule.replay` does for one, by the same rules of waiting.

`replay` goes through one schedule action by action, and says of each when it ran and why then. The planner asks for the length of
very many. For these, who waits for whom is found in arrays, once for a schedule; and a run is one loop, in which every stage of
every schedule that can takes its next step.
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
from engine.schedule.waiting import NOTHING, awaited
from engine.spec import LayoutSpec, ScheduleName

_KEPT = 256  # simulations, the latest
_FLOWS: dict[Kind, Flow] = {"F": "activation", "B": "gradient", "I": "gradient"}
Whole = NDArray[Any]  # integers


class SimulatedPipeline(NamedTuple):
    """What a run found, in the unit of the durations."""

    clocks: tuple[float, ...]  # when each stage is through with its passes, messages and reductions
    pipeline: float  # from the first pass's start to the last one's end
    busy: float  # what all stages together spend on passes


@dataclass(frozen=True)
class PipelineSimulation:
    """One schedule with its microbatches, as steps, stage by stage. (steps,) each

    A step is a pass, which also takes in the message that it needs, a message handed on, or a chunk's reduction. Step 0 is of no
    stage, and done: what need not wait waits for it. The last of a stage waits for itself: there the stage stops.
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


def simulate_all(runs: Sequence[tuple[PipelineSimulation, Durations, bool]]) -> list[SimulatedPipeline]:
    """Each with its durations, and with its chunks reduced over dp or not.

    Stages slowed by hand and passes that differ are not known here. Raises `ScheduleError` where the stages end up waiting for
    each other.
    """
    pipelines, times = [one for one, _, _ in runs], [one.times(durations, reduces) for one, durations, reduces in runs]
    starts = np.cumsum([0, *(len(one.waits) for one in pipelines)])

    def joined(name: str) -> Whole:
        """Numbers of steps, with those of one schedule behind those of the one before."""
        return np.concatenate([getattr(one, name) + start for one, start in zip(pipelines, starts, strict=False)])

    waits, at, lasts = joined("waits"), joined("firsts"), joined("lasts")
    takes, travels = (np.concatenate([own[i] for own in times]) for i in range(2))
    seen = np.full(len(waits), -1.0)  # when others see each step; −1 before
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
    of_stages = np.split(clocks, np.cumsum([len(one.firsts) for one in pipelines])[:-1])
    return [
        SimulatedPipeline(tuple(own.tolist()), float(ends[one.passes + start].max()), busy)
        for one, start, own, (_, _, busy) in zip(pipelines, starts, of_stages, times, strict=False)
    ]


@lru_cache(maxsize=_KEPT)
def pipeline_simulation(name: ScheduleName, pp: int, microbatches: int, chunks: int) -> PipelineSimulation:
    return _Steps(name, pp, microbatches, chunks).simulation()


class _Steps:
    """From a schedule's passes to its steps. Passes stand one stage behind the other, and so do steps."""

    def __init__(self, name: ScheduleName, pp: int, microbatches: int, chunks: int) -> None:
        self.pp, self.microbatches = pp, microbatches
        self.place = np.array(LayoutSpec(pp=pp, schedule=name, chunks=chunks).placement)
        self.held = messages_held(name, pp, microbatches)
        self.kind, self.chunk, self.microbatch, self.stage = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
        self.forward, self.weights = self.kind == KINDS.index("F"), self.kind == KINDS.index("W")
        self.receives, self.sends = self._beside(-1) != NOTHING, self._beside(1) != NOTHING
        self.reduced = self._reduced()
        last = np.append(self.stage[1:] != self.stage[:-1], True)
        steps = np.cumsum(np.append(1, 1 + self.sends + self.reduced + last))
        self.step, self.steps = steps[:-1], int(steps[-1])  # the first of each pass, and how many there are
        self.lasts = steps[1:][last] - 1  # of each stage

    def _beside(self, ahead: int) -> Whole:
        """The stage that a pass's message goes to (1) or comes from (−1); `NOTHING` without one, as within a stage."""
        there = np.pad(self.place, 1, constant_values=NOTHING)[1 + self.chunk + np.where(self.forward, ahead, -ahead)]
        return np.where(self.weights | (there == self.place[self.chunk]), NOTHING, there)

    def _reduced(self) -> NDArray[np.bool_]:
        """Behind which passes a chunk is reduced: its last backward, or the last that hands a gradient on."""
        some = np.flatnonzero(~self.forward & (self.sends | (self.kind != KINDS.index("I"))))
        found = np.zeros(len(self.kind), np.bool_)
        last = np.zeros(len(self.place), np.int64)
        np.maximum.at(last, self.chunk[some], some)
        found[last] = True
        return found

    def simulation(self) -> PipelineSimulation:
        chunks, reduced = len(self.place), self.reduced
        code = self.kind * chunks + self.chunk
        counts = np.bincount(code)
        first = np.full(len(counts), len(self.kind))
        first[code[::-1]] = np.arange(len(self.kind))[::-1]  # of several, what is written last stays
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
        return PipelineSimulation(
            chunks, self._waits(), takes, travels, kinds, tuple(counts[codes].tolist()), firsts, self.lasts, self.step
        )

    def _waits(self) -> Whole:
        """As `replay` has it, but that a pass takes its message in itself. A message is named by the chunk that needs it."""
        taken, handed, way = np.full((3, self.steps), NOTHING)
        chunk = self.chunk + np.where(self.forward, 1, -1)
        message, other = ((c * self.microbatches + self.microbatch) * 2 + ~self.forward for c in (self.chunk, chunk))
        taken[self.step[self.receives]] = message[self.receives]
        sent = self.step[self.sends] + 1
        handed[sent] = other[self.sends]
        way[sent] = ((self.stage * self.pp + self._beside(1)) * 2 + self.forward)[self.sends]
        waits = np.maximum(awaited(taken, handed, way, self.held), 0)
        waits[self.lasts] = self.lasts
        return waits.astype(np.int32)
