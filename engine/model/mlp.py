"""The MLP of a layer, its inner width sharded over tp. (B, s, H) → (B, s, H)"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from engine.families import Inner
from engine.model.attention import output_std
from engine.parallel.tensor import ColumnParallelLinear, RowParallelLinear, TensorParallel
from engine.spec import ModelSpec


def swiglu(x: Tensor) -> Tensor:
    """gate and up, concatenated → silu(gate) · up (Shazeer 2020). (…, 2n) → (…, n)"""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


INNER: dict[Inner, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": swiglu,
}


class MLP(nn.Module):
    """Two linear layers with a nonlinearity between. SwiGLU has two inner layers, gate and up, in one fused weight."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel) -> None:
        super().__init__()
        bias = spec.parts.mlp_bias
        self.between = INNER[spec.parts.inner]
        widths = (spec.ffn_width,) * (2 if spec.parts.inner == "swiglu" else 1)
        self.inner = ColumnParallelLinear(spec.hidden, widths, tp, bias=bias)
        self.out = RowParallelLinear(spec.ffn_width, spec.hidden, tp, std=output_std(spec), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.inner(x)))  # (B, S, F/tp) inside
