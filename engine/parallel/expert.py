"""Expert parallelism: the rows of tokens go to the ranks that hold their experts, and come back.

Each of the ep ranks that share the experts of a layer holds E/ep of them, in order. A rank sorts the rows of its tokens by expert
and sends each rank its part in an all-to-all. The experts there run as one grouped product. A second all-to-all returns the rows.
Backward does the same in the other direction. tp cuts the inner width of every expert, so each tp rank routes the whole sequence.
Sources: Lepikhin et al. 2020, GShard, section 3; Fedus et al. 2021, Switch Transformer, section 2.2; Megatron-LM core, moe.

Shapes: T tokens of a microbatch, k experts of each; N rows that are sent, one for each choice that is not dropped; M rows that
this rank's experts get; E experts; H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.parallel.comm import Comm
from engine.parallel.function import Function
from engine.parallel.passage import passed
from engine.parallel.tensor import Again, TensorParallel
from engine.topology import EP


class Dispatch:
    """Where the rows of one microbatch go.

    order    (N,) the choices, numbers in the flat (T · k), sorted by expert; without dropped ones
    token    (N,) the token of each
    loads    (E,) how many choices each expert has, with dropped ones
    counts   rows that each expert of this rank gets
    arriving the same, by the rank that sends them, and by expert
    """

    def __init__(self, chosen: Tensor, experts: int, capacity: int | None, tp: TensorParallel) -> None:
        """`chosen`: (T, k) the experts of each token. `capacity`: rows that an expert takes; further ones are dropped."""
        self.comm, routing = tp.comm, tp.routing
        ranks = len(self.comm.groups[EP].ranks)
        here = experts // ranks
        flat = chosen.flatten()
        self.loads = torch.zeros(experts, dtype=torch.int64, device=flat.device).index_add_(0, flat, torch.ones_like(flat))
        kept_loads = self.loads if capacity is None else self.loads.clamp_max(capacity)
        theirs = _exchanged(self.comm, kept_loads, [here] * ranks, [here] * ranks)
        if routing.balanced:  # known without looking, so that fake tensors can be routed too
            all_loads = _dealt(flat.numel(), experts)
            by_expert = [min(load, flat.numel() if capacity is None else capacity) for load in all_loads]
            first = here * self.comm.groups[EP].ranks.index(self.comm.rank)
            arriving = by_expert[first : first + here] * ranks
            if routing.received is not None and ranks > 1:
                arriving = _dealt(routing.received, experts)
        else:
            all_loads, by_expert, arriving = self.loads.tolist(), kept_loads.tolist(), theirs.tolist()
        self.all_loads: list[int] = all_loads
        self.arriving: list[int] = arriving
        self.sent = [sum(by_expert[start : start + here]) for start in range(0, experts, here)]
        self.received = [sum(arriving[start : start + here]) for start in range(0, experts, here)]
        self.counts = [sum(arriving[expert::here]) for expert in range(here)]
        in_order, order = torch.sort(flat, stable=True)
        if capacity is not None:
            first_of_expert = (self.loads.cumsum(0) - self.loads).index_select(0, in_order)
            order = order[: sum(by_expert)] if routing.balanced else order[torch.arange(len(order)) - first_of_expert < capacity]
        self.order = order
        self.token = order // chosen.shape[1]
        self._regroups = ranks > 1 and here > 1

    def to_experts(self, rows: Tensor) -> Tensor:
        """(N, …) rows of this rank's tokens, by expert → (M, …) rows of this rank's experts, by expert"""
        rows = _exchanged(self.comm, rows, self.sent, self.received)
        return _regrouped(rows, self.arriving, len(self.counts)) if self._regroups else rows

    def from_experts(self, rows: Tensor) -> Tensor:
        """The way back. (M, …) → (N, …)"""
        if self._regroups:
            here = len(self.counts)
            rows = _regrouped(rows, [n for expert in range(here) for n in self.arriving[expert::here]], len(self.received))
        return _exchanged(self.comm, rows, self.received, self.sent)


def _exchanged(comm: Comm, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """Rows (rows, …) to the ranks that share the experts: `sent` to each. → (rows received, …), `received` of each

    Nothing happens in a group of one: the result is `rows` itself.
    """
    if len(sent) == 1:
        return rows
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    comm.start_exchange(out.split_with_sizes(list(received)), rows.split_with_sizes(list(sent)), rows, EP).wait()
    return out


def _dealt(rows: int, experts: int) -> list[int]:
    """How many of `rows` each expert gets if they are dealt out in turn."""
    return [rows // experts + (expert < rows % experts) for expert in range(experts)]


def _regrouped(rows: Tensor, sizes: Sequence[int], inner: int) -> Tensor:
    """Rows in parts of `sizes`, which are ordered by one number and then by another of `inner` values, ordered the other way."""
    parts = rows.split_with_sizes(list(sizes))
    return torch.cat([part for number in range(inner) for part in parts[number::inner]])


def to_experts(rows: Tensor, dispatch: Dispatch) -> Tensor:
    """`Dispatch.to_experts` with its derivative. In a group of one the rows are there already."""
    if len(dispatch.received) == 1:
        return rows
    return passed(rows, dispatch.to_experts, lambda gradient: dispatch.from_experts(gradient.contiguous()))


def from_experts(rows: Tensor, dispatch: Dispatch) -> Tensor:
    """`Dispatch.from_experts` with its derivative."""
    if len(dispatch.received) == 1:
        return rows
    return passed(rows, dispatch.from_experts, lambda gradient: dispatch.to_experts(gradient.contiguous()))


class _ToTensorParallel(Function):
    """The whole sequence on every tp rank, each of which computes a part of what follows: so backward is a sum over tp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return tp.gather_from_sequence(x) if tp.shards_sequence else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.tp.reduce_from_tp(gradient.contiguous()), None


