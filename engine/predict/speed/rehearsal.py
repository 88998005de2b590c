"""A schedule's order put down once, to be run against many clocks: what `engine.schedule.replay` does, for times alone.

Which pass waits for which message is the same whatever the times are. So the order in which everything can be worked out is found
once for a schedule, and a run is one loop over it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.predict.durations import Durations
from engine.schedule import Flow, ScheduleError
from engine.schedule.actions import Kind
from engine.schedule.orders import messages_held, stage_passes
from engine.spec import LayoutSpec, ScheduleName

_KEPT = 256  # rehearsals, the latest


class Rehearsed(NamedTuple):
    """What a run found, in the unit of the durations."""

    clocks: tuple[float, ...]  # when each stage is through with its passes, messages and reductions
    pipeline: float  # from the first pass's start to the last one's end
    busy: float  # what all stages together spend on passes


# A pass, a message handed over, or both one behind the other: its stage; which pass's duration it takes; whose message it waits
# for; the pass that takes a message in; that which hands one over; whose taking in the message handed over waits for; the chunk
# that is reduced afterwards. Numbers are of passes; the one beyond the last is nobody's. Plain tuples, as there are very many.
_Operation = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True)
class Rehearsal:
    """One schedule with its microbatches. The last of `passes` and of `chunks` stands for nothing."""

    stages: int
    chunks: int
    operations: NDArray[np.int32]  # (operations, 7), as `_Operation`: kept so, they take a tenth of the memory
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
        nobody, last = len(self.kind_of), 0.0
        takes, travels = ([of[kind] for kind in self.kind_of] for of in (times, under_way))
        takes.append(0.0)
        received, arrived = [0.0] * (nobody + 1), [0.0] * (nobody + 1)  # nobody's message has come at once
        for stage, time, source, taken, sent, awaited, reduced in self.operations.tolist():
            now = clocks[stage]
            if arrived[source] > now:
                now = arrived[source]
            received[taken] = now
            now += takes[time]
            if now > last and time != nobody:
                last = now
            if sent != nobody:
                if awaited != nobody and received[awaited] > now:
                    now = received[awaited]
                arrived[sent] = now + travels[sent]
            clocks[stage] = now + reductions[reduced]
        return Rehearsed(tuple(clocks), last, sum(n * t for n, t in zip(self.counts, times, strict=False)))


@lru_cache(maxsize=_KEPT)
def rehearsal(name: ScheduleName, pp: int, microbatches: int, chunks: int) -> Rehearsal:
    """Raises `ScheduleError` where the stages end up waiting for each other."""
    return _Director(name, pp, microbatches, chunks).rehearse()


class _Director:
    """Goes from stage to stage and lets each do as much as it can, as `replay` does."""

    def __init__(self, name: ScheduleName, pp: int, microbatches: int, chunks: int) -> None:
        self.orders = [stage_passes(name, stage, pp, microbatches, chunks) for stage in range(pp)]
        self.placement = LayoutSpec(pp=pp, schedule=name, chunks=chunks).placement
        self.held = messages_held(name, pp, microbatches)
        self.ends = list(accumulate(len(order) for order in self.orders))
        self.nobody = self.ends[-1]
        self.passes = [one for order in self.orders for one in order]
        number = {(kind == "F", chunk, m): n for n, (kind, chunk, m) in enumerate(self.passes) if kind != "W"}
        before, behind = self._elsewhere(-1), self._elsewhere(1)
        # Of each pass whose message it waits for, which pass its own message is for, and the queue that it goes into.
        self.source, self.taker, self.queue = [self.nobody] * self.nobody, [self.nobody] * self.nobody, [-1] * self.nobody
        for n, (kind, chunk, m) in enumerate(self.passes):
            if kind == "W":
                continue
            forward = kind == "F"
            from_, to = (before, behind) if forward else (behind, before)
            ahead = 1 if forward else -1
            if from_[chunk] >= 0:
                self.source[n] = number[forward, chunk - ahead, m]
            if to[chunk] >= 0:
                self.taker[n] = number[forward, chunk + ahead, m]
                self.queue[n] = (self.placement[chunk] * pp + to[chunk]) * 2 + forward
        self.reduced = self._reduced(before)

    def _elsewhere(self, step: int) -> list[int]:
        """Of each chunk the stage of the one before or behind, or −1 if there is none or it is on this stage too."""
        there = self.placement
        others = [c + step if 0 <= c + step < len(there) else c for c in range(len(there))]
        return [there[other] if there[other] != there[c] else -1 for c, other in enumerate(others)]

    def _reduced(self, before: list[int]) -> list[int]:
        """Of each pass the chunk that is reduced after it: its last backward, or the last that hands a gradient on."""
        last = {c: n for n, (kind, c, _) in enumerate(self.passes) if kind in ("B", "W") or (kind == "I" and before[c] >= 0)}
        found = [len(self.placement)] * self.nobody
        for chunk, n in last.items():
            found[n] = chunk
        return found

    def rehearse(self) -> Rehearsal:
        operations: list[_Operation] = []
        position, moved = [0, *self.ends[:-1]], True
        done, handed = bytearray(self.nobody + 1), bytearray(self.nobody + 1)
        queues: defaultdict[int, list[int]] = defaultdict(list)
        while moved:
            moved = False
            for stage, start in enumerate(position):
                position[stage] = self._go(stage, start, operations, done, handed, queues)
                moved |= position[stage] > start
        if position != self.ends:
            raise ScheduleError("deadlock: the stages wait for each other")
        kinds: dict[tuple[Kind, int], int] = {}
        kind_of = [kinds.setdefault((kind, chunk), len(kinds)) for kind, chunk, _ in self.passes]
        counts = [0] * len(kinds)
        for number in kind_of:
            counts[number] += 1
        chunks = len(self.placement)
        return Rehearsal(len(self.orders), chunks, np.array(operations, np.int32), tuple(kinds), tuple(counts), tuple(kind_of))

    def _go(
        self, stage: int, n: int, operations: list[_Operation], done: bytearray, handed: bytearray, queues: dict[int, list[int]]
    ) -> int:
        """Do the stage's passes from number n on, as far as they can be done; the first that cannot, or not all of it."""
        nobody, nothing, held = self.nobody, len(self.placement), self.held
        while n < self.ends[stage]:
            fresh, source, taker = not done[n], nobody, self.taker[n]
            if fresh:
                source = self.source[n]
                if source != nobody and not handed[source]:
                    break
            if taker == nobody:
                operations.append((stage, n, source, n, nobody, nobody, self.reduced[n]))
                done[n] = 1
                n += 1
                continue
            queue = queues[self.queue[n]]
            awaited = queue[-held] if len(queue) >= held else nobody
            if awaited != nobody and not done[awaited]:
                if fresh:
                    operations.append((stage, n, source, n, nobody, nobody, nothing))
                    done[n] = 1
                break
            time = n if fresh else nobody
            operations.append((stage, time, source, time, n, awaited, self.reduced[n]))
            done[n] = handed[n] = 1
            queue.append(taker)
            n += 1
        return n
