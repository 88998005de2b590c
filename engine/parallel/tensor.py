"""Tensor parallelism: layers whose weights are sharded over tp, and their collectives.

A column-parallel layer shards its output features, a row-parallel layer its input features. One after the other they need one
all-reduce in forward (after the row-parallel layer) and one in backward (before the column-parallel layer).
With sequence parallelism the activations between such pairs are sharded along the sequence. The all-reduce becomes a
reduce-scatter, and an all-gather precedes the column-parallel layer. It gathers again in backward instead of keeping the result.
Backward communicates beside products, as Megatron-LM does: the input is gathered while its gradient is computed, and that is
reduced while the gradient of the weight is computed (on a CPU only the first of the tp − 1 transfers of a reduce-scatter is).
Sources: Shoeybi et al. 2019, Megatron-LM, section 3; Korthikanti et al. 2022, section 4.2.
Shapes: B batch, S sequence, H hidden, tp the tensor parallel degree; s is S, or S/tp under sequence parallelism.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.parallel.comm import Comm
from engine.parallel.function import Function
from engine.parallel.gradients import LayerInput, LinearGradients
from engine.parallel.product import linear, outer, times
from engine.parallel.routing import Routing
from engine.spec import ContextParallelName, Precision
from engine.topology import EP

Started = Callable[[], Tensor]  # a call under way: waits for it and returns its result, once

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TensorParallel:
    """The tp group that layers are sharded over, and the type of their weights."""

    comm: Comm
    sequence: bool = False  # sequence parallelism: norms and residual stream are sharded along the sequence
    dtype: torch.dtype = torch.float32  # of parameters and activations
    context: ContextParallelName = "ring"  # how attention reaches the tokens of other cp ranks
    gradients: LinearGradients = field(default_factory=LinearGradients)
    routing: Routing = field(default_factory=Routing)

    @cached_property  # as they are asked for in every layer
    def degree(self) -> int:
        return self.comm.mesh.tp

    @property
    def index(self) -> int:
        return self.comm.at.tp

    @property
    def experts(self) -> tuple[int, int]:
        """This rank's index among the ranks that share the experts, and their number."""
        ranks = self.comm.groups[EP].ranks
        return ranks.index(self.comm.rank), len(ranks)

    @cached_property
    def shards_sequence(self) -> bool:
        return self.sequence and self.degree > 1

    def gather_from_sequence(self, x: Tensor) -> Tensor:
        """The input of a column-parallel layer: an all-gather under sequence parallelism, else x. (B, s, H) → (B, S, H)"""
        return self.start_gather_from_sequence(x)() if self.shards_sequence else x

    def start_gather_from_sequence(self, x: Tensor) -> Started:
        """The same, asynchronous."""
        if not self.shards_sequence:
            return lambda: x
        batch, _, width = x.shape
        x = x.contiguous()
        parts = [x.new_empty((self.degree, *x.shape))]  # (tp, B, S/tp, H), in a list so that it is freed after its use
        pending = self.comm.start_all_gather(parts[0], x, "tp")

        def finish() -> Tensor:
            pending.wait()
            return parts.pop().movedim(0, 1).reshape(batch, -1, width)

        return finish

    def reduce_from_tp(self, x: Tensor) -> Tensor:
        """The sum over tp of a row-parallel layer's partial results. x may be overwritten. (B, S, H) → (B, s, H)

        A reduce-scatter under sequence parallelism, else an all-reduce.
        """
        return x if self.degree == 1 else self.start_reduce_from_tp(x)()

    def start_reduce_from_tp(self, x: Tensor) -> Started:
        """The same, asynchronous: x must not be used."""
        if self.degree == 1:
            return lambda: x
        if self.shards_sequence:
            parts = x.view(x.shape[0], self.degree, -1, x.shape[2]).movedim(1, 0).contiguous()  # (tp, B, S/tp, H)
            out = torch.empty_like(parts[0])
            pending = self.comm.start_reduce_scatter(parts, "tp", out)
        else:
            out, pending = x, self.comm.start_all_reduce(x, "tp")

        def finish() -> Tensor:
            pending.wait()
            return out

        return finish