def to_tensor_parallel(x: Tensor, tp: TensorParallel) -> Tensor:
    """(B, s, n) → (B, S, n). In backward it must be given a gradient that nothing else uses: the sum over tp overwrites it."""
    return x if tp.degree == 1 else _ToTensorParallel.apply(x, tp)


class _GroupedLinear(Function):
    """y = x Wᵀ for rows sorted by expert, each expert with its own W. Gradients of W are added up as those of a linear layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, own: tuple[nn.Parameter], counts: Sequence[int], tp: TensorParallel, again: Again | None
    ) -> Tensor:
        ctx.own, ctx.counts, ctx.tp, ctx.again = own, counts, tp, again
        if again is None:
            ctx.save_for_backward(x)
        return grouped(x, own[0].mT, counts, tp.comm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), counts, comm = ctx.own, ctx.counts, ctx.tp.comm
        again, ctx.again = ctx.again, None  # torch frees saved tensors after backward, but not this
        x = ctx.saved_tensors[0].detach() if again is None else again()
        for_input = grouped(gradient, weight, counts, comm)
        ctx.tp.gradients.add_or_defer_product(weight, lambda: grouped_outer(gradient, x, counts, comm))
        return for_input, None, None, None, None


def grouped_linear(
    x: Tensor, weight: nn.Parameter, counts: Sequence[int], tp: TensorParallel, again: Again | None = None
) -> Tensor:
    """(M, in), (E/ep, out, in) → (M, out). `counts`: rows of each expert. `again`: see `ColumnParallelLinear.forward`."""
    # In a tuple autograd does not see the weight.
    return _GroupedLinear.apply(x, (weight,), counts, tp, again)


def grouped(x: Tensor, weight: Tensor, counts: Sequence[int], comm: Comm) -> Tensor:
    """The product of each expert's rows with its matrix. (M, in), (n, in, out) → (M, out)

    One product if all experts have as many rows. torch's own grouped product needs rows of a multiple of 16 bytes, and on a CPU
    it is a loop over experts too.
    """
    y = x.new_empty((len(x), weight.shape[-1]))

    def multiply() -> None:
        if len(set(counts)) == 1:
            torch.bmm(x.view(len(counts), -1, x.shape[1]), weight, out=y.view(len(counts), -1, y.shape[1]))
            return
        sizes = list(counts)
        for rows, matrix, into in zip(x.split_with_sizes(sizes), weight, y.split_with_sizes(sizes), strict=True):
            if len(rows):
                torch.mm(rows, matrix, out=into)

    comm.recorder.product(multiply, 2 * x.numel() * weight.shape[-1], x.nbytes, weight.nbytes, y.nbytes)
    return y


def grouped_outer(gradient: Tensor, x: Tensor, counts: Sequence[int], comm: Comm) -> Tensor:
    """The gradients of each expert's matrix, from its rows. (M, out), (M, in) → (n, out, in)"""
    found = x.new_empty((len(counts), gradient.shape[1], x.shape[1]))

    def multiply() -> None:
        if len(set(counts)) == 1:
            by_expert = gradient.view(len(counts), -1, gradient.shape[1])
            torch.bmm(by_expert.mT, x.view(len(counts), -1, x.shape[1]), out=found)
            return
        sizes = list(counts)
        for of, rows, into in zip(gradient.split_with_sizes(sizes), x.split_with_sizes(sizes), found, strict=True):
            torch.mm(of.mT, rows, out=into)

    comm.recorder.product(multiply, 2 * x.numel() * gradient.shape[1], x.nbytes, gradient.nbytes, found.nbytes)
    return found
