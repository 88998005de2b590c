"""The kernels of an action, read from a ledger: which neighbouring operations a device runs as one, and what each moves.

A matrix product is a kernel. Between two products, or between a product and a call to other ranks, operations of one module are
one kernel, together with those of the modules around it: a norm with its conversions; bias and residual; a gated nonlinearity.
Such a kernel reads what none of its operations has written, and writes what none of them reads. Copies are no kernels: a product
reads and writes with strides. So Narayanan et al. 2021 (SC21, section 4.2) changed Megatron-LM: a layout of data without
transposes, and elementwise operations fused by PyTorch's compiler. Ivanov et al. 2021 (Data Movement Is All You Need) derive the
same kernels from which operations share their tensors.

Two kinds of operations are not fused. Between the products of written attention each is a kernel: scale, mask and softmax.
Megatron-LM fuses these three, but its dropout of the scores, which this engine has not, moves as many bytes. And the gradient of
a parameter is a sum over rows, which reads again what the kernel has read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from engine.ledger.form import CALLS, LOSS_CHUNK, RUNS, Call, Ledger, Operation, Product, Segment, Step

_COPIES = {"cat", "clone", "copy_", "detach_", "new_zeros", "stack"}
_LOOKUPS = {"embedding", "gather"}  # they read as many numbers of their first input as they write
_ROWS = {"B", "C", "R", "R/tp", "S", "S/tp", "T", "S/cp", "S/cp/tp", "S/2cp", "S/2cp/tp"}
_ATTENTION = {"bmm": "written", "baddbmm": "written", "_scaled_dot_product": "fused"}  # how names of operations begin


class Kernel(NamedTuple):
    """FLOPs of a matrix product, or none; bytes that the kernel reads and writes. Each is a sum of products.

    `attention`: empty, or that the product is inside attention: "written" with scores in memory, or the whole of it, "fused". Of
    another cp rank's tokens only those that are visible are computed: "whole".
    """

    flops: tuple[Product, ...]
    moved: tuple[Product, ...]
    attention: str = ""
    step: Step = ""


def kernels(ledger: Ledger, segments: Iterable[Segment]) -> Iterator[Kernel | Call]:
    """The kernels of some segments and their calls to other ranks, in order."""
    group: list[Operation] = []  # neighbours
    before = ""  # `attention` of the product before them
    step: Step = ""
    for segment in segments:
        for kind, number in segment.events():
            if kind not in (CALLS, RUNS):
                continue
            operation = ledger.operations[number] if kind == RUNS else None
            if (now := (operation or ledger.calls[number]).step) != step:
                yield from _kernels(group, False, step)
                group, before, step = [], "", now
            if operation is not None and not operation.flops:
                group += [] if _accumulates(operation, segment.layer) else [operation]
                continue
            attention = _attention(operation) if operation else ""
            yield from _kernels(group, bool(before and attention), step)
            group, before = [], attention
            if operation is None:
                yield ledger.calls[number]
            else:
                attention = "whole" if attention == "fused" and step else attention
                yield Kernel(operation.flops, operation.read + operation.written, attention, step)
    yield from _kernels(group, False, step)


def beside(ledger: Ledger, segments: Iterable[Segment]) -> Iterator[tuple[Call, Kernel]]:
    """The calls over tp of a whole backward, B, that run beside a matrix product, each with that product.

    The rule is that of `engine.parallel.tensor.ColumnLinear.backward`. It starts to gather the input before the product that
    makes the input's gradient, and to reduce that gradient before the product that makes the weight's, and waits for each behind
    the product. So in a ledger, a module's gather, product, reduction and product without rows follow each other.
    """
    order = [
        (ledger.calls[number], None) if kind == CALLS else (None, ledger.operations[number])
        for segment in segments
        for kind, number in segment.events()
        if (kind == CALLS and ledger.calls[number].axis == "tp") or (kind == RUNS and ledger.operations[number].flops)
    ]
    for place, (call, _) in enumerate(order):
        if call is None:
            continue
        following = order[place + 1 : place + 3]
        product = following[0][1] if following else None
        if product is None or _module(product) != call.name:
            continue
        makes_rows, reduces = any(map(_has_rows, product.written)), call.collective != "all_gather"
        then = following[1][0] if len(following) > 1 else None
        before_reduction = then is not None and then.name == call.name and then.collective != "all_gather"
        if (reduces and not makes_rows) or (not reduces and makes_rows and before_reduction):
            yield call, Kernel(product.flops, product.read + product.written)


def _kernels(group: Iterable[Operation], apart: bool, step: Step) -> Iterator[Kernel]:
    """The kernels of operations between two products or calls. `apart`: each operation is one."""
    return (kernel._replace(step=step) for kernel in _joined(group, apart))


def _joined(group: Iterable[Operation], apart: bool) -> Iterator[Kernel]:
    fused = _Fused("")
    for operation in group:
        if _called(operation) in _COPIES:
            fused.join(operation)
            continue
        if apart or not fused.takes(operation):
            yield from fused.kernel()
            fused = _Fused(_module(operation))
        fused.add(operation)
    yield from fused.kernel()


def _called(operation: Operation) -> str:
    return operation.name.rpartition(": ")[2]


def _module(operation: Operation) -> str:
    return operation.name.rpartition(": ")[0]


def _attention(operation: Operation) -> str:
    return next((kind for name, kind in _ATTENTION.items() if _called(operation).startswith(name)), "")


def _accumulates(operation: Operation, layer: int) -> bool:
    """Whether it adds a gradient to that of the microbatches before, which `Cost` counts by parameters.

    Autograd does so outside of modules, linear layers do it themselves. A chunk of the loss adds to those of the same microbatch.
    """
    if operation.name == "add_":
        return True
    return _called(operation) == "add_" and layer != LOSS_CHUNK and not any(map(_has_rows, operation.written))


def _sums_rows(operation: Operation) -> bool:
    """Whether it makes the gradient of a parameter from rows of tokens."""
    return any(map(_has_rows, operation.read)) and any(size.dimensions and not _has_rows(size) for size in operation.written)


def _has_rows(size: Product) -> bool:
    return not _ROWS.isdisjoint(size.dimensions)


class _Fused:
    """Neighbouring operations that become one kernel."""

    def __init__(self, module: str) -> None:
        self.module = module  # the innermost
        self._moved: list[Product] = []
        self._made: Counter[Product] = Counter()  # tensors of each size that its operations have written
        self._unread: Counter[Product] = Counter()  # of these, how many none has read

    def takes(self, operation: Operation) -> bool:
        """Whether an operation belongs to the kernel: its module is the kernel's, or contains it.

        What follows in a module inside is a kernel of its own: the norm behind a residual.
        """
        inner, outer = self.module, _module(operation)
        return not inner or not outer or f"{inner}.".startswith(f"{outer}.")

    def add(self, operation: Operation) -> None:
        self.module = max(self.module, _module(operation), key=len)
        if _sums_rows(operation):
            self._moved *= 2
        read = operation.read
        if _called(operation) in _LOOKUPS:
            read = operation.written + read[1:]
        for size, count in Counter(read).items():
            self._moved += [size] * max(0, count - self._made[size])
            self._unread[size] = max(0, self._unread[size] - count)
        self._made.update(operation.written)
        self._unread.update(operation.written)

    def join(self, copy: Operation) -> None:
        """Two tensors that the kernel has just written may be the halves of a copy. Then the kernel writes the copy instead."""
        for size in copy.written:
            half = Product(size.times // 2, size.dimensions)
            if self._unread[half] >= 2:
                self._unread[half] -= 2
                self._unread[size] += 1
                self._made[size] += 1

    def kernel(self) -> Iterator[Kernel]:
        if moved := (*self._moved, *self._unread.elements()):
            yield Kernel((), moved)