@dataclass(frozen=True)
class ShardSpec:
    """How a parameter is sharded over tp, and how it is initialized.

    `shape` is that of the whole parameter. `dim` is the sharded dimension; None: every tp rank holds the whole. `blocks` are
    sizes that add up to that dimension, for example q, k and v of a fused weight. Each block is sharded by itself, padded with
    zeros to a multiple of tp. `least`: the least size of a shard of each block, 0: none. A block that is too small for a shard of
    that size on each rank is held by several ranks: neighbours have copies of a shard. Such blocks come last. `multiple`: shards
    are padded to a multiple of it, one that is the whole as well. `experts`: the first dimension is the experts, which ep cuts.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    blocks: tuple[int, ...] = ()
    least: tuple[int, ...] = ()
    init: Literal["normal", "zeros", "ones"] = "normal"
    std: float = 0.02
    multiple: int = 1
    experts: bool = False

    def of_rank(self, whole: Tensor, index: int, of: int) -> Tensor:
        """The experts of one of `of` ranks that share them; what has none is whole on each."""
        return whole.chunk(of)[index] if self.experts else whole

    def shard(self, whole: Tensor, index: int, of: int) -> Tensor:
        """Shard `index` of `of`."""
        if self.dim is None or (of == 1 and self.multiple == 1):
            return whole
        parts = []
        for block, (size, copies) in zip(whole.split(self.sizes, self.dim), self.shards(of), strict=True):
            first = index // copies * size
            part = block.narrow(self.dim, min(first, block.shape[self.dim]), 0)
            if first < block.shape[self.dim]:
                part = block.narrow(self.dim, first, min(size, block.shape[self.dim] - first))
            missing = size - part.shape[self.dim]
            if missing:
                padding = [0, 0] * (whole.dim() - 1 - self.dim) + [0, missing]
                part = F.pad(part, padding)
            parts.append(part)
        return torch.cat(parts, self.dim)

    def unshard(self, shards: list[Tensor], copy: int = 0) -> Tensor:
        """The whole parameter from the shards of all tp ranks. The padding is removed. `copy`: which copy of a shard is taken."""
        if self.dim is None or (len(shards) == 1 and self.multiple == 1):
            return shards[0]
        every = self.shards(len(shards))
        pieces = [s.split([size for size, _ in every], self.dim) for s in shards]
        blocks = [
            torch.cat([p[b] for p in pieces[copy % copies :: copies]], self.dim).narrow(self.dim, 0, self.sizes[b])
            for b, (_, copies) in enumerate(every)
        ]
        return torch.cat(blocks, self.dim)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the blocks along the sharded dimension."""
        assert self.dim is not None
        return self.blocks or (self.shape[self.dim],)

    def shards(self, of: int) -> list[tuple[int, int]]:
        """For each block the size of a shard, padded, and how many of `of` ranks hold the same shard."""
        found = []
        for size, least in zip(self.sizes, self.least or (0,) * len(self.sizes), strict=True):
            copies = max(1, least * of // size)
            found.append((-(-size * copies // (of * self.multiple)) * self.multiple, copies))
        return found

    def copies(self, of: int) -> int:
        """How many of `of` ranks hold the same shard of the last blocks; 1: each has its own."""
        return 1 if self.dim is None else self.shards(of)[-1][1]

    def copied(self, of: int) -> int:
        """The size of what other ranks hold too, at the end of a shard along its dimension."""
        return 0 if self.dim is None else sum(size for size, copies in self.shards(of) if copies > 1)


class _WithShardSpec(type(nn.Parameter)):  # type: ignore[misc]
    """Any parameter with a `shard_spec` is a `ShardedParameter`: torch keeps the class of a fake tensor made a parameter."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, nn.Parameter) and hasattr(instance, "shard_spec")


class ShardedParameter(nn.Parameter, metaclass=_WithShardSpec):
    """A parameter that knows how it is sharded. `initialize` or `assign` sets its values."""

    shard_spec: ShardSpec
    bucket: Any = None  # `engine.parallel.data.Bucket`, once it has one

    @staticmethod
    def of(spec: ShardSpec, tp: TensorParallel) -> ShardedParameter:
        shape = list(spec.shape)
        if spec.experts:
            shape[0] //= tp.experts[1]
        if spec.dim is not None:
            shape[spec.dim] = sum(size for size, _ in spec.shards(tp.degree))
        parameter = ShardedParameter(torch.empty(shape, dtype=tp.dtype, device=tp.comm.device))
        parameter.shard_spec = spec
        return parameter

    def initialize(self, name: str, seed: int, index: int, of: int, experts: tuple[int, int] = (0, 1)) -> None:
        """Set the values to shard `index` of `of` of the whole parameter. The whole is drawn from a seed made of its full name.

        So every layout starts from the same model. `experts`: see `TensorParallel.experts`.
        """
        whole = torch.empty(self.shard_spec.shape)
        if self.shard_spec.init == "normal":
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            whole.normal_(0.0, self.shard_spec.std, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))
        else:
            whole.fill_(1.0 if self.shard_spec.init == "ones" else 0.0)
        ShardedParameter.assign(self, whole, index, of, experts)

    def assign(self, whole: Tensor, index: int, of: int, experts: tuple[int, int] = (0, 1)) -> None:
        """Set the values to shard `index` of `of` of the whole parameter. `experts`: see `TensorParallel.experts`."""
        with torch.no_grad():
            self.copy_(self.shard_spec.shard(self.shard_spec.of_rank(whole, *experts), index, of))


# ------------------------------------------------------------------------------------------------------------- the layers

Again = Callable[[], Tensor]  # computes the input of a linear layer again


class Weights(NamedTuple):
    """The parameters of a linear layer. In a tuple autograd does not see them: `LinearGradients` adds up their gradients."""

    weight: nn.Parameter
    bias: nn.Parameter | None


def _rows(x: Tensor, first: int, tp: TensorParallel) -> Tensor:
    """The rows of the whole sequence from `first` on. (B, s, in) → (B, S − first, in)"""
    return _start_rows(x, first, tp)()


def _start_rows(x: Tensor, first: int, tp: TensorParallel) -> Started:
    """The same, asynchronous."""
    whole = tp.start_gather_from_sequence(x)
    return (lambda: whole()[:, first:]) if first else whole


def _is_plain(gradient: Tensor, tp: TensorParallel) -> bool:
    """Whether backward of a linear layer is its products and nothing else: no call to other ranks, and nothing deferred."""
    return tp.degree == 1 and not tp.gradients.defers and gradient.is_contiguous()


class ColumnLinear(Function):
    """y = x Wᵀ + b, where every shard of W reads the same x. So the gradient of x is a sum over tp."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        own: Weights,
        tp: TensorParallel,
        first: int = 0,
        shared: Tensor | None = None,
        again: Again | None = None,
    ) -> Tensor:
        """`first`: the first row of the sequence that has an output. `shared`: the weight, if autograd adds up its gradients.

        `again`: see `ColumnParallelLinear.forward`.
        """
        ctx.own, ctx.tp, ctx.first, ctx.shared, ctx.again = own, tp, first, shared is not None, again
        if again is None:
            ctx.save_for_backward(x)
        return linear(_rows(x, first, tp) if first or tp.shards_sequence else x, *own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tp, own, first = ctx.tp, ctx.own, ctx.first
        again, ctx.again = ctx.again, None  # torch frees saved tensors after backward, but not this
        if not first and again is None and not ctx.shared and _is_plain(gradient, tp):
            (x,), flat = ctx.saved_tensors, gradient.view(-1, gradient.shape[-1])  # (B·S, out)
            of_input = times(gradient, own.weight)
            tp.gradients.add(own.weight, flat, x)
            tp.gradients.add_bias(own.bias, flat)
            return of_input, None, None, None, None, None  # (B, S, in)
        # Without its graph, which a deferred weight gradient must not keep.
        x = ctx.saved_tensors[0].detach() if again is None else again()
        later = tp.gradients.defers and not ctx.shared
        rows = partial(_rows, x, first, tp) if later else _start_rows(x, first, tp)
        product = times(gradient, own.weight)
        for_input = tp.start_reduce_from_tp(F.pad(product, (0, 0, first, 0)) if first else product)
        del product
        for_weight = None
        if ctx.shared:
            for_weight = outer(gradient, rows())
        else:
            tp.gradients.add_or_defer(own.weight, gradient, rows)
        tp.gradients.add_bias(own.bias, gradient)
        return for_input(), None, None, None, for_weight, None  # (B, s, in)


class RowInput(NamedTuple):
    """What a row-parallel layer multiplies: x (B, S, in/tp), or what `between` makes of x, which backward computes again."""

    x: Tensor
    own: Weights
    between: Callable[[Tensor], Tensor] | None = None


class _RowLinear(Function):
    """y = Σ over tp of x Wᵀ, + b, where each shard of W has its own part of x. Layers whose results are added have one sum."""

    @staticmethod
    def forward(ctx: Any, tp: TensorParallel, inputs: Sequence[RowInput], *xs: Tensor) -> Tensor:
        """`xs`: those of `inputs`, so that autograd sees them."""
        ctx.tp, ctx.layers = tp, [(own, between) for _, own, between in inputs]
        ctx.save_for_backward(*xs)
        if tp.degree == 1 and len(inputs) == 1 and inputs[0].between is None:
            return linear(xs[0], *inputs[0].own)

        def product(one: RowInput) -> Tensor:
            x = one.x if one.between is None else one.between(one.x)
            return linear(x, *one.own) if tp.degree == 1 else linear(x, one.own.weight)

        y = product(inputs[0])
        for one in inputs[1:]:
            y.add_(product(one))
        if tp.degree == 1:
            return y
        y = tp.reduce_from_tp(y)
        for _, own, _ in inputs:
            if own.bias is not None:
                y.add_(own.bias)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tp, layers = ctx.tp, ctx.layers
        if len(layers) == 1 and layers[0][1] is None and _is_plain(gradient, tp):
            (x,), own, flat = ctx.saved_tensors, layers[0][0], gradient.view(-1, gradient.shape[-1])  # (B·S, out)
            tp.gradients.add_bias(own.bias, flat)
            of_input = times(gradient, own.weight)
            tp.gradients.add(own.weight, flat, x)
            return None, None, of_input  # (B, S, in)
        gathering = tp.start_gather_from_sequence(gradient)
        inputs = [LayerInput(x.detach(), between) for x, (_, between) in zip(ctx.saved_tensors, layers, strict=True)]
        for own, _ in layers:
            tp.gradients.add_bias(own.bias, gradient)
        whole, found = gathering(), []  # (B, S, out)
        for one, (own, _) in zip(inputs, layers, strict=True):
            found.append(one.backward(times(whole, own.weight)))
            tp.gradients.add_or_defer(own.weight, whole, lambda y=one.y: y)
        return None, None, *found


class ColumnParallelLinear(nn.Module):
    """y = x Wᵀ + b with the output features sharded over tp. (B, s, in) → (B, S, out/tp)

    `blocks`: sizes of several fused outputs (q, k, v), each sharded by itself. `least`: see `ShardSpec`.
    """

    def __init__(
        self, inputs: int, blocks: tuple[int, ...], tp: TensorParallel, bias: bool = True, least: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((sum(blocks), inputs), 0, blocks, least), tp)
        self.bias = ShardedParameter.of(ShardSpec((sum(blocks),), 0, blocks, least, "zeros"), tp) if bias else None
        self.own = Weights(self.weight, self.bias)  # kept, as a module looks each of them up by name

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        """`again`: x is not kept for backward, which computes it with this function instead."""
        return ColumnLinear.apply(x, self.own, self.tp, 0, None, again)


class RowParallelLinear(nn.Module):
    """y = x Wᵀ + b with the input features sharded over tp; b is whole, and added after the sum. (B, S, in/tp) → (B, s, out)"""

    def __init__(self, inputs: int, outputs: int, tp: TensorParallel, std: float, bias: bool = True) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((outputs, inputs), 1, std=std), tp)
        self.bias = ShardedParameter.of(ShardSpec((outputs,), init="zeros"), tp) if bias else None
        self.own = Weights(self.weight, self.bias)

    def forward(self, x: Tensor, between: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`between`: see `RowInput`."""
        return self.sum_of((self.input(x, between),))

    def input(self, x: Tensor, between: Callable[[Tensor], Tensor] | None = None) -> RowInput:
        return RowInput(x, self.own, between)

    def sum_of(self, inputs: Sequence[RowInput]) -> Tensor:
        """The sum of the outputs of several row-parallel layers, with one reduction. → (B, s, out)"""
        return _RowLinear.apply(self.tp, inputs, *(one.x for one in inputs))
