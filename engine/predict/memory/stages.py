"""The stages of one spec: what stands on each, what its chunks do, and its step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.predict.ledger.layout import LayoutLedgers
from engine.predict.memory.blocks import BlockKind, Counts
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.layout_walk import LayoutWalk, with_rows
from engine.predict.memory.passes import ActionTrace, ChunkPasses, layout_passes, layout_reading
from engine.predict.memory.shortened import Shortened
from engine.predict.memory.update import FOUR, UpdateMemory
from engine.predict.terms import Factor
from engine.schedule import Action
from engine.schedule.orders import kinds_of, messages_held, passes
from engine.spec import RunSpec, sentence


class Place(NamedTuple):
    """Which of a stage's ranks: what they hold differs in the optimizer's step only, by which numbers of the norm each counts."""

    stage: int
    replica: int = 0
    later: int = 0  # the first tp coordinate that counts as much, see `alike`


def alike(tp: int, copies: int) -> int:
    """The first tp coordinate whose rank counts as many numbers. `copies`: see `ModelSpec.key_copies`.

    The first rank counts what tp does not cut, and the first of those with the same key heads counts these.
    """
    return min(tp, 1 if copies == 1 or tp % copies else copies)


class Stages:
    """`step`: which microbatches are gone through."""

    def __init__(self, spec: RunSpec, ledgers: LayoutLedgers, step: Shortened) -> None:
        self.spec, self.ledgers, self.shortened = spec, ledgers, step
        layout, self.e, self.g = spec.layout, ledgers.e, ledgers.g
        self.memory = UpdateMemory(spec.workload, layout.zero, self.e, self.g)
        self.kinds = kinds_of(layout.schedule, layout.pp, step.microbatches, layout.chunks)
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
        counts[BlockKind("temporary", sentence("loss and norm of the gradients"), (Factor("2", 2), FOUR), False)] += 1
        return counts

    def step(self, at: Place) -> ActionTrace:
        """The norm of the gradients, two numbers of four bytes for each piece of them; then the optimizer."""
        pieces, first, second = 0, list[Any](), list[Any]()
        for bucket, times in self.buckets(at.stage):
            found, size = self._counted(bucket, at)
            pieces += times * found
            counted = bucket.share if size == bucket.share.value else Factor("n", size)
            first += [(times, [(1, kind)]) for kind in self.memory.norm(bucket, counted) if size]
            second += [(times, [(1, kind)]) for kind in self.memory.update(bucket)]
        norms = BlockKind("temporary", sentence("norm of each gradient"), (Factor("n", 2 * pieces + 1), FOUR), False)
        counter = BlockKind("temporary", sentence("scalars"), (FOUR,), False)
        first.append((1, [(1, norms)]))
        second.insert(0, (1, [(1, counter)]))

        def undone(parts: list[Any]) -> list[Any]:
            return [(times, [(-sign, kind) for sign, kind in events]) for times, events in parts]

        return ActionTrace([*first, *undone(first), *second, *undone(second)])

    def counted(self, at: Place) -> tuple[tuple[int, int], ...]:
        """By which the ranks of a stage differ."""
        return tuple(self._counted(bucket, at) for bucket, _ in self.buckets(at.stage))

    def _counted(self, bucket: BucketSizes, at: Place) -> tuple[int, int]:
        return bucket.counted_on(at.replica if self.spec.layout.zero else 0, at.later > 0, at.later % self.copies > 0)

    @property
    def copies(self) -> int:
        """How many tp ranks hold the same key heads."""
        return self.spec.model.key_copies(self.spec.layout.tp)

    def where_shares_differ(self, stage: int) -> list[int]:
        """Replicas in order, the first among them: those between two of these count the same in the norm as the one before."""
        dp, found = self.spec.layout.dp, {0}
        for bucket, _ in self.buckets(stage):
            share, end = bucket.share.value, 0
            for (_, size), keys in zip(bucket.parameters, bucket.keys, strict=True):
                end += size
                # Where one begins that is cut, and where the next one is whole.
                found |= {edge // share + more for edge in (end, end - keys) for more in (0, 1)}
        return sorted(replica for replica in found if replica < dp)
