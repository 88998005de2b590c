"""Tensor parallelism: layers whose weights are sharded over tp, and their collectives.

A column-parallel layer shards its output features, a row-parallel layer its input features. One after the other they need one
all-reduce in forward (after the row-parallel layer) and one in backward (before the column-parallel layer).
With sequence parallelism the activations between such pairs are sharded along the sequence. The all-reduce becomes a
reduce-scatter, and an all-gather precedes the column-parallel layer. It gathers again in backward instead of keeping the result.
Sources: Shoeybi et al. 2019, Megatron-LM, section 3; Korthikanti et al. 2022, section 4.2.
Shapes: B batch, S sequence, H hidden, tp the tensor parallel degree; s is S, or S/tp under sequence parallelism.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from engine.parallel.comm import Comm
from engine.parallel.product import linear
from engine.spec import Precision

# weight → the computation of its gradient, which adds it up, in order of backward
DeferredWeightGradients = dict[nn.Parameter, Callable[[], None]]


DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LinearGradients:
    """Adds the gradients of linear layers to `grad` of their parameters, which autograd does not see.

    A zero-bubble schedule computes weight gradients in W, not in I (Qi et al. 2023).
    """

    def __init__(self) -> None:
        self.added: Callable[[nn.Parameter], None] = lambda parameter: None  # called after each gradient
        self._waiting: DeferredWeightGradients | None = None

    @contextmanager
    def collect(self) -> Iterator[DeferredWeightGradients]:
        """Inside this context, backward computes no weight gradient of a linear layer. It stores the computation instead."""
        self._waiting = {}
        try:
            yield self._waiting
        finally:
            self._waiting = None

    def add_or_defer(self, weight: nn.Parameter, gradient: Tensor, x: Callable[[], Tensor]) -> None:
        """Add the gradient of `weight` (out, in), or store its computation. `gradient` (B, S, out), `x` (B, S, in)."""
        if self._waiting is None:
            self._add(weight, gradient, x)
        else:
            assert weight not in self._waiting, "a weight that is used twice is left to autograd"
            self._waiting[weight] = partial(self._add, weight, gradient, x)

    def _add(self, weight: nn.Parameter, gradient: Tensor, x: Callable[[], Tensor]) -> None:
        _accumulate(weight, _outer(gradient, x()))
        self.added(weight)

    def add_bias(self, bias: nn.Parameter | None, gradient: Tensor) -> None:
        """Add the gradient of `bias` (out), if there is one. `gradient` (B, S, out)."""
        if bias is not None:
            _accumulate(bias, gradient.flatten(0, -2).sum(0))
            self.added(bias)


def _accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    so_far = parameter.grad
    if so_far is None:
        parameter.grad = gradient
    else:
        so_far.add_(gradient)


def _outer(gradient: Tensor, x: Tensor) -> Tensor:
    """The weight's gradient. (B, S, out), (B, S, in) → (out, in)"""
    return linear(gradient.flatten(0, -2).T, x.flatten(0, -2).T)


@dataclass(frozen=True)
class TensorParallel:
    """The tp group that layers are sharded over, and the type of their weights."""

    comm: Comm
    sequence: bool = False  # sequence parallelism: norms and residual stream are sharded along the sequence
    dtype: torch.dtype = torch.float32  # of parameters and activations
    gradients: LinearGradients = field(default_factory=LinearGradients)

    @cached_property  # as they are asked for in every layer
    def degree(self) -> int:
        return self.comm.mesh.tp

    @property
    def index(self) -> int:
        return self.comm.at.tp

    @cached_property
    def shards_sequence(self) -> bool:
        return self.sequence and self.degree > 1

    def gather_from_sequence(self, x: Tensor) -> Tensor:
        """The input of a column-parallel layer: an all-gather under sequence parallelism, else x. (B, s, H) → (B, S, H)"""
        if not self.shards_sequence:
            return x
        parts = self.comm.all_gather(x.contiguous(), "tp")  # (tp, B, S/tp, H)
        return parts.movedim(0, 1).reshape(x.shape[0], -1, x.shape[2])

    def reduce_from_tp(self, x: Tensor) -> Tensor:
        """The sum over tp of a row-parallel layer's partial results. x may be overwritten. (B, S, H) → (B, s, H)

        A reduce-scatter under sequence parallelism, else an all-reduce.
        """
        return self.reduce_scatter_to_sequence(x) if self.shards_sequence else self.comm.all_reduce(x, "tp")

    def reduce_scatter_to_sequence(self, x: Tensor) -> Tensor:
        """The sum over tp. This rank keeps its part of the sequence. (B, S, H) → (B, S/tp, H)"""
        parts = x.view(x.shape[0], self.degree, -1, x.shape[2]).movedim(1, 0).contiguous()  # (tp, B, S/tp, H)
        return self.comm.reduce_scatter(parts, "tp")


