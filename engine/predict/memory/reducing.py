"""What ZeRO's reductions add to a pass: `engine.parallel.data`, by the state that an action finds its chunk in.

A bucket's gradients are reduced in the pass that brings the last of them. Which pass that is depends on those before: with ZeRO 2
and 3, on whether an earlier one still has its W to come; with ZeRO 1, on whether it is the step's last. A reduction stays under
way until the chunk's next begins. It has a buffer for what another replica sends; with ZeRO 2 and 3 also the gradients that are
sent, which are a buffer too. So a ledger says where a bucket expects gradients and where it adds one up, and the blocks of the
reduction are put in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.ledger.form import ACCUMULATES, EXPECTS, GATHERS, RELEASES, RecordedBucket
from engine.predict.memory.blocks import BlockKind
from engine.predict.memory.buckets import BucketSizes
from engine.spec import sentence
from engine.terms import Factor

Buckets = Sequence[tuple[BucketSizes, Any]]  # each with how many there are of it


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

    pending: int = -1  # which bucket's reduction is under way
    deferred: int = 0  # passes that have had their I and not their W
    remaining: int = 0  # passes whose B or I is to come, this one's included


_FRESH = State()
_MANY = 2

Segments = dict[str, list[RepeatedSegment]]  # by action, or by state


class Pending(NamedTuple):
    """Which bucket's reduction is under way before an action and after it; −1: none."""

    before: int
    after: int


class ReductionBlocks(NamedTuple):
    """Of each bucket a block: what a reduction receives into, the gradients that backward writes, the gathered values."""

    received: list[Any]
    incoming: list[Any]
    gathered: list[Any]


def reduction_blocks(buckets: Sequence[BucketSizes], e: Factor, width: Factor) -> ReductionBlocks:
    """Of one layout. `e`, `width`: bytes of a parameter, and of a gradient that is received."""
    share, incoming = sentence("gradients of a layer, a replica's share"), sentence("gradients of a layer, not yet reduced")
    gathered = sentence("gathered weights of a layer")

    def block(bucket: BucketSizes, name: str, *factors: Factor) -> BlockKind:
        return BlockKind("communication", name, factors, bucket.layered)

    return ReductionBlocks(
        [block(bucket, share, bucket.share, width) for bucket in buckets],
        *([block(bucket, name, bucket.size, e) for bucket in buckets] for name in (incoming, gathered)),
    )


class Reductions:
    """Of one chunk."""

    def __init__(
        self,
        zero: int,
        buckets: Sequence[RecordedBucket],
        blocks: ReductionBlocks,
        weight_passes: Sequence[RepeatedSegment],
        alone: bool = False,
    ) -> None:
        """`weight_passes`: what W does. `alone`: as many ranks share experts as there are replicas: ZeRO does not cut these."""
        self.zero, self.blocks = zero, blocks
        self._parameters = [len(bucket.parameters) for bucket in buckets]
        self._alone = [alone and bucket.experts for bucket in buckets]
        self._later = Counter[int]()
        for note in (note for segment in weight_passes for sign, note in segment.events if not sign):
            self._later[note.bucket] += note.times * (note.kind == ACCUMULATES)

    def under_way(self, pending: int) -> list[Any]:
        """The blocks of that bucket's reduction; none if it is −1."""
        if pending < 0:
            return []
        return [self.blocks.received[pending], *([self.blocks.incoming[pending]] if self.zero >= 2 else [])]

    def by_state(self, segments: Segments) -> tuple[Segments, dict[str, Pending]]:
        """What a chunk does in each of `STATES`, and which bucket's reduction is under way before and after it."""
        found, pending = Segments(), dict[str, Pending]()

        def put(name: str, state: State) -> int:
            found[name], after = self._applied(segments.get(name[0], []), state)
            pending[name] = Pending(state.pending, after)
            return after

        put("F", _FRESH)
        if self.zero < 2:
            left = 1 if self.zero else _MANY
            put("B", State(remaining=_MANY))
            put("B edge", State(remaining=left))
            put("I", State(remaining=_MANY))
            before = put("I edge", State(remaining=left))
            put("W", State(before, deferred=1, remaining=_MANY))
            put("W edge", State(before, deferred=1, remaining=left - 1))
            for name in ("I more", "I after B", "W more"):
                found[name], pending[name] = found[name[0]], pending[name[0]]
            return found, pending
        whole = put("B", State(put("B edge", _FRESH)))
        put("I after B", State(whole))
        before = put("W edge", State(put("I edge", _FRESH), deferred=1))
        split = put("I", State(before))
        put("W", State(split, deferred=1))
        more = put("I more", State(split, deferred=1))
        put("W more", State(more, deferred=_MANY))
        return found, pending

    def _applied(self, segments: list[RepeatedSegment], state: State) -> tuple[list[RepeatedSegment], int]:
        """What happens in an action, without any `GradientEvent`, and which bucket's reduction is under way at its end."""
        missing = [state.deferred * self._later[n] for n in range(len(self._parameters))]
        incoming = [self.zero >= 2 and count > 0 for count in missing]
        if self.zero == 1:
            each = zip(missing, self._parameters, strict=True)
            missing = [count + state.remaining * parameters for count, parameters in each]
        pending, found = state.pending, []
        for layer, times, events in segments:
            here: Events = []
            for event in events:
                sign, note = event
                if sign:
                    here.append(event)
                elif self._alone[note.bucket]:
                    continue
                elif note.kind in (GATHERS, RELEASES):
                    here += [(1 if note.kind == GATHERS else -1, self.blocks.gathered[note.bucket])] if self.zero == 3 else []
                elif note.kind == EXPECTS and self.zero:
                    missing[note.bucket] += self._parameters[note.bucket]
                    if not incoming[note.bucket]:
                        here.append((1, self.blocks.incoming[note.bucket]))
                        incoming[note.bucket] = True
                elif self.zero:
                    missing[note.bucket] -= note.times
                    if not missing[note.bucket]:
                        here += [*((-1, one) for one in self.under_way(pending)), (1, self.blocks.received[note.bucket])]
                        pending, incoming[note.bucket] = note.bucket, False
            found.append(RepeatedSegment(layer, times, here))
        return found, pending
