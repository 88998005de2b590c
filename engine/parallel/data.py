"""Data parallelism and ZeRO: where the values, gradients and optimizer states of each layer are, and when they are communicated.

The parameters of one layer form a bucket. A bucket's values and gradients are flat tensors, of which the parameters and their
gradients are views. ZeRO stages (Rajbhandari et al. 2020, section 5) for a bucket of Ψ elements:

    zero  values      gradients   optimizer   collectives over dp
    0     Ψ           Ψ           Ψ           all-reduce of the gradients, once a step
    1     Ψ           Ψ           Ψ/dp        reduce-scatter of the gradients once a step, all-gather of the new values
    2     Ψ           Ψ/dp        Ψ/dp        reduce-scatter of the gradients for each microbatch, all-gather of the new values
    3     Ψ/dp        Ψ/dp        Ψ/dp        the same reduce-scatter; all-gather of the values around each use

A reduction starts as soon as its bucket is complete, so that it overlaps with the rest of backward. (On a CPU, with more than two
replicas and zero > 0, only its first transfer does: see `Comm.start_reduce_scatter`.) If a schedule defers weight gradients (I
and W), a bucket is complete when no started backward of its layer misses a gradient: with zero ≥ 2, overlapping passes are
accumulated and reduced together. The loss of each replica is divided by dp before backward, so that the average is a sum.

Hybrid sharding (`LayoutSpec.zero_replicas`) cuts dp in two: the ranks that shard, which are neighbours, and those that hold the
same shard. Above, dp is then the former, and Ψ/dp what one of them has. When a bucket's last reduction of the step is complete,
its sum, Ψ/dp, is all-reduced over the latter, in place: once a step, as in MiCS (Zhang et al. 2022, section 3.4).

With context parallelism dp here means dp × cp: ranks of both hold the same parameters (`engine.topology.REPLICATED`).

Beyond what stays, reductions take little memory. With zero > 0 each chunk has one under way at a time: the next waits for it. One
under way has a buffer of Ψ/dp for what another replica sends (none on a GPU), and with zero ≥ 2 also the Ψ gradients that are
being sent. With zero 1 the sum is made in this rank's share of the gradients, and with zero ≥ 2 it is added to that share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.parallel.comm import EXPERT_REPLICAS, KEY_COPIES, ZERO_REPLICAS, ZERO_SHARDS, Comm
from engine.parallel.function import Function
from engine.parallel.pending import Pending
from engine.parallel.tensor import ShardedParameter, TensorParallel
from engine.topology import EP

Streams = tuple[Tensor, ...]  # the activations between two uses


class ParameterUse(NamedTuple):
    """One use of some layers' parameters in a chunk. `run` maps activations to activations."""

    layers: tuple[nn.Module, ...]
    run: Callable[[Streams], Streams]
    borrowed: tuple[nn.Module, ...] = ()  # used too, but their gradients come from another use
    lookup: bool = False  # backward does not need the values
    at_once: bool = False  # backward follows at once, so the values stay until it is over


def run_in_order(uses: Sequence[ParameterUse], streams: Streams) -> Streams:
    """Run `uses` one after the other, where all values are resident."""
    for use in uses:
        streams = use.run(streams)
    return streams


