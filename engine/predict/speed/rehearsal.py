"""A schedule's order put down once, to be run against many clocks: what `engine.schedule.replay` does, for times alone.

Which pass waits for which message is the same whatever the times are. So the order in which everything can be worked out is found
once for a schedule, and a run is one loop over it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from engine.predict.durations import Durations
from engine.schedule import Action, Flow, ScheduleError
from engine.schedule.actions import Kind
from engine.schedule.orders import compute_order, messages_held
from engine.spec import LayoutSpec, ScheduleName


class Rehearsed(NamedTuple):
    """What a run found, in the unit of the durations."""

    clocks: tuple[float, ...]  # when each stage is through with its passes, messages and reductions
    pipeline: float  # from the first pass's start to the last one's end
    busy: float  # what all stages together spend on passes


class _Operation(NamedTuple):
    """A pass, a message handed over, or both one behind the other. Numbers are of passes; the one beyond the last is nobody's."""

    stage: int
    time: int  # which pass's duration it takes
    source: int  # whose message it waits for
    received: int  # the pass that takes a message in
    sent: int  # the pass that hands a message over
    awaited: int  # whose taking in the message handed over waits for
    reduces: int  # the chunk that is reduced afterwards


@dataclass(frozen=True)
class Rehearsal:
    """One schedule with its microbatches. The last of `passes` and of `chunks` stands for nothing."""

    stages: int
    chunks: int
    operations: tuple[_Operation, ...]
    kinds: tuple[tuple[Kind, int], ...]  # of passes by kind and chunk, and how many
    counts: tuple[int, ...]
    kind_of: tuple[int, ...]  # the kind of each pass

    def run(self, durations: Durations, reduces: bool) -> Rehearsed:
        """`reduces`: whether chunks are reduced over dp. Stages slowed by hand and passes that differ are not known here."""
        times = [durations.compute.get(kind, 0.0) for kind in self.kinds] + [0.0]
        reductions = [durations.compute.get(("reduce", c), 0.0) if reduces else 0.0 for c in range(self.chunks)] + [0.0]
        flows: dict[Kind, Flow] = {"F": "activation", "B": "gradient", "I": "gradient"}
        under_way = [durations.messages.get((flows.get(kind, ""), chunk), 0.0) for kind, chunk in self.kinds] + [0.0]
        clocks = [0.0] * self.stages
        nobody = len(self.kind_of)
        received, arrived, last, kind_of = [0.0] * (nobody + 1), [0.0] * (nobody + 1), 0.0, (*self.kind_of, -1)
        for stage, time, source, taken, sent, awaited, reduced in self.operations:
            now = clocks[stage]
            if source != nobody and arrived[source] > now:
                now = arrived[source]
            received[taken] = now
            now += times[kind_of[time]]
            if now > last and time != nobody:
                last = now
            if sent != nobody:
                if awaited != nobody and received[awaited] > now:
                    now = received[awaited]
                arrived[sent] = now + under_way[kind_of[sent]]
            clocks[stage] = now + reductions[reduced]
        return Rehearsed(tuple(clocks), last, sum(n * t for n, t in zip(self.counts, times, strict=False)))


@cache
def rehearsal(name: ScheduleName, pp: int, microbatches: int, chunks: int) -> Rehearsal:
    """Raises `ScheduleError` where the stages end up waiting for each other."""
    return _Director(name, pp, microbatches, chunks).rehearse()


class _Director:
    """Goes from stage to stage and lets each do as much as it can, as `replay` does."""

    def __init__(self, name: ScheduleName, pp: int, microbatches: int, chunks: int) -> None:
        self.orders = compute_order(name, pp, microbatches, chunks)
        self.placement = LayoutSpec(pp=pp, schedule=name, chunks=chunks).placement
        self.held = messages_held(name, pp, microbatches)
        starts = [0]
        for order in self.orders:
            starts.append(starts[-1] + len(order))
        self.starts, self.nobody = starts, starts[-1]
        self.number = {
            (action.kind == "F", action.chunk, action.microbatch): start + i
            for start, order in zip(starts, self.orders, strict=False)
            for i, action in enumerate(order)
            if action.kind != "W"
        }
        self.finals = [self._finals(order) for order in self.orders]
        self.done, self.handed = bytearray(self.nobody + 1), bytearray(self.nobody + 1)
        self.queues: defaultdict[tuple[int, int, bool], list[int]] = defaultdict(list)
        self.operations: list[_Operation] = []

    def _finals(self, order: list[Action]) -> dict[int, int]:
        """After which of a stage's passes a chunk is reduced: its last backward, or the last that hands a gradient on."""
        last = {
            a.chunk: i for i, a in enumerate(order) if a.kind in ("B", "W") or (a.kind == "I" and self._elsewhere(a, -1) >= 0)
        }
        return {i: chunk for chunk, i in last.items()}

    def _elsewhere(self, action: Action, step: int) -> int:
        """The stage of the chunk before or behind, or −1 if there is none or it is on this stage too."""
        other = action.chunk + step
        if action.kind == "W" or not 0 <= other < len(self.placement):
            return -1
        return -1 if self.placement[other] == self.placement[action.chunk] else self.placement[other]

    def rehearse(self) -> Rehearsal:
        position, moved = [0] * len(self.orders), True
        while moved:
            moved = False
            for stage, order in enumerate(self.orders):
                while position[stage] < len(order) and self._try(stage, position[stage], order[position[stage]]):
                    position[stage] += 1
                    moved = True
        if any(p < len(order) for p, order in zip(position, self.orders, strict=True)):
            raise ScheduleError("deadlock: the stages wait for each other")
        kinds: dict[tuple[Kind, int], int] = {}
        kind_of = [kinds.setdefault((a.kind, a.chunk), len(kinds)) for order in self.orders for a in order]
        counts = [0] * len(kinds)
        for kind in kind_of:
            counts[kind] += 1
        chunks = len(self.placement)
        return Rehearsal(len(self.orders), chunks, tuple(self.operations), tuple(kinds), tuple(counts), tuple(kind_of))

    def _try(self, stage: int, place: int, action: Action) -> bool:
        """Do as much of a pass as can be done; whether that was all."""
        n, nobody = self.starts[stage] + place, self.nobody
        forward = action.kind == "F"
        ahead = 1 if forward else -1
        source = awaited = nobody
        if not self.done[n] and self._elsewhere(action, -ahead) >= 0:
            source = self.number[forward, action.chunk - ahead, action.microbatch]
            if not self.handed[source]:
                return False
        to = self._elsewhere(action, ahead)
        reduced = self.finals[stage].get(place, len(self.placement))
        if to < 0:
            self.operations.append(_Operation(stage, n, source, n, nobody, nobody, reduced))
            self.done[n] = 1
            return True
        queue = self.queues[stage, to, forward]
        if len(queue) >= self.held:
            awaited = queue[-self.held]
            if not self.done[awaited]:
                if not self.done[n]:
                    self.operations.append(_Operation(stage, n, source, n, nobody, nobody, len(self.placement)))
                    self.done[n] = 1
                return False
        fresh = not self.done[n]
        self.operations.append(_Operation(stage, n if fresh else nobody, source, n if fresh else nobody, n, awaited, reduced))
        self.done[n] = self.handed[n] = 1
        queue.append(self.number[forward, action.chunk + ahead, action.microbatch])
        return True
