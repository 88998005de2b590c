"""What ZeRO's reductions add to a pass: `engine.parallel.data`, by the state that an action finds its chunk in.

A bucket's gradients are reduced in the pass that brings the last of them. Which pass that is depends on those before: with ZeRO 2
and 3, on whether an earlier one still has its W to come; with ZeRO 1, on whether it is the step's last. With ZeRO 2 and 3 a
reduction stays under way until the next begins. So a ledger says where a bucket expects gradients and where it adds one up, and
the blocks of the reduction are put in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.predict.ledger.form import ACCUMULATES, EXPECTS, GATHERS, RELEASES
from engine.predict.memory.blocks import BlockKind
from engine.predict.memory.buckets import BucketSizes
from engine.predict.terms import Factor
from engine.spec import sentence

Buckets = Sequence[tuple[BucketSizes, Any]]  # each with how many there are of it
REDUCING = (sentence("gradients of a layer, this rank's share"), sentence("gradients of a layer under way"))


class GradientEvent(NamedTuple):
    """Not a block: bucket number `bucket` expects gradients, has added up `times` of them, gathers its values or releases them.

    `kind`: EXPECTS, ACCUMULATES, GATHERS or RELEASES.
    """

    kind: int
    bucket: int
    times: int = 1


Events = list[tuple[int, Any]]  # +1 or −1 and a block that comes or goes; 0 and a `GradientEvent`


class RepeatedSegment(NamedTuple):
    """A part of an action: the recorded layer it is about, or −1; how often it is repeated; what happens."""

    layer: int
    times: Any
    events: Events


class State(NamedTuple):
    """How an action finds its chunk. Of `deferred` and `remaining`, more than two are as good as two."""

    pending: int = -1  # which bucket's reduction is under way, with ZeRO 2 and 3
    deferred: int = 0  # passes that have had their I and not their W
    remaining: int = 0  # passes whose B or I is to come, this one's included


FRESH = State()
MANY = 2


class Reductions:
    """Of one chunk."""

    def __init__(self, zero: int, e: Factor, g: Factor, buckets: Buckets, weight_passes: Sequence[RepeatedSegment]) -> None:
        """`e`, `g`: bytes of a parameter and of what gradients are added up in. `weight_passes`: what W does."""
        self.zero, self.buckets = zero, buckets
        self.e, self.width = e, g if zero == 1 else e
        self.under_way, self.incoming, self.gathered = self._blocks()
        self._later = Counter[int]()
        for note in (note for segment in weight_passes for sign, note in segment.events if not sign):
            self._later[note.bucket] += note.times * (note.kind == ACCUMULATES)

    def _blocks(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Of each bucket those of a reduction, the one of gradients that wait for more, and the one of gathered values."""

        def block(bucket: BucketSizes, name: str, *factors: Factor) -> BlockKind:
            return BlockKind("communication", name, factors, bucket.layered)

        several = [bucket for bucket, _ in self.buckets]
        share, all_of_them = REDUCING
        under_way = [[block(b, share, b.share, self.width), block(b, all_of_them, b.size, self.width)] for b in several]
        waiting, gathered = sentence("gradients of a layer, not yet reduced"), sentence("gathered weights of a layer")
        incoming, whole = ([block(b, name, b.size, self.e) for b in several] for name in (waiting, gathered))
        return under_way, incoming, whole

    def before(self, pending: int) -> list[Any]:
        """What is under way in that state."""
        return self.under_way[pending] if pending >= 0 else []

    def applied(self, kind: str, segments: list[RepeatedSegment], state: State) -> tuple[list[RepeatedSegment], int]:
        """What happens in an action, without any `GradientEvent`, and which bucket's reduction is under way at its end."""
        if kind == "reduce":
            return self._finished(state), -1
        missing = [state.deferred * self._later[n] for n in range(len(self.buckets))]
        incoming = [self.zero >= 2 and count > 0 for count in missing]
        if self.zero == 1:
            each = (len(bucket.parameters) for bucket, _ in self.buckets)
            missing = [count + state.remaining * parameters for count, parameters in zip(missing, each, strict=True)]
        pending, found = state.pending, []
        for layer, times, events in segments:
            here: Events = []
            for event in events:
                sign, note = event
                if sign:
                    here.append(event)
                elif note.kind in (GATHERS, RELEASES):
                    here += [(1 if note.kind == GATHERS else -1, self.gathered[note.bucket])] if self.zero == 3 else []
                elif note.kind == EXPECTS and self.zero:
                    missing[note.bucket] += len(self.buckets[note.bucket][0].parameters)
                    if not incoming[note.bucket]:
                        here.append((1, self.incoming[note.bucket]))
                        incoming[note.bucket] = True
                elif self.zero:
                    missing[note.bucket] -= note.times
                    if not missing[note.bucket]:
                        here += self._reduced(note.bucket, pending, incoming)
                        pending = note.bucket if self.zero >= 2 else pending
            found.append(RepeatedSegment(layer, times, here))
        return found, pending

    def _reduced(self, bucket: int, pending: int, incoming: list[bool]) -> Events:
        """The last of a bucket's gradients has come."""
        here: Events = []
        if self.zero >= 2:
            here += [(-1, one) for one in reversed(self.before(pending))]
        here += [(1, one) for one in self.under_way[bucket]]
        if incoming[bucket]:
            here.append((-1, self.incoming[bucket]))
            incoming[bucket] = False
        return here

    def _finished(self, state: State) -> list[RepeatedSegment]:
        """The end of what is under way: with ZeRO 1, of all."""
        if self.zero == 1:
            return [
                RepeatedSegment(-1, times, [(-1, one) for one in self.under_way[n]]) for n, (_, times) in enumerate(self.buckets)
            ]
        return [RepeatedSegment(-1, 1, [(-1, one) for one in self.before(state.pending)])]
