"""The MLP of a layer, its inner width sharded over tp. (B, s, H) → (B, s, H)"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from engine.families import Inner
from engine.model.attention import output_std
from engine.parallel.tensor import Again, ColumnParallelLinear, RowInput, RowParallelLinear, TensorParallel
from engine.spec import ModelSpec


def swiglu(x: Tensor) -> Tensor:
    """gate and up, concatenated → silu(gate) · up (Shazeer 2020). (…, 2n) → (…, n)"""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def geglu(x: Tensor) -> Tensor:
    """gate and up, concatenated → gelu(gate) · up (Shazeer 2020), with the tanh form of GELU as Gemma has it. (…, 2n) → (…, n)"""
    gate, up = x.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021)."""
    return F.relu(x).square()


INNER: dict[Inner, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
    "geglu": geglu,
    "swiglu": swiglu,
}


class MLP(nn.Module):
    """Two linear layers with a nonlinearity between. With a gate there are two inner layers, gate and up, in one fused weight.

    `recomputes`: backward computes the nonlinearity again, so that only its input is kept.
    """

    def __init__(self, spec: ModelSpec, tp: TensorParallel, recomputes: bool = False, width: int = 0) -> None:
        """`width`: the inner width, if it is not the model's."""
        super().__init__()
        self.recomputes, self.parallel = recomputes, spec.parts.parallel != "none"
        bias = spec.parts.mlp_bias
        self.between = INNER[spec.parts.inner]
        width = width or spec.ffn_width
        widths = (width,) * (2 if spec.parts.gated else 1)
        self.inner = ColumnParallelLinear(spec.hidden, widths, tp, bias=bias)
        self.out = RowParallelLinear(width, spec.hidden, tp, std=output_std(spec), bias=bias)

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor | RowInput:
        """`again`: see `ColumnParallelLinear.forward`. Parallel to attention, the result is the input of the output layer."""
        x = self.inner(x, again)  # (B, S, F/tp), or twice as wide
        out = self.out.input if self.parallel else self.out
        # Recomputed by the output layer: some nonlinearities keep more than their input, relu its output, swiglu a part of it.
        return out(x, self.between) if self.recomputes else out(self.between(x))