@dataclass(frozen=True)
class ShardSpec:
    """How a parameter is sharded over tp, and how it is initialized.

    `shape` is that of the whole parameter. `dim` is the sharded dimension; None: every tp rank holds the whole. `blocks` are
    sizes that add up to that dimension, for example q, k and v of a fused weight. Each block is sharded by itself, padded with
    zeros to a multiple of tp.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    blocks: tuple[int, ...] = ()
    init: Literal["normal", "zeros", "ones"] = "normal"
    std: float = 0.02

    def shard(self, whole: Tensor, index: int, of: int) -> Tensor:
        """Shard `index` of `of`."""
        if self.dim is None or of == 1:
            return whole
        parts = []
        for block in whole.split(self.blocks or (self.shape[self.dim],), self.dim):
            size = -(-block.shape[self.dim] // of)
            part = block.narrow(self.dim, min(index * size, block.shape[self.dim]), 0)
            if index * size < block.shape[self.dim]:
                part = block.narrow(self.dim, index * size, min(size, block.shape[self.dim] - index * size))
            missing = size - part.shape[self.dim]
            if missing:
                padding = [0, 0] * (whole.dim() - 1 - self.dim) + [0, missing]
                part = F.pad(part, padding)
            parts.append(part)
        return torch.cat(parts, self.dim)

    def unshard(self, shards: list[Tensor]) -> Tensor:
        """The whole parameter from the shards of all tp ranks. The padding is removed."""
        if self.dim is None or len(shards) == 1:
            return shards[0]
        sizes = self.blocks or (self.shape[self.dim],)
        padded = [-(-size // len(shards)) for size in sizes]
        pieces = [s.split(padded, self.dim) for s in shards]
        blocks = [torch.cat([p[b] for p in pieces], self.dim).narrow(self.dim, 0, sizes[b]) for b in range(len(sizes))]
        return torch.cat(blocks, self.dim)


class _WithShardSpec(type(nn.Parameter)):  # type: ignore[misc]
    """Any parameter with a `shard_spec` is a `ShardedParameter`: torch keeps the class of a fake tensor made a parameter."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, nn.Parameter) and hasattr(instance, "shard_spec")


