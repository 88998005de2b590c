"""Linear layers whose weight every tp rank has whole. Under sequence parallelism each rank multiplies its own rows."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from engine.parallel.function import Function
from engine.parallel.product import linear, times
from engine.parallel.tensor import Again, ShardedParameter, ShardSpec, TensorParallel


class _Linear(Function):
    """y = x Wᵀ. The gradient of W is added up, or deferred, as that of a sharded layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: tuple[nn.Parameter], tp: TensorParallel, again: Again | None) -> Tensor:
        """`own`: the weight; in a tuple autograd does not see it. `again`: see `ColumnParallelLinear.forward`."""
        ctx.own, ctx.tp, ctx.again = own, tp, again
        if again is None:
            ctx.save_for_backward(x)
        return linear(x, own[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        again, ctx.again = ctx.again, None  # torch frees saved tensors after backward, but not this
        x = ctx.saved_tensors[0].detach() if again is None else again()
        for_input = times(gradient, ctx.own[0])
        ctx.tp.gradients.add_or_defer(ctx.own[0], gradient, partial(_itself, x))
        return for_input, None, None, None


def _itself(x: Tensor) -> Tensor:
    return x


class ReplicatedLinear(nn.Module):
    """y = x Wᵀ, whole on every tp rank. (B, s, in) → (B, s, out)"""

    def __init__(self, inputs: int, outputs: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((outputs, inputs)), tp)

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        """`again`: see `ColumnParallelLinear.forward`."""
        return _Linear.apply(x, (self.weight,), self.tp, again)
