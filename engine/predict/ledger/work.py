"""FLOPs, bytes and kernels of an action, read from a ledger: for one layout, or for arrays of layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.predict.ledger.dimensions import loss_chunks, value
from engine.predict.ledger.form import LOSS_CHUNK, RUNS, Ledger, MicrobatchTrace, Operation, Product


@dataclass
class Work:
    """The work of an action: FLOPs of matrix products, bytes that operations read and write, kernels launched."""

    flops: Any = 0
    read: Any = 0
    written: Any = 0
    kernels: Any = 0


def work(ledger: Ledger, trace: MicrobatchTrace, action: str, repeats: Sequence[Any], sizes: Mapping[str, Any]) -> Work:
    """The work of one action of one microbatch.

    `repeats`: how many layers each recorded layer represents. `sizes`: the values of the dimensions.
    """
    found = Work()
    for layer, number in trace.events(action, RUNS):
        operation = ledger.operations[number]
        if layer == LOSS_CHUNK:
            whole, left = loss_chunks(sizes)
            _add(found, operation, whole, sizes)
            _add(found, operation, (left > 0) * 1, {**sizes, "C": left})
        else:
            _add(found, operation, repeats[layer] if layer >= 0 else 1, sizes)
    return found


def _add(found: Work, operation: Operation, times: Any, sizes: Mapping[str, Any]) -> None:
    found.flops = found.flops + times * _sum(operation.flops, sizes)
    found.read = found.read + times * _sum(operation.read, sizes)
    found.written = found.written + times * _sum(operation.written, sizes)
    found.kernels = found.kernels + times


def _sum(products: Iterable[Product], sizes: Mapping[str, Any]) -> Any:
    return sum((value(product, sizes) for product in products), start=0)
