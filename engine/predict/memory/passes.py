"""What one chunk's passes do to memory, read from its ledger: F, and B or I and W, in any state that changes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.predict.ledger.dimensions import factors
from engine.predict.ledger.form import (
    ACCUMULATES,
    ALLOCATES,
    EXPECTS,
    FREES,
    GATHERS,
    INPUT_GRADIENTS,
    INPUTS,
    OUTPUT_GRADIENTS,
    OUTPUTS,
    RELEASES,
    MicrobatchTrace,
    RecordedBlock,
    Segment,
)  # fmt: skip
from engine.predict.ledger.layout import Chunk
from engine.predict.ledger.words import in_words
from engine.predict.memory.blocks import BlockKind, Change, Counts, Factors, size_of
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.reducing import FRESH, Buckets, Events, GradientEvent, Reductions, RepeatedSegment, State
from engine.predict.terms import Factor

_BACKWARD = {"B": ("B",), "I": ("I", "W")}


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


@dataclass(frozen=True)
class Lent:
    """The block that a forward sends on while its chunk goes on to hold it: an encoder's output that passes a decoder's stage, or
    the embeddings of source and target, which are one block.
    """

    kind: BlockKind
    input: int  # which input it is; −1 where the chunk makes it
    ends: dict[str, str]  # by what backward begins with, B or I: the action in which the chunk frees it

    @property
    def sent(self) -> BlockKind:
        """Of one that the message holds longer than the chunk: `engine.measure.memory` counts it as communication all along."""
        return self.kind._replace(category="communication")


@dataclass(eq=False)
class ChunkPasses:
    """What a chunk does, by action and state, what it receives and what it sends."""

    segments: dict[str, list[RepeatedSegment]]
    buckets: Buckets
    reductions: Reductions
    received: Counts  # by a forward
    sent: Counts  # what a forward leaves to be sent
    gradient_received: dict[str, Counts]  # by what it is for, B or I
    gradient_sent: dict[str, Counts]  # by what leaves it, B or I
    input_ends: dict[str, list[str]]  # by what backward begins with, B or I: the action in which each input is freed
    shared: list[int]  # which outputs the chunk goes on to hold itself
    lent: Lent | None  # the block of that one

    def trace(self, kind: str, state: State = FRESH, late: bool = False) -> tuple[ActionTrace, int]:
        """What an action does that finds the chunk in `state`; and the bucket whose reduction it leaves under way, or −1.

        `late`: the message that holds what is lent goes later than the chunk frees it.
        """
        applied, pending = self.reductions.applied(kind, self.segments.get(kind, []), state)
        lent = self.lent if late else None

        def blocks(events: Events) -> list[tuple[int, BlockKind]]:
            found = []
            for sign, one in events:
                block = one.kind if isinstance(one, _LentBlock) else one
                if lent is None or block is one:
                    found.append((sign, block))
                elif sign > 0:
                    found.append((sign, lent.sent))
            return found

        return ActionTrace([(times, blocks(events)) for _, times, events in applied]), pending


@dataclass(frozen=True)
class _LentBlock:
    kind: BlockKind


class LedgerReading:
    """A ledger with the numbers of one layout put in."""

    def __init__(self, chunk: Chunk, sizes: Mapping[str, Any]) -> None:
        """`sizes`: of the dimensions."""
        self.chunk, self.ledger, self.sizes = chunk, chunk.ledger, sizes
        self.blocks = [self._block(block) for block in self.ledger.blocks]

    def buckets(self, parts: int) -> list[tuple[BucketSizes, Any]]:
        """Each with how many there are. `parts`: in how many ZeRO cuts each, 1 or dp."""
        return [
            (BucketSizes(bucket, self.chunk.part, self.sizes, parts), self.chunk.times(bucket.layer))
            for bucket in self.ledger.buckets
        ]

    def _block(self, block: RecordedBlock) -> BlockKind:
        return BlockKind(block.category, in_words(block.name), factors(block.bytes, self.sizes), block.layered)

    def passes(self, zero: int, dp: int, kinds: frozenset[str], e: Factor, g: Factor) -> ChunkPasses:
        """`kinds`: which of B, I and W the schedule has. `e`, `g`: bytes of a parameter and of what gradients are added up in."""
        buckets = self.buckets(dp if zero else 1)
        backward: list[str] = [kind for kind in ("I", "B") if kind in kinds]
        traces = {kind: self.ledger.trace(zero >= 2, kind == "I") for kind in backward}
        first = next(iter(traces.values()))
        segments = {"F": self._segments(first, "F")}
        for kind, trace in traces.items():
            segments |= {action: self._segments(trace, action) for action in _BACKWARD[kind]}
        return ChunkPasses(
            segments,
            buckets,
            Reductions(zero, e, g, buckets, segments.get("W", [])),
            self.counts(first, INPUTS, 1),
            self.counts(first, OUTPUTS, -1),
            {kind: self.counts(trace, OUTPUT_GRADIENTS, 1) for kind, trace in traces.items()},
            {kind: self.counts(trace, INPUT_GRADIENTS, -1) for kind, trace in traces.items()},
            {kind: list(trace.input_ends) for kind, trace in traces.items()},
            list(first.shared),
            self._lent(traces),
        )

    def action(self, trace: MicrobatchTrace, action: str) -> ActionTrace:
        """As it is recorded, without ZeRO."""
        segments = self._segments(trace, action)
        return ActionTrace([(times, [event for event in events if event[0]]) for _, times, events in segments])

    def _segments(self, trace: MicrobatchTrace, action: str) -> list[RepeatedSegment]:
        repeats = ((segment, self.chunk.times(segment.layer)) for segment in trace.segments(action))
        return [RepeatedSegment(segment.layer, times, list(self._events(segment))) for segment, times in repeats if times]

    def _events(self, segment: Segment) -> Iterator[tuple[int, Any]]:
        for kind, number in segment.events():
            if kind in (ALLOCATES, FREES):
                block = self.blocks[number]
                yield 1 if kind == ALLOCATES else -1, _LentBlock(block) if self.ledger.blocks[number].lent else block
            elif kind in (EXPECTS, ACCUMULATES, GATHERS, RELEASES):
                yield 0, GradientEvent(kind, number)

    def counts(self, trace: MicrobatchTrace, action: str, sign: int) -> Counts:
        """What comes (`sign` 1) or goes (−1) in an action."""
        counts: Counts = defaultdict(int)
        for segment in trace.segments(action):
            for kind, number in segment.events():
                if kind in (ALLOCATES, FREES):
                    counts[self.blocks[number]] += sign if kind == ALLOCATES else -sign
        return {kind: count for kind, count in counts.items() if count}

    def _lent(self, traces: dict[str, MicrobatchTrace]) -> Lent | None:
        lent = {kind: trace.lent for kind, trace in traces.items() if trace.lent is not None}
        if not lent:
            return None
        block = next(block for block, one in zip(self.blocks, self.ledger.blocks, strict=True) if one.lent)
        return Lent(block, next(iter(lent.values()))[0], {kind: end for kind, (_, end) in lent.items()})
