"""What a chunk passes to other ranks, read from its ledger: without any numbers of a layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from engine.predict.ledger.form import (
    ACCUMULATES,
    ALLOCATES,
    CALLS,
    GATHERS,
    INPUTS,
    Call,
    Ledger,
    MicrobatchTrace,
    Product,
    RecordedBucket,
)

_KEPT = 1024  # ledgers, the latest


class CallOnce(NamedTuple):
    """A call that each microbatch makes `times` times in recorded layer `layer`, or −1 outside of layers."""

    layer: int
    phase: str
    call: Call
    times: int


class BucketUse(NamedTuple):
    """`deferred`: a schedule that splits backward leaves some of its gradients to W. `gathers`: how often ZeRO 3 gathers its
    values in one forward pass and in one backward pass.
    """

    bucket: RecordedBucket
    deferred: bool
    gathers: tuple[int, int]


@dataclass(frozen=True)
class ChunkTraffic:
    """`inputs`: bytes of each tensor that a forward receives. Backward sends a gradient of each, as large."""

    calls: tuple[CallOnce, ...]
    buckets: tuple[BucketUse, ...]
    inputs: tuple[Product, ...]


def trained(ledger: Ledger) -> ChunkTraffic:
    """In training. Calls of I and W together are those of B."""
    return _kept(_Same(ledger))


class _Same:
    """A ledger as a key: two are the same if they are one object."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ledger is other.ledger

    def __hash__(self) -> int:
        return id(self.ledger)


@lru_cache(maxsize=_KEPT)
def _kept(same: _Same) -> ChunkTraffic:
    ledger = same.ledger
    plain, hooked, split = ledger.trace(False, False), ledger.trace(True, False), ledger.trace(True, True)
    gathers = [_numbers(hooked, action, GATHERS) for action in "FB"]
    later = _numbers(split, "W", ACCUMULATES)
    uses = [BucketUse(bucket, n in later, (gathers[0][n], gathers[1][n])) for n, bucket in enumerate(ledger.buckets)]
    calls = (*_calls(ledger, plain, "F", "forward"), *_calls(ledger, plain, "B", "backward"))
    return ChunkTraffic(calls, tuple(uses), _inputs(ledger, plain))


def generated(ledger: Ledger, trace: str, phase: str) -> ChunkTraffic:
    """In one pass of generating. `trace`: its name in the ledger."""
    found = ledger.traces[trace]
    return ChunkTraffic(tuple(_calls(ledger, found, "F", phase)), (), _inputs(ledger, found))


def _numbers(trace: MicrobatchTrace, action: str, kind: int) -> Counter[int]:
    """How often that happens to what, by its number."""
    return Counter(number for segment in trace.segments(action) for what, number in segment.events() if what == kind)


def _calls(ledger: Ledger, trace: MicrobatchTrace, action: str, phase: str) -> list[CallOnce]:
    counts = Counter(
        (segment.layer, number) for segment in trace.segments(action) for what, number in segment.events() if what == CALLS
    )
    return [CallOnce(layer, phase, ledger.calls[number], times) for (layer, number), times in counts.items()]


def _inputs(ledger: Ledger, trace: MicrobatchTrace) -> tuple[Product, ...]:
    counts = _numbers(trace, INPUTS, ALLOCATES)
    return tuple(ledger.blocks[number].bytes for number, times in counts.items() for _ in range(times))