class ShardedParameter(nn.Parameter, metaclass=_WithShardSpec):
    """A parameter that knows how it is sharded. `initialize` sets its values."""

    shard_spec: ShardSpec
    bucket: Any = None  # `engine.parallel.data.Bucket`, once it has one

    @staticmethod
    def of(spec: ShardSpec, tp: TensorParallel) -> ShardedParameter:
        shape = list(spec.shape)
        if spec.dim is not None:
            shape[spec.dim] = sum(-(-size // tp.degree) for size in spec.blocks or (spec.shape[spec.dim],))
        parameter = ShardedParameter(torch.empty(shape, dtype=tp.dtype, device=tp.comm.device))
        parameter.shard_spec = spec
        return parameter

    def initialize(self, name: str, seed: int, index: int, of: int) -> None:
        """Set the values to shard `index` of `of` of the whole parameter. The whole is drawn from a seed made of its full name.

        So every layout starts from the same model.
        """
        whole = torch.empty(self.shard_spec.shape)
        if self.shard_spec.init == "normal":
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            whole.normal_(0.0, self.shard_spec.std, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))
        else:
            whole.fill_(1.0 if self.shard_spec.init == "ones" else 0.0)
        with torch.no_grad():
            self.copy_(self.shard_spec.shard(whole, index, of))


# ------------------------------------------------------------------------------------------------------------- the layers

Again = Callable[[], Tensor]  # computes the input of a linear layer again


def _keep(ctx: Any, x: Tensor, again: Again | None) -> None:
    """Keep x for backward, or how it is computed again."""
    ctx.again = again
    ctx.save_for_backward(*([x] if again is None else []))


def _kept(ctx: Any) -> Tensor:
    """x without its graph, which a deferred weight gradient must not keep."""
    again, ctx.again = ctx.again, None  # torch frees saved tensors after backward, but not this
    return ctx.saved_tensors[0].detach() if again is None else again()


class Weights(NamedTuple):
    """The parameters of a linear layer. In a tuple autograd does not see them: `LinearGradients` adds up their gradients."""

    weight: nn.Parameter
    bias: nn.Parameter | None


def _rows(x: Tensor, first: int, tp: TensorParallel) -> Tensor:
    """The rows of the whole sequence from `first` on. (B, s, in) → (B, S − first, in)"""
    whole = tp.gather_from_sequence(x)
    return whole[:, first:] if first else whole


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
        ctx.own, ctx.tp, ctx.first, ctx.shared = own, tp, first, shared is not None
        _keep(ctx, x, again)
        return linear(_rows(x, first, tp), *own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tp, own, first, x = ctx.tp, ctx.own, ctx.first, _kept(ctx)
        partial = linear(gradient, own.weight.T)
        for_input = tp.reduce_from_tp(F.pad(partial, (0, 0, first, 0)) if first else partial)  # (B, s, in)
        for_weight = None
        if ctx.shared:
            for_weight = _outer(gradient, _rows(x, first, tp))
        else:
            tp.gradients.add_or_defer(own.weight, gradient, lambda: _rows(x, first, tp))
        tp.gradients.add_bias(own.bias, gradient)
        return for_input, None, None, None, for_weight, None


class _RowLinear(Function):
    """y = Σ over tp of x Wᵀ, + b, where each shard of W has its own part of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Weights, tp: TensorParallel, again: Again | None) -> Tensor:
        ctx.own, ctx.tp = own, tp
        _keep(ctx, x, again)
        if tp.degree == 1:
            return linear(x, *own)
        y = tp.reduce_from_tp(linear(x, own.weight))
        return y if own.bias is None else y.add_(own.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        tp, own, x = ctx.tp, ctx.own, _kept(ctx)
        tp.gradients.add_bias(own.bias, gradient)
        whole = tp.gather_from_sequence(gradient)  # (B, S, out)
        for_input = linear(whole, own.weight.T)
        tp.gradients.add_or_defer(own.weight, whole, lambda: x)
        return for_input, None, None, None


class ColumnParallelLinear(nn.Module):
    """y = x Wᵀ + b with the output features sharded over tp. (B, s, in) → (B, S, out/tp)

    `blocks`: sizes of several fused outputs (q, k, v), each sharded by itself.
    """

    def __init__(self, inputs: int, blocks: tuple[int, ...], tp: TensorParallel, bias: bool = True) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((sum(blocks), inputs), 0, blocks), tp)
        self.bias = ShardedParameter.of(ShardSpec((sum(blocks),), 0, blocks, "zeros"), tp) if bias else None

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        """`again`: x is not kept for backward, which computes it with this function instead."""
        return ColumnLinear.apply(x, Weights(self.weight, self.bias), self.tp, 0, None, again)


class RowParallelLinear(nn.Module):
    """y = x Wᵀ + b with the input features sharded over tp. (B, S, in/tp) → (B, s, out)

    The bias is replicated and added once, after the sum.
    """

    def __init__(self, inputs: int, outputs: int, tp: TensorParallel, std: float, bias: bool = True) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((outputs, inputs), 1, std=std), tp)
        self.bias = ShardedParameter.of(ShardSpec((outputs,), init="zeros"), tp) if bias else None

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        """`again`: see `ColumnParallelLinear.forward`."""
        return _RowLinear.apply(x, Weights(self.weight, self.bias), self.tp, again)
