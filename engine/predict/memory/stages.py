"""The stages of one spec: what stands on each, what its chunks do, and its step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.ledger.keep import Ledgers
from engine.ledger.layout import LayoutLedgers
from engine.predict.memory.blocks import BlockKind, Counts
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.layout_walk import LayoutWalk, with_rows
from engine.predict.memory.passes import ActionTrace, ChunkPasses, layout_passes, layout_reading
from engine.predict.memory.shortened import Shortened
from engine.predict.memory.update import FOUR, UpdateMemory
from engine.schedule import Action
from engine.schedule.orders import kinds_of, messages_held, passes
from engine.spec import RunSpec, sentence
from engine.terms import Factor


class Stages:
    """`step`: which microbatches are gone through. `ledgers`: those to read, in place of `ledger_store()`."""

    def __init__(self, spec: RunSpec, step: Shortened, ledgers: Ledgers | None = None) -> None:
        """Raises `NotRecordedError`."""
        self.spec, self.shortened = spec, step
        self.ledgers = LayoutLedgers(spec.model, spec.layout, spec.workload, None, ledgers)
        layout, self.e, self.g = spec.layout, self.ledgers.e, self.ledgers.g
        self.memory = UpdateMemory(spec.workload, layout.zero, self.e, self.g)
        self.kinds = kinds_of(layout.schedule, layout.pp, step.microbatches, layout.chunks)
        self._passes: dict[Any, ChunkPasses] = {}  # chunks that are alike do the same

    def passes(self, chunk: int) -> ChunkPasses:
        """What a chunk does."""
        part, layers = self.ledgers.split.chunks[chunk]
        if (part, layers) not in self._passes:
            reading = layout_reading(self.ledgers.chunk(chunk), self.ledgers.sizes)
            self._passes[part, layers] = layout_passes(reading, self.spec.layout, self.kinds, self.e, self.g)
        return self._passes[part, layers]

    def buckets(self, stage: int) -> list[tuple[BucketSizes, Any]]:
        """All of a stage, and how many there are of each."""
        return [pair for chunk in self.ledgers.split.on(stage) for pair in self.passes(chunk).buckets]

    def walk(self, stage: int, actions: Sequence[Action] = ()) -> LayoutWalk:
        """The walk through a stage's passes, or through its `actions`, which are those of the whole step."""
        layout, m = self.spec.layout, self.shortened.microbatches
        if actions:
            order, rows = with_rows(actions)
        else:
            order, rows = passes(layout.schedule, layout.pp, np.array([stage]), np.array([m]), layout.chunks), None
        return LayoutWalk(
            {chunk: self.passes(chunk) for chunk in self.ledgers.split.on(stage)},
            order,
            layout.placement,
            messages_held(layout.schedule, layout.pp, m),
            m + self.shortened.fewer * self.shortened.alike,
            layout.zero,
            1 + self.shortened.fewer * self.shortened.alike,
            rows,
        )

    def standing(self, stage: int) -> Counts:
        """What is there all the time: parameters, gradients, the optimizer's states."""
        counts: Counts = defaultdict(int)
        for bucket, times in self.buckets(stage):
            for kind in self.memory.standing(bucket):
                counts[kind] += times
        if self.spec.model.parts.balancing == "bias":
            layers = sum(self.ledgers.split.chunks[chunk][1][1] for chunk in self.ledgers.split.on(stage))
            if layers:
                biases = (Factor("E", self.spec.model.experts), FOUR)
                counts[BlockKind("parameters", sentence("biases of the routers"), biases, True)] += layers
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
