"""A ledger with sizes put in: what a chunk does in each action.

What a block is, is the reader's: `engine.predict.memory.passes` has kinds of blocks with names, `engine.predict.bulk.traces` has
numbers of sizes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.ledger.form import (
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
    Ledger,
    MicrobatchTrace,
    Part,
    Segment,
)  # fmt: skip
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.reducing import Buckets, GradientEvent, RepeatedSegment

_BACKWARD = {"B": ("B",), "I": ("I", "W")}
Amounts = dict[Any, int]  # of each block how many


@dataclass(frozen=True)
class LentBlock:
    """In an event, of the block that a chunk lends to the message that it sends."""

    block: Any


class Lent(NamedTuple):
    """The block that a forward sends on while its chunk goes on to hold it: an encoder's output that passes a decoder's stage, or
    the embeddings of source and target, which are one block.
    """

    block: Any
    input: int  # which input it is; −1 where the chunk makes it
    ends: dict[str, str]  # by what backward begins with, B or I: the action in which the chunk frees it


@dataclass(frozen=True)
class ChunkTrace:
    """What a chunk does by action, without ZeRO: there are `GradientEvent`s where ZeRO would do something."""

    segments: dict[str, list[RepeatedSegment]]
    received: Amounts  # by a forward
    sent: Amounts  # what a forward leaves to be sent
    gradient_received: dict[str, Amounts]  # by what it is for, B or I
    gradient_sent: dict[str, Amounts]  # by what leaves it, B or I
    input_ends: dict[str, tuple[str, ...]]  # by what backward begins with, B or I: the action in which each input is freed
    shared: tuple[int, ...]  # which outputs the chunk goes on to hold itself
    lent: Lent | None  # the block of that one


class LedgerReading:
    """`blocks`: what to put for each of the ledger's. `repeats`: how many layers each recorded layer represents."""

    def __init__(
        self,
        ledger: Ledger,
        part: Part,
        repeats: Sequence[Any],
        sizes: Mapping[str, Any],
        blocks: Sequence[Any],
        named: bool = False,
    ) -> None:
        """`sizes`: of the dimensions. `named`: blocks of one size may differ."""
        self.ledger, self.part, self.repeats, self.sizes, self.blocks = ledger, part, repeats, sizes, blocks
        self.named = named

    def buckets(self, parts: Any, of_experts: Any = None, hybrid: bool = False) -> Buckets:
        """Each with how many there are. Arguments as for `BucketSizes`."""
        return [
            (BucketSizes(bucket, self.part, self.sizes, parts, of_experts, hybrid), self.times(bucket.layer))
            for bucket in self.ledger.buckets
        ]

    def trace(self, hooked: bool, kinds: frozenset[str] = frozenset("BI")) -> ChunkTrace:
        """`hooked`: with ZeRO 2 or 3. `kinds`: with which of B and I a backward may begin."""
        backward: list[str] = [kind for kind in ("I", "B") if kind in kinds]
        traces = {kind: self.ledger.trace(hooked, kind == "I") for kind in backward}
        first = next(iter(traces.values()))
        segments = {"F": self.segments(first, "F")}
        for kind, trace in traces.items():
            segments |= {action: self.segments(trace, action) for action in _BACKWARD[kind]}
        return ChunkTrace(
            segments,
            self.amounts(first, INPUTS, 1),
            self.amounts(first, OUTPUTS, -1),
            {kind: self.amounts(trace, OUTPUT_GRADIENTS, 1) for kind, trace in traces.items()},
            {kind: self.amounts(trace, INPUT_GRADIENTS, -1) for kind, trace in traces.items()},
            {kind: trace.input_ends for kind, trace in traces.items()},
            first.shared,
            self._lent(traces),
        )

    def segments(self, trace: MicrobatchTrace, action: str) -> list[RepeatedSegment]:
        """Without those in which nothing happens. Of a bucket's gradients, only the last to come can make a difference."""
        added = Counter(number for _, number in trace.events(action, ACCUMULATES))
        left = added.copy()
        found = []
        for segment in trace.segments(action):
            times = self.times(segment.layer)
            events = list(self._events(segment, added, left))
            for taken, handed in self._handed_on(segment) if self.named and times != 1 else ():
                found.append(RepeatedSegment(segment.layer, 1, [(-1, taken), (1, handed)]))
                last = max(place for place, event in enumerate(events) if event == (-1, taken))
                events[last] = -1, handed
            if times and events:
                found.append(RepeatedSegment(segment.layer, times, events))
        return found

    def _handed_on(self, segment: Segment) -> list[tuple[Any, Any]]:
        """Of a layer that is repeated, the blocks of a running sum that it takes, and what it hands on in place of each.

        The recorded layer takes what another one left, which may have another name than what it hands on itself. However often
        it is repeated, also if never, such a block is taken once, and each repetition takes what the one before handed on.
        """
        change = Counter[int]()
        for kind, number in segment.events():
            if kind in (ALLOCATES, FREES) and self.ledger.blocks[number].category != "activations":
                change[number] += 1 if kind == ALLOCATES else -1
        found, blocks = [], self.ledger.blocks
        handed = [number for number in change for _ in range(change[number])]
        for taken in (number for number in change for _ in range(-change[number])):
            other = next((number for number in handed if blocks[number].bytes == blocks[taken].bytes), None)
            if other is not None:
                handed.remove(other)
                found.append((self.blocks[taken], self.blocks[other]))
        return [(taken, other) for taken, other in found if taken != other]

    def _events(self, segment: Segment, added: Counter[int], left: Counter[int]) -> Iterator[tuple[int, Any]]:
        """`added`: how many gradients of each bucket come in the action; `left`: of these, how many are to come."""
        for kind, number in segment.events():
            if kind in (ALLOCATES, FREES):
                block = self.blocks[number]
                yield 1 if kind == ALLOCATES else -1, LentBlock(block) if self.ledger.blocks[number].lent else block
            elif kind == ACCUMULATES:
                left[number] -= 1
                if not left[number]:
                    yield 0, GradientEvent(kind, number, added[number])
            elif kind in (EXPECTS, GATHERS, RELEASES):
                yield 0, GradientEvent(kind, number)

    def amounts(self, trace: MicrobatchTrace, action: str, sign: int) -> Amounts:
        """What comes (`sign` 1) or goes (−1) in an action."""
        amounts: Amounts = defaultdict(int)
        for kind, way in ((ALLOCATES, sign), (FREES, -sign)):
            for _, number in trace.events(action, kind):
                amounts[self.blocks[number]] += way
        return {block: amount for block, amount in amounts.items() if amount}

    def times(self, layer: int) -> Any:
        """How many layers a recorded layer represents; 1 outside of layers."""
        return 1 if layer < 0 else self.repeats[layer]

    def _lent(self, traces: Mapping[str, MicrobatchTrace]) -> Lent | None:
        lent = {kind: trace.lent for kind, trace in traces.items() if trace.lent is not None}
        if not lent:
            return None
        block = next(block for block, one in zip(self.blocks, self.ledger.blocks, strict=True) if one.lent)
        return Lent(block, next(iter(lent.values()))[0], {kind: end for kind, (_, end) in lent.items()})
