"""Context parallelism: each cp rank has a part of the tokens of every sequence, and attention reaches the others.

    ring         keys and values are passed from rank to rank, beside the computation (Liu et al. 2023, Ring Attention). Backward
                 passes them round again, and their gradients behind them.
    all_gather   keys and values of all ranks are gathered, in backward again, and their gradients reduce-scattered
    ulysses      heads are exchanged for tokens, so that each rank has all tokens of some heads (Jacobs et al. 2023)

Under a causal mask early tokens see little and late ones much. So with ring and all_gather a rank has two parts of 2 · cp, one
from the head of the sequence and one from its tail: ranks i have parts i and 2 · cp − 1 − i, as in Megatron-LM. Of what another
rank has, half of the pairs of a query and a key are visible, on every rank and in every step, and only these are computed: always
as two blocks of half by half, so that all ranks need the same memory. What blocks add to a row is weighted by the sum of the
exponentials of their scores (online softmax, Milakov and Gimelshein 2018).

Shapes: B batch, A heads of this rank, G key heads of it, s = S/cp tokens, D head width, n = cp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.parallel.attention_blocks import Blocks, Mixture, blocks_of
from engine.parallel.comm import Comm
from engine.parallel.function import Function
from engine.parallel.passage import passed
from engine.parallel.pending import Pending
from engine.spec import ContextParallelName

CoreAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


def own_tokens(kind: ContextParallelName, seq: int, cp: int, index: int) -> tuple[range, ...]:
    """The tokens of a sequence that a cp rank has, in order: one range, or two."""
    if cp == 1 or kind == "ulysses":
        part = seq // cp
        return (range(index * part, (index + 1) * part),)
    part, tail = seq // (2 * cp), 2 * cp - 1 - index
    return tuple(range(first * part, (first + 1) * part) for first in (index, tail))


def places_of(tokens: tuple[range, ...], device: torch.device) -> Tensor:
    """The positions of some tokens. (n,)"""
    several = [torch.arange(some.start, some.stop, device=device) for some in tokens]
    return several[0] if len(several) == 1 else torch.cat(several)


class Pair(NamedTuple):
    """Queries and keys of which each query sees each key, or with `masked` those up to its own. Slices of their tokens."""

    rows: slice
    columns: slice
    masked: bool = False


class ContextParallel:
    """How attention of this rank reaches the tokens of the other cp ranks."""

    def __init__(self, comm: Comm, kind: ContextParallelName) -> None:
        self.comm, self.kind = comm, kind

    @cached_property
    def degree(self) -> int:
        return self.comm.mesh.cp

    def attention(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, fused: bool, core: CoreAttention) -> Tensor:
        """Attention over the tokens of all cp ranks. (B, A, s, D), two of (B, G, s, D) → (B, A, s, D)

        `core`: attention on one rank, for whole sequences. Only `ulysses` uses it.
        """
        if self.kind == "ulysses":
            to_tokens, to_heads = partial(_to_tokens, comm=self.comm), partial(_to_heads, comm=self.comm)
            mixed = core(*(passed(x, to_tokens, to_heads) for x in (q, k, v)))
            return passed(mixed, to_heads, to_tokens)
        return _BlockAttention.apply(q, k, v, self, causal, fused)

    def pairs(self, step: int, causal: bool, s: int, fused: bool) -> list[Pair]:
        """What is visible of the tokens that this rank has in that step. In step 0 these are its own."""
        every, head, tail = slice(0, s), slice(0, s // 2), slice(s // 2, s)
        if not causal:
            return [Pair(every, every)]
        if step == 0:  # the fused operation leaves out what is hidden; written, it would be computed
            return [Pair(every, every, True)] if fused else [Pair(head, head, True), Pair(tail, head), Pair(tail, tail, True)]
        if step <= self.comm.at.cp:  # of a rank before this one
            return [Pair(head, head), Pair(tail, head)]
        return [Pair(tail, head), Pair(tail, tail)]

    def rounds(self, k: Tensor, v: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The keys and values of each rank: first this one's, in step 1 those of the rank before it, and so on."""
        return self._passed(k, v) if self.kind == "ring" else self._gathered(k, v)

    def _passed(self, k: Tensor, v: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        own = self._joined(k, v, "send_recv")
        for step in range(self.degree):
            with self._step(step):
                received = self._pass_on(own) if step < self.degree - 1 else None
                yield step, own[0], own[1]
                if received is not None:
                    own = received.wait()

    def _gathered(self, k: Tensor, v: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        every = self.comm.all_gather(self._joined(k, v, "all_gather"), "cp")  # (n, 2, B, G, s, D)
        for step in range(self.degree):
            with self._step(step):
                keys, values = every[(self.comm.at.cp - step) % self.degree]
                yield step, keys, values

    def _joined(self, k: Tensor, v: Tensor, collective: str) -> Tensor:
        """(2, B, G, s, D)"""
        with self.comm.recorder.communication_region(collective):
            return torch.stack((k, v))

    def _step(self, step: int) -> AbstractContextManager[Any]:
        return self.comm.recorder.context_step(step, self.degree)

    def _pass_on(self, message: Tensor) -> _Received:
        """Start sending to the next rank, and receiving from the one before."""
        with self.comm.recorder.communication_region("send_recv"):
            out = torch.empty_like(message)
        return _Received(self.comm.start_send_recv(out, message, "cp"), out)

    def gradients(self, k: Tensor) -> _PassedGradients | _ScatteredGradients:
        """What adds up the gradients of keys and values."""
        return (_PassedGradients if self.kind == "ring" else _ScatteredGradients)(self, k)


class _Received(NamedTuple):
    pending: Pending
    message: Tensor

    def wait(self) -> Tensor:
        self.pending.wait()
        return self.message


class _PassedGradients:
    """Gradients of keys and values that follow them round the ring. Each rank adds its part, and the last sends them home."""

    def __init__(self, parallel: ContextParallel, k: Tensor) -> None:
        self._parallel, self._received = parallel, None
        with parallel.comm.recorder.communication_region("send_recv"):
            self._sum: Tensor = k.new_zeros((2, *k.shape))

    _received: _Received | None

    def add(self, step: int, found: list[tuple[slice, Tensor, Tensor]]) -> None:
        """`found`: which tokens, and the gradients of their keys and of their values."""
        if self._received is not None:
            self._sum = self._received.wait()
        for columns, *gradients in found:
            for place, gradient in zip(self._sum, gradients, strict=True):
                place[:, :, columns].add_(gradient)
        self._received = self._parallel._pass_on(self._sum)

    def own(self) -> Tensor:
        """(2, B, G, s, D)"""
        assert self._received is not None
        return self._received.wait()


class _ScatteredGradients:
    """Gradients of the keys and values of all ranks, which are summed by one reduce-scatter."""

    def __init__(self, parallel: ContextParallel, k: Tensor) -> None:
        self._parallel = parallel
        with parallel.comm.recorder.communication_region("reduce_scatter"):
            self._sums = k.new_zeros((parallel.degree, 2, *k.shape))

    def add(self, step: int, found: list[tuple[slice, Tensor, Tensor]]) -> None:
        of = self._sums[(self._parallel.comm.at.cp - step) % self._parallel.degree]
        for columns, *gradients in found:
            for place, gradient in zip(of, gradients, strict=True):
                place[:, :, columns].add_(gradient)

    def own(self) -> Tensor:
        return self._parallel.comm.reduce_scatter(self._sums, "cp")


class _BlockAttention(Function):
    """Attention block by block. It keeps q, k, v, the output, and one number a row; written attention also keeps the scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parallel: ContextParallel, causal: bool, fused: bool) -> Tensor:
        blocks, mixture = blocks_of(q, k, causal, fused, parallel.degree), Mixture(q)
        _each_pair(
            parallel, q, k, v, causal, fused, lambda step, one, *parts: mixture.add(one.rows, *blocks.forward(one, *parts))
        )
        out, lse = mixture.result(q.dtype)
        ctx.settings = parallel, causal, fused
        ctx.save_for_backward(q, k, v, out, lse, *blocks.kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (parallel, causal, fused), (q, k, v, out, lse, *kept) = ctx.settings, ctx.saved_tensors
        blocks: Blocks = blocks_of(q, k, causal, fused, parallel.degree, kept)
        for_query, for_keys = torch.zeros_like(q), parallel.gradients(k)
        found: list[tuple[slice, Tensor, Tensor]] = []

        def one_pair(step: int, one: Pair, query: Tensor, keys: Tensor, values: Tensor) -> None:
            more, for_key, for_value = blocks.backward(one, gradient, query, keys, values, out, lse)
            for_query[:, :, one.rows].add_(more)
            found.append((one.columns, for_key, for_value))

        def end(step: int) -> None:
            for_keys.add(step, found)
            found.clear()

        _each_pair(parallel, q, k, v, causal, fused, one_pair, end)
        return for_query, *for_keys.own(), None, None, None


def _each_pair(
    parallel: ContextParallel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    fused: bool,
    do: Callable[..., None],
    end: Callable[[int], None] = lambda step: None,
) -> None:
    """Call `do` with each visible pair and its queries, keys and values, and `end` after each step."""
    for step, keys, values in parallel.rounds(k, v):
        for one in parallel.pairs(step, causal, q.shape[2], fused):
            do(step, one, q[:, :, one.rows], keys[:, :, one.columns], values[:, :, one.columns])
        del keys, values
        end(step)


def _to_tokens(x: Tensor, comm: Comm) -> Tensor:
    """All tokens of a part of the heads, for all heads of a part of the tokens. (B, n · h, s, D) → (B, h, n · s, D)

    The result has the strides of (B, n · s, h, D).
    """
    parts = x.unflatten(1, (comm.mesh.cp, -1)).movedim(1, 0).contiguous()  # (n, B, h, s, D)
    return comm.all_to_all(parts, "cp").permute(1, 0, 3, 2, 4).flatten(1, 2).transpose(1, 2)


def _to_heads(x: Tensor, comm: Comm) -> Tensor:
    """The way back. (B, h, n · s, D) → (B, n · h, s, D), with the strides of (B, s, n · h, D)"""
    parts = x.unflatten(2, (comm.mesh.cp, -1)).movedim(2, 0).contiguous()  # (n, B, h, s, D)
    return comm.all_to_all(parts, "cp").permute(1, 3, 0, 2, 4).flatten(2, 3).transpose(1, 2)
