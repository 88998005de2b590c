"""The simulation of many schedules at once. It gives their length only, by the same rules of waiting as `engine.schedule.replay`.

`replay` goes through one schedule action by action, and gives the time of each and its cause. The planner needs only the length
of very many schedules. For these, the dependencies are found as arrays, once for each schedule. One loop then simulates all
schedules: in each iteration, every stage that does not wait takes its next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.schedule import Flow, ScheduleError
from engine.schedule.actions import Kind
from engine.schedule.orders import KINDS, messages_held, passes
from engine.schedule.timeline import Durations
from engine.schedule.waiting import NOTHING, dependencies
from engine.spec import LayoutSpec, ScheduleName

_KEPT = 256  # simulations in the cache
_FLOWS: dict[Kind, Flow] = {"F": "activation", "B": "gradient", "I": "gradient"}
Whole = NDArray[Any]  # integers


class SimulatedPipeline(NamedTuple):
    """The times of one simulated schedule, in the unit of its durations."""

    clocks: tuple[float, ...]  # when each stage has ended its passes, messages and reductions
    pipeline: float  # from the start of the first pass to the end of the last
    busy: float  # the sum of all passes of all stages


@dataclass(frozen=True)
class PipelineSimulation:
    """One schedule for a number of microbatches, as steps, stage by stage.

    A step is a pass, a send, or a chunk's reduction. A pass also receives the message that it needs. Step 0 belongs to no stage
    and is done from the start; a step without a dependency depends on it. The last step of a stage depends on itself, so the
    stage stops there.
    """

    chunks: int
    waits: Whole  # the step that each step depends on, (steps,)
    takes: Whole  # the index of its duration: in `kinds`; then one for no time; then one for each chunk's reduction, (steps,)
    travels: Whole  # the index of its message's duration: in `kinds`, for the pass that it follows; then one for none, (steps,)
    kinds: tuple[tuple[Kind, int], ...]  # passes by kind and chunk
    counts: tuple[int, ...]  # how many passes there are of each
    firsts: Whole  # the first step of each stage, (stages,)
    lasts: Whole  # the last step of each stage, (stages,)
    passes: Whole  # the steps that are passes, (passes,)

    def times(self, durations: Durations, reduces: bool) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """The duration of each step, (steps,); the duration of its message, (steps,); the sum of all passes."""
        times = [durations.compute.get(kind, 0.0) for kind in self.kinds]
        reductions = [durations.compute.get(("reduce", c), 0.0) if reduces else 0.0 for c in range(self.chunks)]
        under_way = [durations.messages.get((_FLOWS.get(kind, ""), chunk), 0.0) for kind, chunk in self.kinds]
        takes, travels = np.array([*times, 0.0, *reductions])[self.takes], np.array([*under_way, 0.0])[self.travels]
        return takes, travels, sum(n * t for n, t in zip(self.counts, times, strict=True))


def simulate_all(runs: Sequence[tuple[PipelineSimulation, Durations, bool]]) -> list[SimulatedPipeline]:
    """Simulate each schedule with its durations. The third entry says whether chunks are reduced over dp.

    Ignores `slow` and `each` of durations. Raises `ScheduleError` for a deadlock.
    """
    pipelines, times = [one for one, _, _ in runs], [one.times(durations, reduces) for one, durations, reduces in runs]
    starts = np.cumsum([0, *(len(one.waits) for one in pipelines)])

    def joined(name: str) -> Whole:
        """The step numbers of all schedules in one array. A schedule's steps are numbered after those of the one before it."""
        return np.concatenate([getattr(one, name) + start for one, start in zip(pipelines, starts, strict=False)])

    waits, at, lasts = joined("waits"), joined("firsts"), joined("lasts")
    takes, travels = (np.concatenate([own[i] for own in times]) for i in range(2))
    seen = np.full(len(waits), -1.0)  # when each step releases the steps that depend on it; −1: not yet
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
    """Makes the steps of a schedule from its passes. Both are in the order of stages. Attributes are (passes,)."""

    def __init__(self, name: ScheduleName, pp: int, microbatches: int, chunks: int) -> None:
        self.pp, self.microbatches = pp, microbatches
        self.place = np.array(LayoutSpec(pp=pp, schedule=name, chunks=chunks).placement)
        self.held = messages_held(name, pp, microbatches)
        self.kind, self.chunk, self.microbatch, self.stage = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
        self.forward, self.weights = self.kind == KINDS.index("F"), self.kind == KINDS.index("W")
        self.receives, self.sends = self._peer_stage(-1) != NOTHING, self._peer_stage(1) != NOTHING
        self.reduced = self._reduced()
        last = np.append(self.stage[1:] != self.stage[:-1], True)
        steps = np.cumsum(np.append(1, 1 + self.sends + self.reduced + last))
        self.step, self.steps = steps[:-1], int(steps[-1])  # the step of each pass; the number of steps
        self.lasts = steps[1:][last] - 1  # the last step of each stage, (stages,)

    def _peer_stage(self, ahead: int) -> Whole:
        """The stage that each pass sends to (1) or receives from (−1). `NOTHING` if there is no message between two stages."""
        peer = np.pad(self.place, 1, constant_values=NOTHING)[1 + self.chunk + np.where(self.forward, ahead, -ahead)]
        return np.where(self.weights | (peer == self.place[self.chunk]), NOTHING, peer)

    def _reduced(self) -> NDArray[np.bool_]:
        """Whether a chunk is reduced after a pass: its last backward, or its last pass that sends a gradient."""
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
        first[code[::-1]] = np.arange(len(self.kind))[::-1]  # reversed: the first pass of a kind is written last, and stays
        codes = np.argsort(first)[: np.count_nonzero(counts)]  # kinds in the order of their first pass
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
        """The step that each step depends on, (steps,). As in `replay`, but a pass receives its own message.

        A message is numbered by the chunk that receives it.
        """
        received, sent, channel = np.full((3, self.steps), NOTHING)
        receiver = self.chunk + np.where(self.forward, 1, -1)
        own, other = ((c * self.microbatches + self.microbatch) * 2 + ~self.forward for c in (self.chunk, receiver))
        received[self.step[self.receives]] = own[self.receives]
        sends = self.step[self.sends] + 1
        sent[sends] = other[self.sends]
        channel[sends] = ((self.stage * self.pp + self._peer_stage(1)) * 2 + self.forward)[self.sends]
        waits = np.maximum(dependencies(received, sent, channel, self.held), 0)
        waits[self.lasts] = self.lasts
        return waits.astype(np.int32)
