"""What a pass computes, read from a ledger: for one layout, or for arrays of layouts at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.predict.ledger.dimensions import value
from engine.predict.ledger.form import RUNS, Ledger, MicrobatchTrace, Product


@dataclass
class Work:
    """Of an action: floating-point operations of matrix products, bytes read and written by operations, kernels launched."""

    flops: Any = 0
    read: Any = 0
    written: Any = 0
    kernels: Any = 0


def work(ledger: Ledger, trace: MicrobatchTrace, action: str, repeats: Sequence[Any], sizes: Mapping[str, Any]) -> Work:
    """What one microbatch's action takes. `repeats`: how often each recorded layer is there; `sizes`: of the dimensions."""
    found = Work()
    for times, number in _happening(trace, action, RUNS, repeats):
        operation = ledger.operations[number]
        found.flops = found.flops + times * _sum(operation.flops, sizes)
        found.read = found.read + times * _sum(operation.read, sizes)
        found.written = found.written + times * _sum(operation.written, sizes)
        found.kernels = found.kernels + times
    return found


def _happening(trace: MicrobatchTrace, action: str, kind: int, repeats: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """How often what is there, by its number, of all that happens of one kind."""
    for segment in trace.segments(action):
        times = repeats[segment.layer] if segment.layer >= 0 else 1
        yield from ((times, number) for what, number in segment.events() if what == kind)


def _sum(products: Iterable[Product], sizes: Mapping[str, Any]) -> Any:
    return sum((value(product, sizes) for product in products), start=0)
