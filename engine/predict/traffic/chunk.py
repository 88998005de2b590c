"""The communication of a chunk, read from its ledger. It has dimensions in it, not yet the numbers of a layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from engine.ledger.form import (
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

_KEPT = 1024  # ledgers in the cache


class MicrobatchCall(NamedTuple):
    """A call that each microbatch makes `times` times in recorded layer `layer`. −1: outside of layers."""

    layer: int
    phase: str
    call: Call
    times: int


class BucketUse(NamedTuple):
    """How a microbatch uses a bucket.

    `deferred`: W computes some of its gradients, where a schedule splits backward. `gathers`: how often ZeRO 3 gathers its values
    in one forward pass and in one backward pass.
    """

    bucket: RecordedBucket
    deferred: bool
    gathers: tuple[int, int]


@dataclass(frozen=True, eq=False)  # as a key of a cache it is the object, as a ledger is
class ChunkTraffic:
    """The communication of a chunk for one microbatch.

    `inputs`: bytes of each tensor that forward receives. Backward sends a gradient of the same size for each.
    """

    calls: tuple[MicrobatchCall, ...]
    buckets: tuple[BucketUse, ...]
    inputs: tuple[Product, ...]


def trained(ledger: Ledger) -> ChunkTraffic:
    """The traffic of a chunk in training. I and W together make the calls of B, so only B is read."""
    return _trained(_Identity(ledger))


class _Identity:
    """A ledger as a key of a cache. Keys are equal if they hold the same object: to compare ledgers by value is slow."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.ledger is other.ledger

    def __hash__(self) -> int:
        return id(self.ledger)


@lru_cache(maxsize=_KEPT)
def _trained(key: _Identity) -> ChunkTraffic:
    ledger = key.ledger
    plain, hooked, split = ledger.trace(False, False), ledger.trace(True, False), ledger.trace(True, True)
    gathers = [_counts(hooked, action, GATHERS) for action in "FB"]
    deferred = _counts(split, "W", ACCUMULATES)
    uses = [BucketUse(bucket, n in deferred, (gathers[0][n], gathers[1][n])) for n, bucket in enumerate(ledger.buckets)]
    calls = (*_calls(ledger, plain, "F", "forward"), *_calls(ledger, plain, "B", "backward"))
    return ChunkTraffic(calls, tuple(uses), _inputs(ledger, plain))


def generated(ledger: Ledger, trace: str, phase: str) -> ChunkTraffic:
    """The traffic of a chunk in one forward pass of generating. `trace`: the name of the pass in the ledger."""
    found = ledger.traces[trace]
    return ChunkTraffic(tuple(_calls(ledger, found, "F", phase)), (), _inputs(ledger, found))


def _counts(trace: MicrobatchTrace, action: str, kind: int) -> Counter[int]:
    """The number of events of one kind in an action, by the index of their block, bucket, call or operation."""
    return Counter(number for _, number in trace.events(action, kind))


def _calls(ledger: Ledger, trace: MicrobatchTrace, action: str, phase: str) -> list[MicrobatchCall]:
    counts = Counter(trace.events(action, CALLS))
    return [MicrobatchCall(layer, phase, ledger.calls[number], times) for (layer, number), times in counts.items()]


def _inputs(ledger: Ledger, trace: MicrobatchTrace) -> tuple[Product, ...]:
    counts = _counts(trace, INPUTS, ALLOCATES)
    return tuple(ledger.blocks[number].bytes for number, times in counts.items() for _ in range(times))
