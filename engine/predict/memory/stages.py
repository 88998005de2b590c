"""The stages of one spec: what stands on each, what its chunks do, and its step."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from engine.predict.ledger.layout import LayoutLedgers
from engine.predict.memory.blocks import BlockKind, Counts
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.passes import ActionTrace, ChunkPasses, layout_passes, layout_reading
from engine.predict.memory.shortened import StageActions, with_left_out
from engine.predict.memory.update import FOUR, UpdateMemory
from engine.predict.memory.walk import ActionChanges, StageWalk
from engine.predict.terms import Factor
from engine.schedule import Schedule
from engine.schedule.orders import kinds_of
from engine.spec import RunSpec, sentence


class Stages:
    """`actions`: which of a stage's actions are gone through."""

    def __init__(self, spec: RunSpec, ledgers: LayoutLedgers, actions: StageActions) -> None:
        self.spec, self.ledgers, self.actions = spec, ledgers, actions
        layout, self.e, self.g = spec.layout, ledgers.e, ledgers.g
        self.memory = UpdateMemory(spec.workload, layout.zero, self.e, self.g)
        self.kinds = kinds_of(layout.schedule, layout.pp, 1 if actions.short else actions.microbatches, layout.chunks)
        self._passes: dict[Any, ChunkPasses] = {}  # chunks that are alike do the same

    def passes(self, chunk: int) -> ChunkPasses:
        """What a chunk does."""
        part, layers = self.ledgers.split.chunks[chunk]
        if (part, layers) not in self._passes:
            reading, layout = layout_reading(self.ledgers.chunk(chunk), self.ledgers.sizes), self.spec.layout
            self._passes[part, layers] = layout_passes(reading, layout.zero, layout.dp, self.kinds, self.e, self.g)
        return self._passes[part, layers]

    def buckets(self, stage: int) -> list[tuple[BucketSizes, Any]]:
        """All of a stage, and how many there are of each."""
        return [pair for chunk in self.ledgers.split.on(stage) for pair in self.passes(chunk).buckets]

    def walk(self, stage: int, schedule: Schedule) -> tuple[Counts, StageWalk]:
        """What stands, and the walk through the step. `schedule` need have the actions of that stage alone."""
        passes = {chunk: self.passes(chunk) for chunk in self.ledgers.split.on(stage)}
        walk = StageWalk(schedule, stage, passes, self.spec.layout.zero, self.step(stage))
        return self.standing(self.buckets(stage)), walk

    def changes(self, stage: int) -> tuple[Counts, list[ActionChanges]]:
        """What stands, and what the stage does, with one entry for all that its schedule leaves out at a place."""
        schedule, left_out = self.actions.of(stage)
        standing, walk = self.walk(stage, schedule)
        return standing, with_left_out(list(walk.actions()), left_out)

    def standing(self, buckets: list[tuple[BucketSizes, Any]]) -> Counts:
        """What is there all the time: parameters, gradients, the optimizer's states."""
        counts: Counts = defaultdict(int)
        for bucket, times in buckets:
            for kind in self.memory.standing(bucket):
                counts[kind] += times
        counts[BlockKind("temporary", sentence("loss and norm of the gradients"), (Factor("2", 2), FOUR), False)] += 1
        return counts

    def step(self, stage: int) -> ActionTrace:
        """The norm of the gradients, two numbers of four bytes for each bucket; then the optimizer."""
        counted, second = 0, list[Any]()
        for bucket, times in self.buckets(stage):
            counted += times * bucket.counted
            second += [(times, [(1, kind)]) for kind in self.memory.update(bucket)]
        norms = BlockKind("temporary", sentence("norm of each gradient"), (Factor("n", 2 * counted + 1), FOUR), False)
        counter = BlockKind("temporary", sentence("scalars"), (FOUR,), False)
        first: list[Any] = [(1, [(1, norms)])]
        second.insert(0, (1, [(1, counter)]))

        def undone(parts: list[Any]) -> list[Any]:
            return [(times, [(-sign, kind) for sign, kind in events]) for times, events in parts]

        return ActionTrace([*first, *undone(first), *second, *undone(second)])