class Bucket:
    """The parameters of one layer, flat. Sizes are in elements; `size` is padded to a multiple of dp where zero > 0."""

    def __init__(
        self,
        parameters: Sequence[ShardedParameter],
        comm: Comm,
        zero: int,
        accumulate: torch.dtype,
        masters: bool,
        sums_over_tp: bool = False,
    ) -> None:
        """`masters`: the optimizer has an fp32 copy of values that are not fp32. `sums_over_tp`: under sequence parallelism."""
        # Parameters replicated over tp come first: under sequence parallelism their gradients are all-reduced over tp together.
        self.parameters = sorted(parameters, key=lambda p: p.shard_spec.dim is not None)
        self.replicated_size = sum(p.numel() for p in self.parameters if p.shard_spec.dim is None)
        self.experts = self.parameters[0].shard_spec.experts
        # The group of the ranks that have the same parameters and share the work on them.
        self.replicas = EXPERT_REPLICAS if self.experts and len(comm.groups[EP].ranks) > 1 else ZERO_SHARDS
        ranks = comm.groups[self.replicas].ranks
        zero = zero if len(ranks) > 1 else 0  # experts that no other rank has are not sharded
        self.comm, self.zero = comm, zero
        self.parts = len(ranks) if zero else 1
        used = sum(p.numel() for p in self.parameters)
        self.size = -(-used // self.parts) * self.parts
        share = self.size // self.parts
        self.own = slice(ranks.index(comm.rank) * share, (ranks.index(comm.rank) + 1) * share) if zero else slice(0, self.size)
        self.dtype, self.accumulate = self.parameters[0].dtype, accumulate
        self.converts = accumulate != self.dtype
        self.places: dict[ShardedParameter, slice] = {}
        offset = 0
        for p in self.parameters:
            self.places[p] = slice(offset, offset + p.numel())
            offset += p.numel()
        tp = comm.mesh.tp
        # What other tp ranks hold too, at the end of a parameter: the gradients of all copies are summed.
        self.copied = [
            slice(place.stop - p.shard_spec.copied(tp) * (p.numel() // p.shape[0]), place.stop)
            for p, place in self.places.items()
            if p.shard_spec.copied(tp)
        ]
        self._make_values(masters)
        kept = self.size if zero < 2 else share
        self.gradients = torch.zeros(kept, dtype=accumulate, device=comm.device)
        self.incoming: Tensor | None = None  # what backward writes to, if not `gradients`
        # Whether something is to be done with a gradient, or with all of them when they are complete.
        summed = len(ranks) > 1 or (comm.mesh.tp > 1 and ((sums_over_tp and self.replicated_size > 0) or bool(self.copied)))
        self.waits = summed or self.converts
        self.missing = 0  # gradients that are missing until the bucket is complete
        self.passes = 0  # backward passes of the step that have been expected
        self.resident = zero < 3
        if zero < 2 and not self.converts:
            self._point_gradients_at(self.gradients)

    def _make_values(self, masters: bool) -> None:
        self.values = torch.zeros(self.size, dtype=self.dtype, device=self.comm.device)
        for p, place in self.places.items():
            self.values[place].copy_(p.detach().flatten())
            p.data = self.values[place].view(p.shape)
        self.shard = self.values[self.own] if self.zero < 3 else self.values[self.own].clone()
        self.master = self.shard.float() if masters and self.dtype != torch.float32 else self.shard  # which the optimizer updates
        if self.zero == 3:
            self._resize_values(0)

    def _resize_values(self, size: int) -> None:
        self.values.untyped_storage().resize_(size * self.values.element_size())
        self.comm.recorder.resized(self.values)  # not an operation of torch, so the fake allocator would not see it

    def _point_gradients_at(self, flat: Tensor) -> None:
        """Autograd accumulates into existing gradients in place. So backward keeps writing to these views."""
        for p, place in self.places.items():
            p.grad = flat[place].view(p.shape)

    @property
    def reduced(self) -> Tensor:
        """The gradients that this rank updates: all, or its shard."""
        return self.gradients[self.own] if self.zero == 1 else self.gradients

    # ------------------------------------------------------------------------------------------------ values where dp shards

    def start_gather(self) -> Pending:
        """Allocate the values and start the all-gather of their shards."""
        with self.comm.recorder.communication_region("all_gather"):  # so that the memory counts as communication
            self._resize_values(self.size)
        return self.comm.start_all_gather(self.values, self.shard, self.replicas)

    def release_values(self) -> None:
        self._resize_values(0)
        self.resident = False

    # ------------------------------------------------------------------------------------------------------- gradients

    def expect(self, passes: int) -> None:
        """Expect a gradient of every parameter from that many more backward passes."""
        if self.zero >= 2 and self.incoming is None:
            with self.comm.recorder.communication_region("reduce_scatter"):  # so that it counts as communication
                self.incoming = torch.zeros(self.size, dtype=self.dtype, device=self.comm.device)
            self._point_gradients_at(self.incoming)
        self.passes += passes
        self.missing += passes * len(self.parameters)

    def note_gradient(self, p: ShardedParameter) -> bool:
        """Note that a gradient of `p` was computed. Returns whether the bucket is complete."""
        if self.converts and self.incoming is None:
            assert p.grad is not None
            self.gradients[self.places[p]].view(p.shape).add_(p.grad)
            p.grad = None
        self.missing -= 1
        return self.missing == 0

    def all_reduce_replicated(self) -> None:
        """Sum the gradients of replicated parameters over tp: under sequence parallelism each rank saw a part of the sequence."""
        flat = self.gradients if self.incoming is None else self.incoming
        if self.replicated_size:
            self.comm.all_reduce(flat[: self.replicated_size], "tp")

    def all_reduce_copied(self) -> None:
        """Sum the gradients of the copies of key heads over the tp ranks that hold them: each has seen its own queries."""
        flat = self.gradients if self.incoming is None else self.incoming
        for place in self.copied:
            self.comm.all_reduce(flat[place], KEY_COPIES)

    def start_reduce(self) -> Pending:
        """Start the reduction over dp. With zero > 0 the sum of this rank's share goes straight to where it stays."""
        if self.zero == 0:
            return self.comm.start_all_reduce(self.gradients, self.replicas)
        if self.incoming is None:
            return self.comm.start_reduce_scatter(self.gradients.view(self.parts, -1), self.replicas)
        incoming, self.incoming = self.incoming, None  # which the pending call keeps
        for p in self.parameters:
            p.grad = None
        return self.comm.start_reduce_scatter(incoming.view(self.parts, -1), self.replicas, self.gradients, accumulate=True)

    def start_sum_of_replicas(self) -> Pending:
        """Start to sum this rank's share over the ranks that hold the same. It is counted with what waits for it."""
        return self.comm.start_all_reduce(self.reduced, ZERO_REPLICAS, phase="reduce")

    def round_values(self) -> None:
        """After the optimizer's step: copy the new fp32 values to the parameters, in their type."""
        if self.master is not self.shard:
            self.shard.copy_(self.master)

    def whole_gradients(self) -> dict[ShardedParameter, Tensor]:
        """The whole reduced gradients by parameter. An all-gather if they are sharded."""
        flat = self.gradients if self.zero == 0 else self.comm.all_gather(self.reduced, self.replicas).flatten()
        return {p: flat[place].view(p.shape) for p, place in self.places.items()}

    def norm(self) -> Tensor:
        """The norm of `reduced` in fp32, without what other tp ranks count.

        The first rank counts what tp does not shard, and the first of the ranks with the same key head counts that.
        """
        squared = torch.zeros((), device=self.comm.device)
        for piece in self._counted:
            norm = torch.linalg.vector_norm(self.reduced[piece], dtype=torch.float32)
            squared.addcmul_(norm, norm)
        return squared.sqrt_()

    @cached_property
    def _counted(self) -> list[slice]:
        """Of `reduced`, what this rank counts in the norm."""
        copied = self.copied if self.comm.groups[KEY_COPIES].ranks[0] != self.comm.rank else []
        starts = [self.replicated_size if self.comm.at.tp else 0, *(place.stop for place in copied)]
        stops = [*(place.start for place in copied), self.size]
        first = self.own.start
        return [slice(max(0, a - first), max(0, b - first)) for a, b in zip(starts, stops, strict=True)]


def of_bucket(module: nn.Module) -> list[Any]:
    """The parameters of a module: its experts if it has nothing else, otherwise all but experts, which are another bucket."""
    parameters: list[Any] = list(module.parameters())
    others = [p for p in parameters if not p.shard_spec.experts]
    return others or parameters


class BackwardHook(Function):
    """Calls `hook` in backward, when the gradients of all `streams` are complete and before any of them is used.

    On a layer's outputs it is called before the layer's backward, on its inputs after it.
    """

    @staticmethod
    def forward(ctx: Any, hook: Callable[[], None], *streams: Tensor) -> Streams:
        ctx.hook = hook
        return tuple(x.view_as(x) for x in streams)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.hook()
        return None, *gradients


class DataParallel:
    """The buckets of one rank's chunks, and their collectives over dp, and over tp for sequence parallelism."""

    def __init__(self, tp: TensorParallel, zero: int, accumulate: torch.dtype, microbatches: int, masters: bool = True) -> None:
        """`accumulate`: the type in which gradients are accumulated. `microbatches`: backward passes of each chunk in a step.
        `masters`: see `Bucket`.

        The gradients of linear layers come from `tp.gradients`, all others from autograd.
        """
        self.tp, self.comm, self.zero, self.accumulate, self.microbatches = tp, tp.comm, zero, accumulate, microbatches
        self.masters = masters
        self._copies = len(self.comm.groups[ZERO_REPLICAS].ranks)
        self.buckets: dict[nn.Module, Bucket] = {}
        self._chunk_of: dict[Bucket, int] = {}
        self._reducing: dict[int, list[tuple[Pending, Bucket | None]]] = {}  # each with what is then summed over replicas
        self._summing: dict[int, list[Pending]] = {}  # over replicas of shards
        self._gathering: dict[nn.Module, Pending] = {}

    def add_chunk(self, chunk: int, layers: Sequence[nn.Module]) -> None:
        """Make a bucket of each layer of a chunk. The parameters must have their values already."""
        self._reducing[chunk], self._summing[chunk] = [], []
        for layer in layers:
            parameters: Any = of_bucket(layer)
            bucket = Bucket(parameters, self.comm, self.zero, self.accumulate, self.masters, self.tp.shards_sequence)
            self.buckets[layer], self._chunk_of[bucket] = bucket, chunk
            for p in bucket.parameters:
                p.bucket = bucket
                if bucket.waits:  # else gradients are added up in place, and nobody needs to know when
                    p.register_post_accumulate_grad_hook(self._take_gradient)
                    self.tp.gradients.added = self._take_gradient

    # ------------------------------------------------------------------------------------------------- around each step

    def begin_step(self) -> None:
        for bucket in self.buckets.values():
            bucket.gradients.zero_()
            bucket.passes = 0
            if bucket.zero < 2 and bucket.waits:
                bucket.expect(self.microbatches)

    def finish_reductions(self, chunk: int) -> None:
        """Wait until every bucket of `chunk` is reduced."""
        assert all(b.missing == 0 for b, of in self._chunk_of.items() if of == chunk), "a gradient is missing"
        self._wait_for_reductions(chunk)
        for pending in self._summing[chunk]:
            pending.wait()
        self._summing[chunk].clear()

    def all_gather_values(self) -> None:
        """All-gather the updated values over dp."""
        shared = [b for b in self.buckets.values() if b.zero]
        for pending in [self.comm.start_all_gather(b.values, b.shard, b.replicas) for b in shared]:
            pending.wait()

    # ----------------------------------------------------------------------------------------------- around each layer

    def through(self, uses: Sequence[ParameterUse], streams: Streams) -> Streams:
        """Run `uses` one after the other. Their values are gathered before each use, in forward and in backward."""
        if self.zero < 2:
            return run_in_order(uses, streams)
        for i, use in enumerate(uses):
            before = uses[i - 1] if i and not uses[i - 1].lookup else None
            after = uses[i + 1] if i + 1 < len(uses) else None
            if streams:  # the first use has none: it reads tokens, which have no gradient
                streams = BackwardHook.apply(partial(self._release, use), *streams)
            self._gather(use, after)
            streams = use.run(streams)
            if not use.at_once:
                self._release(use)
            streams = BackwardHook.apply(partial(self._begin_backward, use, before), *streams)
        return streams

    def _begin_backward(self, use: ParameterUse, before: ParameterUse | None) -> None:
        for layer in use.layers:
            if self.buckets[layer].zero >= 2:
                self.buckets[layer].expect(1)
        if not use.lookup:
            self._gather(use, before)

    def _gather(self, use: ParameterUse, following: ParameterUse | None) -> None:
        """Wait for the values that `use` needs, and start to gather those of the next use."""
        if self.zero < 3:
            return
        self._start_gather(use)
        for layer in (*use.layers, *use.borrowed):
            if layer in self._gathering:
                self._gathering.pop(layer).wait()
        if following is not None:
            self._start_gather(following)

    def _start_gather(self, use: ParameterUse) -> None:
        for layer in (*use.layers, *use.borrowed):
            if not self.buckets[layer].resident:
                self._gathering[layer] = self.buckets[layer].start_gather()
                self.buckets[layer].resident = True

    def _release(self, use: ParameterUse) -> None:
        if self.zero == 3:
            for layer in (*use.layers, *use.borrowed):
                if self.buckets[layer].zero == 3:
                    self.buckets[layer].release_values()

    # ------------------------------------------------------------------------------------------------------- gradients

    def _take_gradient(self, p: Any) -> None:
        """A gradient of the `ShardedParameter` was added to `p.grad`."""
        bucket = p.bucket
        if bucket.waits and bucket.note_gradient(p):
            self._reduce(bucket)

    def _reduce(self, bucket: Bucket) -> None:
        if self.tp.shards_sequence:
            bucket.all_reduce_replicated()
        bucket.all_reduce_copied()
        if len(self.comm.groups[bucket.replicas].ranks) > 1:
            chunk = self._chunk_of[bucket]
            if self.zero:
                self._wait_for_reductions(chunk)  # one reduction at a time, so that only one bucket has buffers
            last = bucket.passes == self.microbatches  # no further reduction of this bucket comes in this step
            summed = bucket if last and bucket.zero and self._copies > 1 else None
            self._reducing[chunk].append((bucket.start_reduce(), summed))

    def _wait_for_reductions(self, chunk: int) -> None:
        for pending, summed in self._reducing[chunk]:
            pending.wait()
            if summed is not None:
                self._summing[chunk].append(summed.start_sum_of_replicas())
        self._reducing[chunk].clear()
