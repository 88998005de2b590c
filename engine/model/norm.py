"""Norms over the hidden width, replicated over tp, (B, s, H) → (B, s, H); and of queries and keys, whose heads are sharded.

Shapes: B batch, s (S, or S/tp if sharded), H hidden, R rows of queries or keys, n heads on this rank, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.parallel.function import Function
from engine.parallel.tensor import ShardedParameter, ShardSpec, TensorParallel
from engine.spec import ModelSpec

LAYER_EPSILON = RMS_EPSILON = 1e-5


class LayerNorm(nn.Module):
    def __init__(self, width: int, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = ShardedParameter.of(ShardSpec((width,), init="ones"), tp)
        self.bias = ShardedParameter.of(ShardSpec((width,), init="zeros"), tp)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if x.dtype == torch.float32:
            return torch.layer_norm(x, weight.shape, weight, bias, LAYER_EPSILON)
        return _WideLayerNorm.apply(x, weight, bias)


class _WideLayerNorm(Function):
    """LayerNorm in fp32 for an x of lower precision. It keeps x and two numbers a row for backward, as torch's own does.

    torch's own, on a CPU, accumulates the parameters' gradients in the type of x: an error of 2.5% in bf16, here 0.3%.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x.float(), weight.shape, weight.float(), bias.float(), LAYER_EPSILON)
        ctx.save_for_backward(x, weight, mean, scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wide = weight.float()  # used as the bias too, of which only the type matters
        gradients = torch.ops.aten.native_layer_norm_backward(
            gradient.float(), x.float(), weight.shape, mean, scale, wide, wide, [True, True, True]
        )
        return tuple(g.to(x.dtype) for g in gradients)


class RMSNorm(nn.Module):
    """x / √(mean of x² + ε), scaled (Zhang and Sennrich 2019). `of_heads`: see `_OfHeads`."""

    def __init__(self, width: int, tp: TensorParallel, of_heads: bool = False) -> None:
        super().__init__()
        self.tp, self.of_heads = tp, of_heads
        self.weight = ShardedParameter.of(ShardSpec((width,), init="ones"), tp)

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, _OfHeads.apply(self.weight, self.tp) if self.of_heads else self.weight, None)


class ShardedRMSNorm(nn.Module):
    """RMSNorm over features that are sharded over tp, the heads of queries or keys (OLMo team 2024). (B, R, n, D) → (B, R, n, D)

    Each tp rank has the mean of squares of its own features. An all-reduce of one number a row makes their mean, and another one
    in backward.
    """

    def __init__(self, heads: int, width: int, tp: TensorParallel, keys: bool) -> None:
        """`heads` of `width` over all tp ranks. Ranks that have copies of a key head have copies of its weight."""
        super().__init__()
        self.tp = tp
        self.weight = ShardedParameter.of(ShardSpec((heads * width,), 0, least=(width,) if keys else (), init="ones"), tp)

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x.flatten(2), self.weight, self.tp).view(x.shape)


class _RMSNorm(Function):
    """In fp32 for any type of x. It keeps x and one number a row for backward. `tp`: the width is sharded over it, or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, tp: TensorParallel | None) -> Tensor:
        wide = x.float()
        scale = _mean(wide.square(), tp).add_(RMS_EPSILON).rsqrt_()  # (B, s, 1)
        ctx.tp = tp
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x.float() * scale
        wide = gradient.float()
        for_weight = (wide * normal).flatten(0, -2).sum(0).to(weight.dtype)
        wide = wide * weight
        for_input = (wide - normal * _mean(wide * normal, ctx.tp)).mul_(scale)
        return for_input.to(x.dtype), for_weight, None


def _mean(x: Tensor, tp: TensorParallel | None) -> Tensor:
    """The mean of each row, whose columns may be sharded over tp. (…, n) → (…, 1)"""
    mean = x.mean(-1, keepdim=True)
    return mean if tp is None or tp.degree == 1 else tp.comm.all_reduce(mean, "tp").div_(tp.degree)


class _OfHeads(Function):
    """A parameter that all heads share, while each tp rank has other heads. So its gradient is a sum over tp.

    Under sequence parallelism it is summed at the end of the step, with those of all other replicated parameters.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient if ctx.tp.shards_sequence else ctx.tp.comm.all_reduce(gradient, "tp"), None


def make_norm(spec: ModelSpec, tp: TensorParallel) -> nn.Module:
    """The model's norm over the hidden width."""
    return LayerNorm(spec.hidden, tp) if spec.parts.norm == "layer" else RMSNorm(spec.hidden, tp)


def make_qk_norm(spec: ModelSpec, keys: bool, tp: TensorParallel) -> nn.Module | None:
    """The norm of queries or of `keys`, if the model has one. (B, R, n, D) → (B, R, n, D)

    It is RMSNorm in every model: a shift of all keys changes no softmax.
    """
    kind = spec.parts.qk_norm
    if kind == "none":
        return None
    if kind == "full":
        return ShardedRMSNorm(spec.key_heads if keys else spec.heads, spec.head_width, tp, keys)
    return RMSNorm(spec.head_width, tp, of_heads=True)
