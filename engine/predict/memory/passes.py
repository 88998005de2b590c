"""What one chunk's passes do to memory, read from its ledger: F, and B or I and W, in any state that changes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.ledger.dimensions import factors
from engine.ledger.layout import Chunk
from engine.ledger.words import in_words
from engine.predict.memory.blocks import BlockKind, Change, Counts, Factors, size_of
from engine.predict.memory.reading import ChunkTrace, LedgerReading, LentBlock
from engine.predict.memory.reducing import Buckets, Events, Pending, Reductions, Segments, reduction_blocks
from engine.spec import LayoutSpec
from engine.terms import Factor


@dataclass(eq=False)
class ActionTrace:
    """What an action does: its parts in order. A part: how often it is repeated; blocks that come (+1) and go (−1)."""

    parts: list[tuple[Any, list[tuple[int, BlockKind]]]] = field(default_factory=list)

    @cached_property
    def net(self) -> Change:
        """What it leaves, less what it takes away."""
        counts: Counts = defaultdict(int)
        for times, events in self.parts:
            for sign, kind in events:
                counts[kind] += sign * times
        return Change({kind: count for kind, count in counts.items() if count})

    def counts_at(self, at: tuple[int, int, bool]) -> Counts:
        """What it has added up to a point: number of the part, events of it, and whether in its last repetition."""
        number, reach, again = at
        counts: Counts = defaultdict(int)
        for i, (times, events) in enumerate(self.parts[: number + 1]):
            if i < number or again:
                for sign, kind in events:
                    counts[kind] += sign * (times if i < number else times - 1)
            if i == number:
                for sign, kind in events[:reach]:
                    counts[kind] += sign
        return counts

    @cached_property
    def highest(self) -> tuple[Any, tuple[int, int, bool]]:
        """The most bytes it ever adds, and where that is."""
        best, at, base = 0, (0, 0, False), 0
        sizes: dict[Factors, int] = {}
        for number, (times, events) in enumerate(self.parts):
            now = top = top_at = 0
            for reach, (sign, kind) in enumerate(events, 1):
                size = sizes.get(kind.factors)
                if size is None:
                    size = sizes[kind.factors] = size_of(kind.factors)
                now += sign * size
                if now > top:
                    top, top_at = now, reach
            for again in (False, True) if times > 1 else (False,):
                here = base + top + ((times - 1) * now if again else 0)
                if here > best:
                    best, at = here, (number, top_at, again)
            base += times * now
        return best, at


@dataclass(eq=False)
class ChunkPasses:
    """What a chunk does by action, with ZeRO, in any state that it is found in."""

    does: ChunkTrace
    buckets: Buckets
    reductions: Reductions
    _known: dict[tuple[str, bool], ActionTrace] = field(default_factory=dict)

    @cached_property
    def _by_state(self) -> tuple[Segments, dict[str, Pending]]:
        return self.reductions.by_state(self.does.segments)

    @property
    def pending(self) -> dict[str, Pending]:
        """Of each of `STATES`."""
        return self._by_state[1]

    def trace(self, state: str, late: bool) -> ActionTrace:
        """What a pass does that finds the chunk in one of `STATES`.

        `late`: the message that holds what is lent goes later than the chunk frees it.
        """
        if (state, late) not in self._known:
            segments, _ = self._by_state
            self._known[state, late] = ActionTrace([(times, list(_blocks(events, late))) for _, times, events in segments[state]])
        return self._known[state, late]


def held_by_message(lent: BlockKind) -> BlockKind:
    """A block that a message holds longer than the chunk: `engine.measure.memory` counts it as communication all along."""
    return lent._replace(category="communication")


def _blocks(events: Events, late: bool) -> Iterator[tuple[int, BlockKind]]:
    for sign, one in events:
        if not isinstance(one, LentBlock):
            yield sign, one
        elif not late:
            yield sign, one.block
        elif sign > 0:
            yield sign, held_by_message(one.block)


def layout_reading(chunk: Chunk, sizes: Mapping[str, Any]) -> LedgerReading:
    """A ledger with the numbers of one layout put in. `sizes`: of the dimensions."""
    blocks = [
        BlockKind(block.category, in_words(block.name), factors(block.bytes, sizes), block.layered)
        for block in chunk.ledger.blocks
    ]
    return LedgerReading(chunk.ledger, chunk.part, chunk.repeats, sizes, blocks, named=True)


def layout_passes(reading: LedgerReading, layout: LayoutSpec, kinds: frozenset[str], e: Factor, g: Factor) -> ChunkPasses:
    """`kinds`: which of B, I and W the schedule has. `e`, `g`: bytes of a parameter and of what gradients are added up in."""
    zero, hybrid = layout.zero, layout.zero_replicas > 1
    parts = layout.shards if zero else 1
    of_experts = max(1, parts // layout.ep) if layout.ep > 1 else None
    does, buckets = reading.trace(zero >= 2, kinds), reading.buckets(parts, of_experts, hybrid)
    blocks = reduction_blocks([bucket for bucket, _ in buckets], e, g if zero == 1 else e)
    reductions = Reductions(zero, reading.ledger.buckets, blocks, does.segments.get("W", []), of_experts == 1)
    return ChunkPasses(does, buckets, reductions)
